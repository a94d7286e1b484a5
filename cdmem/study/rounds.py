"""Distil until the claim is decided: rounds of training, a look after each, until a budget is spent.

A look judges the student as the final audit does, with its share of an error of 5 % over all looks
(`cdmem.metrics.comparison.looks`). A claim of ``reduced`` needs a phase at a lower learning rate, which is then the
last round. Looks are kept in ``rounds.json``; the same command goes on after the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cdmem.audit.distillation_curve import ROUNDS
from cdmem.errors import InputError
from cdmem.metrics.comparison.looks import error_at_look
from cdmem.study.stage import Stage
from cdmem.study.until import Until
from cdmem.training.ending import TimeBudget
from cdmem.training.student import Student

GROWTH = 1.5  # a round ends at so many times the steps of the one before
LOOKS = 6  # before the budget is spent
SLOW = 0.1  # of the steps so far: length of the phase at a lower rate
EVALUATIONS, HALF_LIVES = 12, 3  # that a limit needs, and how far apart
OPEN = ("undecided", "unpaired", "not_distilled")  # more distillation may change them
LOWER_RATE = "no phase at a lower learning rate"  # what a verdict says that waits for it


def round_ends(budget: int, least: int) -> list[int]:
    """Steps at which the rounds end: growing by :data:`GROWTH`, the first with the evaluations of a first look, the
    last with room for the phase at a lower rate."""
    last = int(budget / (1 + SLOW))
    ends = [round(last / GROWTH**k) for k in range(LOOKS)]
    return sorted(end for end in ends if end >= least)


@dataclass
class Look:
    """What was seen after a round.

    Attributes:
        step: optimizer steps.
        error: share of the error that this look may spend.
        claims: NFE -> claim.
        reasons: NFE -> why it is open.
        said: one line for people.
        slow: whether it followed the phase at a lower rate, which ends the rounds.
    """

    step: int
    error: float
    claims: dict[str, str]
    reasons: dict[str, str] = field(default_factory=dict)
    said: str = ""
    slow: bool = False

    @property
    def decided(self) -> bool:
        return not any(claim in OPEN for claim in self.claims.values())

    @property
    def waits_for_a_lower_rate(self) -> bool:
        """Whether nothing else stands between the open claims and ``reduced``."""
        missing = {reason for nfe, reason in self.reasons.items() if self.claims[nfe] in OPEN}
        return missing == {LOWER_RATE}


class Rounds:
    """The rounds of one student.

    Args:
        name: of the student.
        until: when to end.
        stage: of the student, as configured.
        make: the stage again, with further arguments of ``fit``.
        judge: verdicts of the student as it stands, by NFE, at an error.
    """

    def __init__(
        self,
        name: str,
        until: Until,
        stage: Stage,
        make: Callable[[Sequence[str]], Stage],
        judge: Callable[[float], Mapping[str, Mapping[str, Any]]],
    ) -> None:
        self.name, self.until, self.make, self.judge = name, until, make, judge
        self.stage, self.folder = stage, stage.folder
        model, budget = stage.model, until.max_steps or stage.trainer.max_steps
        assert isinstance(model, Student)
        if model.optimization.schedule != "constant" or model.optimization.cooldown_steps:
            hint = "leave model.optimization.schedule and cooldown_steps out"
            raise InputError(f"{name}.until", "decided", "needs a constant rate: rounds add their own cooldown", hint)
        if stage.trainer.world_size > 1:
            problem = "looks are taken by one process"
            hint = "use trainer.devices 1, or lengthen the study by hand"
            raise InputError(f"{name}.until", "decided", problem, hint)
        half_life = max(model.averaging.half_life, 1)
        least = EVALUATIONS * HALF_LIVES * half_life
        self.ends = round_ends(budget, least)
        if not self.ends:
            need = int(least * (1 + SLOW)) + 1
            problem = f"a look needs {EVALUATIONS} evaluations, {HALF_LIVES} half-lives of {half_life} steps apart"
            raise InputError(f"{name}.until.max_steps", budget, problem, f"use {need} or more, or a shorter half-life")
        if until.max_time is not None:
            TimeBudget.of(until.max_time, f"{name}.until.max_time")
        self.looks = [Look(**look) for look in self._kept()]

    def _kept(self) -> list[dict[str, Any]]:
        return self.folder.read_json(ROUNDS)["looks"] if (self.folder / ROUNDS).is_file() else []

    def run(self) -> Stage:
        """Train and look until the claim is decided or the budget is spent; the last stage."""
        while (further := self._next()) is not None:
            self._train(further)
            self._look(slow=len(further) > 1)
        return self.stage

    def _next(self) -> list[str] | None:
        """Arguments of the next round; None if there is none."""
        last = self.looks[-1] if self.looks else None
        if last is None:
            return [f"--trainer.max_steps={self.ends[0]}"]
        ending = self.folder.ending()
        spent = ending is not None and ending.by == TimeBudget.KEY and ending.step == last.step
        if last.decided or last.slow or spent:
            return None
        if last.waits_for_a_lower_rate:
            slow = max(1, round(SLOW * last.step))
            return [f"--trainer.max_steps={last.step + slow}", f"--model.optimization.cooldown_steps={slow}"]
        end = next((end for end in self.ends if end > last.step), None)
        return None if end is None else [f"--trainer.max_steps={end}"]

    def _train(self, further: Sequence[str]) -> None:
        self.stage = self.make(further)
        if self.until.max_time is not None:
            budget = TimeBudget.of(self.until.max_time, f"{self.name}.until.max_time")
            self.stage.trainer.callbacks.append(budget)
        self.stage.execute()

    def _look(self, slow: bool) -> None:
        number = len(self.looks) + 1
        error = error_at_look(number)
        verdicts = self.judge(error)
        ending = self.folder.ending()
        look = Look(
            step=ending.step if ending else 0,
            error=error,
            claims={nfe: v["claim"] for nfe, v in verdicts.items()},
            reasons={nfe: v["reason"] for nfe, v in verdicts.items() if v["reason"]},
            slow=slow,
        )
        because = {nfe: f" ({reason})" for nfe, reason in look.reasons.items()}
        states = [f"{nfe} NFE {claim}{because.get(nfe, '')}" for nfe, claim in look.claims.items()]
        states += [missing for v in verdicts.values() if (missing := _missing(v))][:1]
        look.said = f"look {number} at step {look.step}: {'; '.join(states)}"
        print(f"      {look.said}", flush=True)
        self.looks.append(look)
        self.folder.write_json(ROUNDS, {"looks": [asdict(x) for x in self.looks]})


def _missing(verdict: Mapping[str, Any]) -> str:
    """How much distillation an open claim still needs, in words; empty where there is nothing to say."""
    missing = (verdict.get("limit") or {}).get("missing")
    if verdict["claim"] not in OPEN or missing is None:
        return ""
    return f"about {missing:,} steps more" if isinstance(missing, int) else f"steps missing: {missing}"
