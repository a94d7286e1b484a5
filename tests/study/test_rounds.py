"""Distil until decided: which rounds are made, what ends them, and that a stopped study goes on after its last look."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest

from cdmem.errors import InputError
from cdmem.metrics.comparison.looks import error_at_look
from cdmem.run.ending import Ending
from cdmem.run.folder import FINISHED, RunFolder
from cdmem.study.config import read_study
from cdmem.study.rounds import EVALUATIONS, HALF_LIVES, LOWER_RATE, Look, Rounds, round_ends
from cdmem.study.until import Until, read_until
from cdmem.training.ending import TimeBudget, ending_of
from cdmem.training.settings import Averaging, Optimization
from cdmem.training.student import Student
from support.stages import callback, stage, write_study


class FakeStage:
    """Trains in no time: writes how it ended, as a stage does."""

    def __init__(self, folder: RunFolder, max_steps: int, spent_at: int | None = None) -> None:
        settings = {"optimization": Optimization(schedule="constant"), "averaging": Averaging([10])}
        self.model = Student(teacher="no/such/teacher", **settings)
        self.trainer = SimpleNamespace(max_steps=max_steps, callbacks=[], world_size=1)
        self.folder, self.spent_at = folder, spent_at

    def execute(self) -> None:
        step, ending = self.trainer.max_steps, Ending(self.trainer.max_steps, "max_steps")
        if self.spent_at is not None and step >= self.spent_at:
            ending = Ending(self.spent_at, "stopped", TimeBudget.KEY, "the budget of time is spent")
        self.folder.write_json(FINISHED, ending.plain())


def verdict(claim: str, reason: str = "") -> dict[str, str]:
    return {"claim": claim, "reason": reason}


OPEN = verdict("undecided", "limit unclear")


def rounds(tmp_path, verdicts, budget=20_000, spent_at=None, until=None):
    """The rounds of a student that gets these verdicts, one a look; and the arguments of every round made."""
    folder, asked = RunFolder(tmp_path / "student"), []

    def make(further):
        asked.append(list(further))
        return FakeStage(folder, int(further[0].partition("=")[2]), spent_at)

    answers = iter(verdicts)
    first = FakeStage(folder, budget)
    return Rounds("student", until or Until(), first, make, lambda error: {"1": next(answers)}), asked


def steps(asked):
    return [int(further[0].partition("=")[2]) for further in asked]


def test_rounds_grow_and_leave_room_for_a_slow_phase():
    ends = round_ends(22_000, least=100)
    assert ends[-1] == 20_000 and len(ends) == 6
    assert all(b / a == pytest.approx(1.5, rel=1e-3) for a, b in pairwise(ends))
    assert round_ends(22_000, least=ends[3]) == ends[3:] and round_ends(1000, least=5000) == []


def test_the_first_decided_look_ends_them(tmp_path):
    made, asked = rounds(tmp_path, [OPEN, OPEN, verdict("unchanged")])
    made.run()
    assert steps(asked) == made.ends[:3] and [x.decided for x in made.looks] == [False, False, True]
    assert [x.error for x in made.looks] == [error_at_look(k) for k in (1, 2, 3)]


def test_a_spent_budget_ends_them(tmp_path):
    made, asked = rounds(tmp_path, [OPEN] * 9)
    made.run()
    assert steps(asked) == made.ends and not made.looks[-1].decided


def test_a_reduction_gets_its_slow_phase(tmp_path):
    """The last round is a tenth as long as all before, at a lower rate; whatever is seen then, nothing follows."""
    for seen in (verdict("reduced"), verdict("undecided", "closes at a lower learning rate")):
        place = tmp_path / seen["claim"]
        made, asked = rounds(place, [OPEN, verdict("undecided", LOWER_RATE), seen])
        made.run()
        slow = round(0.1 * made.ends[1])
        wanted = [f"--trainer.max_steps={made.ends[1] + slow}", f"--model.optimization.cooldown_steps={slow}"]
        assert asked[2:] == [wanted] and made.looks[-1].slow
        again, asked = rounds(place, [])
        again.run()
        assert asked == []


def test_every_nfe_must_be_decided():
    look = Look(10, 0.01, {"1": "reduced", "2": "undecided"}, {"2": "limit unclear"})
    assert not look.decided and not look.waits_for_a_lower_rate
    look = Look(10, 0.01, {"1": "unchanged", "2": "undecided"}, {"2": LOWER_RATE})
    assert not look.decided and look.waits_for_a_lower_rate
    assert Look(10, 0.01, {"1": "transient", "2": "nothing_to_transfer"}).decided
    assert not Look(10, 0.01, {"1": "transient", "2": "not_distilled"}, {"2": "variance ratio"}).decided


def test_a_stopped_study_goes_on_after_its_last_look(tmp_path):
    whole, _ = rounds(tmp_path / "whole", [OPEN, OPEN, OPEN, verdict("transient")])
    whole.run()
    first, _ = rounds(tmp_path / "parts", [OPEN, OPEN])
    with pytest.raises(StopIteration):  # it dies in its third look
        first.run()
    second, asked = rounds(tmp_path / "parts", [OPEN, verdict("transient")])
    second.run()
    assert steps(asked) == whole.ends[2:4]
    kept = [json.loads((tmp_path / name / "student/rounds.json").read_text()) for name in ("whole", "parts")]
    assert kept[0] == kept[1]


def test_time_of_all_jobs_counts(tmp_path):
    until = Until(max_time="00:00:10:00")
    made, asked = rounds(tmp_path, [OPEN] * 9, spent_at=7000, until=until)
    stage = made.run()
    assert made.looks[-1].step == 7000 and steps(asked)[-1] > 7000
    assert [type(c) for c in stage.trainer.callbacks] == [TimeBudget]
    again, asked = rounds(tmp_path, [], until=until)
    again.run()
    assert asked == []


def test_spent_time_is_kept_in_checkpoints():
    budget = TimeBudget.of("00:00:00:10", "until.max_time")
    budget.load_state_dict({"time_elapsed": {"train": 20.0, "validate": 0, "sanity_check": 0, "test": 0}})
    trainer = SimpleNamespace(global_step=7, max_steps=9, callbacks=[budget])
    ending = ending_of(trainer, 1.0)
    assert (ending.ended, ending.by) == ("stopped", "until.max_time") and ending.complete


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("soon", "student.until"),
        (3, "student.until"),
        ({"steps": 3}, "student.until"),
        ({"max_steps": 0}, "student.until.max_steps"),
    ],
)
def test_no_such_end(value, key):
    with pytest.raises(InputError) as error:
        read_until(value, "student")
    assert error.value.key == key


def test_impossible_rounds(tmp_path):
    folder = RunFolder(tmp_path)
    least = EVALUATIONS * HALF_LIVES * 10
    Rounds("student", Until(max_steps=int(least * 1.1) + 1), FakeStage(folder, 1), None, None)
    cases = [(Until(max_steps=int(least * 1.1) - 1), "max_steps"), (Until(max_time="soon"), "max_time")]
    for until, key in cases:
        with pytest.raises(InputError) as error:
            Rounds("student", until, FakeStage(folder, 9999), None, None)
        assert error.value.key == f"student.until.{key}"
    annealed, many = FakeStage(folder, 9999), FakeStage(folder, 9999)
    annealed.model.optimization = Optimization(schedule="cosine")
    many.trainer.world_size = 2
    for first in (annealed, many):
        with pytest.raises(InputError, match="until"):
            Rounds("student", Until(), first, None, None)


def test_a_study_names_its_end(tmp_path):
    trainer = {"max_steps": 500, "callbacks": [callback("cdmem.training.RunCheckpoint")]}
    config = write_study(
        tmp_path, {"samples": 16}, teacher=stage("teacher", trainer), student=stage("student", trainer)
    )
    assert read_study(["--config", config]).until == {}
    read = read_study(["--config", config, "--student.until", "decided"])
    assert read.until == {"student": Until()} and "until" not in read.stages["student"][1]
    read = read_study(["--config", config, "--student.until.max_steps", "700"])
    assert read.until == {"student": Until(max_steps=700)}
