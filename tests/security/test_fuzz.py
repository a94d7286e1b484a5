"""Two thousand broken configs, subsets, overrides and files: one line and exit 2, or a valid run; nothing changes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from support.breaking import BOMB, dumped
from support.cases import DISTIL, FIT, KINDS, NEW, READERS, SAMPLE, STUDENT_STAGE, TEACHER_FILES
from support.fuzz import CALLBACKS, DATA, STUDY, TEACHER, TRAINER, Sandbox, furnish, furnish_more

CASES = 2000
FEW = {"configs": 8, "subsets": 6, "texts": 6, "overrides": 8, "files": 4, "records": 3, "media": 5, "models": 4}
FEW |= {"theories": 6}
ASIDE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """The watched folder, and the working directory below it: ``../../x`` is watched too."""
    root = tmp_path_factory.mktemp("fuzz")
    place = root / "above" / "place"
    place.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        furnish(place)
        furnish_more(place)
    return root, place


@pytest.fixture
def sandbox(furnished, monkeypatch):
    monkeypatch.chdir(furnished[1])
    return Sandbox(*furnished)


def throw(sandbox, kind, count):
    @settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=ASIDE,
              phases=[Phase.generate])  # fmt: skip
    @given(KINDS[kind][0]())
    def attempt(case):
        sandbox.attempt(*case)

    attempt()
    print(kind, count, sandbox.ends)
    if count > 50:  # of a handful all may end well
        # Half of what a record says is for readers and stops nothing.
        least = 0.1 if kind == "records" else 0.2
        assert sandbox.ends.get("2", 0) >= least * count, "much of what is broken must be refused"
    assert sum(sandbox.ends.values()) >= 0.9 * count


def test_the_kinds_add_up():
    assert sum(count for _, count in KINDS.values()) == CASES and FEW.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_some_broken_input(sandbox, kind):
    throw(sandbox, kind, FEW[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_broken_inputs(sandbox, kind):
    throw(sandbox, kind, KINDS[kind][1])


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c, _ in READERS], ids=" ".join)
def test_what_the_sandbox_holds_is_valid(sandbox, command):
    """Otherwise every refusal would prove nothing."""
    sandbox.attempt(command, {})
    assert "2" not in sandbox.ends, sandbox.said


def test_a_traceback_would_be_seen(sandbox, monkeypatch):
    def careless(args):
        raise ValueError("no line")

    monkeypatch.setattr("cdmem.cli.report.run_report", careless)
    with pytest.raises(ValueError, match="no line"):
        sandbox.attempt(["report", "run"], {})


def test_a_line_too_many_would_be_seen(sandbox, monkeypatch):
    def careless(args):
        print("first", file=__import__("sys").stderr)
        raise SystemExit(2)

    monkeypatch.setattr("cdmem.cli.report.run_report", careless)
    with pytest.raises(AssertionError, match="first"):
        sandbox.attempt(["report", "run"], {})


@pytest.mark.parametrize("name", ["images.npy", "../mine.txt"])
def test_a_changed_file_would_be_seen(sandbox, furnished, monkeypatch, name):
    (furnished[1] / "../mine.txt").write_text("mine")
    sandbox = Sandbox(*furnished)

    def careless(args):
        Path(name).write_bytes(b"lost")
        return 0

    monkeypatch.setattr("cdmem.cli.report.run_report", careless)
    content = Path(name).read_bytes()
    with pytest.raises(AssertionError, match="changed"):
        sandbox.attempt(["report", "run"], {})
    Path(name).write_bytes(content)
    (furnished[1] / "../mine.txt").unlink()


def test_a_file_left_after_a_refusal_would_be_seen(sandbox, monkeypatch):
    from cdmem.errors import InputError

    def careless(args):
        Path("left").write_bytes(b"half")
        raise InputError("runs", "run", "is bad", "give another")

    monkeypatch.setattr("cdmem.cli.report.run_report", careless)
    with pytest.raises(AssertionError, match="left"):
        sandbox.attempt(["report", "run"], {})
    assert not Path("left").exists()


# ---- what was found and mended ------------------------------------------------------------------------------------


def with_data(**changes):
    return FIT, {"teacher.yaml": dumped({**TEACHER, "data": {**DATA, **changes}})}


def with_callback(held_out=12, **settings):
    callbacks = [{"class_path": name, "init_args": args} for name, args in settings.items()]
    data, trainer = {**DATA, "held_out": held_out}, {**TRAINER, "callbacks": callbacks}
    return FIT, {"teacher.yaml": dumped({**TEACHER, "data": data, "trainer": trainer})}


CADENCE = "MemorizationCallback.cadence"


def with_memorization(**changes):
    cadence = {**CALLBACKS[0]["init_args"]["cadence"], **changes}
    return with_callback(MemorizationCallback={"cadence": cadence})


def with_students(students):
    return STUDY_RUN, {"study.yaml": dumped({**STUDY, "students": students})}


def resumed(**changes):
    """A checkpoint whose record lacks, or has, something; None drops a key."""
    state = torch.load(TEACHER_FILES[0], weights_only=True)
    for part in (state, state["cdmem"]):
        for key, value in changes.items():
            if key in part:
                part.pop(key) if value is None else part.update({key: value})
    out = io.BytesIO()
    torch.save(state, out)
    return [*FIT, "--ckpt_path", TEACHER_FILES[0]], {TEACHER_FILES[0]: out.getvalue()}


def validated(**changes):
    args, files = resumed(**changes)
    return ["validate", *args[1:]], files


def without_training_set():
    summary = json.loads(Path("run/audit/summary.json").read_text())
    return json.dumps({k: v for k, v in summary.items() if k != "training_set"}).encode()


LONG = "a" * 300
GO_ON = ["fit", "--config", "run/teacher/config.yaml"]
STUDY_AGAIN = ["study", "--config", "study.yaml", "--run_dir", "run"]
STUDY_RUN = ["study", "--config", "study.yaml", *NEW]
FOUND = {
    "plan of a section that is a list": (
        lambda: (["plan", "--config", "student.yaml"], {"student.yaml": dumped({**STUDENT_STAGE, "trainer": ["x"]})}),
        "trainer",
    ),
    "empty key of a study": (lambda: (STUDY_RUN, {"study.yaml": dumped({**STUDY, "": 1})}), "''"),
    "student without a name": (lambda: with_students({"": {"config": "student.yaml"}}), "students"),
    "student outside the run": (lambda: with_students({"../../x": "student.yaml"}), "students"),
    "second teacher": (lambda: with_students({"teacher": "student.yaml"}), "students"),
    "onset of nothing": (lambda: with_callback(OnsetCallback={}), "trainer.callbacks"),
    "gap to no images": (lambda: with_callback(0, WhiteboxCallback={}), "data.held_out"),
    "quality against no images": (lambda: with_callback(0, QualityCallback={}), "data.held_out"),
    "long name of a checkpoint": (lambda: ([*SAMPLE, LONG], {}), "checkpoint"),
    "long name of samples": (lambda: (["sample", "--checkpoint", "run/student", "--out", f"{LONG}.npz"], {}), "out"),
    "long name of a run": (lambda: (["report", LONG], {}), "runs"),
    "long name of a teacher": (lambda: ([*DISTIL, "--model.teacher", LONG], {}), "model.teacher"),
    "long name of data": (lambda: ([*FIT, "--data.source=array", f"--data.path={LONG}.npz"], {}), "data.path"),
    "long name of a run folder": (lambda: ([*FIT[:-1], LONG], {}), "run_dir"),
    "run folder below a file": (lambda: ([*FIT[:-1], "teacher.yaml/run"], {}), "run_dir"),
    "page below a file": (lambda: (["report", "run", "run", "--out", "teacher.yaml/x.html"], {}), "out"),
    "batch that draws for hours": (lambda: with_data(batch_size=2**32), "data.batch_size"),
    "samples that fill the memory": (lambda: (["predict", *with_data(predict_samples=10**12)[0][1:], "--ckpt_path",
        TEACHER_FILES[0]], with_data(predict_samples=10**12)[1]), "data.predict_samples"),
    "number beyond 64 bits": (lambda: ([*FIT, f"--trainer.max_epochs={10**400}"], {}), "trainer.max_epochs"),
    "more evaluations than steps ever": (lambda: with_memorization(points=10**11), f"{CADENCE}.points"),
    "no samples at once": (lambda: with_memorization(batch_size=0), f"{CADENCE}.batch_size"),
    "one sample in test": (lambda: with_memorization(test_samples=1), f"{CADENCE}.test_samples"),
    "held-out images beyond an index": (lambda: with_data(held_out=2**63 - 1), "data.n"),
    "negative threads": (lambda: ([*FIT, "--threads=-1"], {}), "threads"),
    "too many threads": (lambda: ([*FIT, f"--threads={10**9}"], {}), "threads"),
    "checkpoint without a role": (lambda: resumed(role=None), "ckpt_path"),
    "checkpoint with a step that is text": (lambda: resumed(global_step="x"), "ckpt_path"),
    "checkpoint without the loop of validate": (lambda: validated(loops={"fit_loop": {}}), "ckpt_path"),
    "finished at no step": (lambda: (GO_ON, {"run/teacher/finished.json": b'{"seconds": 1}'}), "run_dir"),
    "audit of nothing": (lambda: (STUDY_AGAIN, {"run/audit/summary.json": b'{"models": []}'}), "run_dir"),
    "settings that grow": (lambda: (["theory", "edge", "--out", "out", "--config", "edge.yaml"],
        {"edge.yaml": BOMB.encode()}), "config"),
    "laboratory without a size": (lambda: (["theory", "edge", "--out", "out", "--config", "edge.yaml"],
        {"edge.yaml": b"k: null"}), "k"),
    "checkpoint of no version": (lambda: resumed(**{"pytorch-lightning_version": torch.zeros(2)}), "ckpt_path"),
    "teacher of no solver": (lambda: (DISTIL, resumed(sampler={"solver": "cuda", "points": 3})[1]), "model.teacher"),
    "comparison with an audit of nothing": (lambda: (["report", "run", "run", "--out", "out.html"],
        {"run/audit/summary.json": without_training_set()}), "run"),
    "checkpoint of no training set": (lambda: resumed(training_set=None), "ckpt_path"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(sandbox, name):
    """Each of these once ended in a traceback, went on for hours, or named no key."""
    make, key = FOUND[name]
    sandbox.attempt(*make())
    assert sandbox.ends == {"2": 1} and sandbox.said.startswith(f"cdmem: error: {key}="), sandbox.said
