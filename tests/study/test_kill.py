"""Killed at any moment and started again, a run ends with the very bits of the run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cdmem.io.atomic import owned
from support.killing import Mortals, Outcome
from support.stages import callback, mlp, stage, write_study

CALLBACKS = [
    callback("MemorizationCallback", samples=12, points=3),
    callback("QualityCallback", samples=12, points=2),
    callback("OnsetCallback"),
    callback("cdmem.training.RunCheckpoint", every_n_steps=5, keep_all=True),
]
TRAINER = {"max_steps": 14, "accumulate_grad_batches": 2, "callbacks": CALLBACKS}
TEACHER = {"network": mlp(dropout=0.2), "ema_half_lives": [2, 5], "sampler_points": 4, "warmup_steps": 3}
STUDENT = {"points": 8, "start_points": 3, "curriculum": "sqrt", "mu": "adaptive", "dropout": 0.2}
STUDENT |= {"data": "teacher_samples"}
TIMES = {"time", "seconds", "neighbor_products"}  # the last one tells which path was the faster in this process
STATE = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step")


@pytest.fixture(scope="module")
def mortals():
    with Mortals() as server:
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    stages = {"teacher": TEACHER, "student": STUDENT}
    made = {role: stage(role, TRAINER, {"flip": True}, **settings) for role, settings in stages.items()}
    write_study(folder, {"samples": 12, "metrics": ["memorization"]}, **made)
    return folder


class Scenario:
    """A command line, its undisturbed result, and its moments."""

    def __init__(self, mortals: Mortals, place: Path, name: str, *args: str) -> None:
        self.mortals, self.place, self.name, self.args = mortals, place, name, args
        whole = self.run(f"{name}_whole")
        assert whole.code == 0, whole.output
        self.moments = whole.moments
        self.expected = content(place / f"{name}_whole")

    def run(self, folder: str, at: int | None = None, how: str = "KILL") -> Outcome:
        return self.mortals.run(*self.args, "--run_dir", folder, cwd=self.place, at=at, how=how)

    def named(self, name: str) -> list[int]:
        """Numbers of the moments of a name."""
        return [k for k, moment in enumerate(self.moments) if moment == name]

    def survive(self, at: int, how: str) -> Outcome:
        """Disturb at a moment, start the same command again, and compare every bit; the first outcome."""
        shutil.rmtree(self.place / self.name, ignore_errors=True)
        first = self.run(self.name, at, how)
        where = f"{how} at moment {at}, {self.moments[at]}"
        if how == "KILL":
            assert first.code == -9, where
        again = self.run(self.name)
        assert again.code == 0, f"{where}\n{first.output}\n---\n{again.output}"
        assert content(self.place / self.name) == self.expected, where
        return first


@pytest.fixture(scope="module")
def teacher(mortals, place):
    return Scenario(mortals, place, "teacher", "fit", "--config", "teacher.yaml")


@pytest.fixture(scope="module")
def study(mortals, place):
    return Scenario(mortals, place, "study", "study", "--config", "study.yaml")


def content(folder: Path) -> dict[str, object]:
    """Everything that a finished run leaves and that does not tell the time or the place; equal to the last bit."""
    found: dict[str, object] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(file.relative_to(folder))
        if file.name in ("environment.json", "previous.ckpt", ".lock", "config.yaml") or "report" in name:
            continue
        if file.suffix == ".ckpt":
            saved = torch.load(file, weights_only=True)
            found[name] = plain([saved[k] for k in STATE])
        elif file.suffix == ".npz":
            with np.load(file) as arrays:
                found[name] = plain({k: torch.from_numpy(arrays[k]) for k in arrays.files})
        elif file.suffix == ".jsonl":
            found[name] = [plain(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.suffix == ".json":
            found[name] = plain(json.loads(file.read_text()))
        else:
            found[name] = file.read_bytes() if file.suffix == ".png" else None
    return found


def plain(value: object) -> object:
    """A nested value that ``==`` compares bit by bit, nan included; without what tells the time."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    return repr(value)


def chosen(scenario: Scenario, count: int, seed: int) -> list[int]:
    """Random moments: one from each of ``count`` equal parts of the run."""
    rng, total = random.Random(seed), len(scenario.moments)
    return [rng.randrange(k * total // count, (k + 1) * total // count) for k in range(count)]


def test_the_moments_are_those_of_a_run(teacher, study):
    """Otherwise the kills below would miss training, evaluation or writing."""
    wanted = {"training_step", "update", "run", "samples", "append, half done", "save, half done", "replace", "fsync"}
    assert wanted <= set(teacher.moments)
    assert {*wanted, "write_text, half done", "savez_compressed, half done"} <= set(study.moments)
    again = teacher.run("teacher_again")
    assert again.moments == teacher.moments


@pytest.mark.parametrize("part", range(4))
def test_a_killed_teacher(teacher, part):
    teacher.survive(chosen(teacher, 4, seed=1)[part], "KILL")


@pytest.mark.parametrize("name", ["append, half done", "save, half done", "link", "run"])
def test_killed_in_the_middle_of(teacher, name):
    """A torn line, a torn checkpoint, between the two renames, inside an evaluation; the second time it happens."""
    teacher.survive(teacher.named(name)[1], "KILL")


def test_killed_before_the_last_numbered_checkpoint(teacher):
    """Nothing is left to train then, yet the run's last file is missing."""
    teacher.survive(teacher.named("link")[-1], "KILL")


def test_a_killed_study(study):
    study.survive(next(k for k in study.named("run") if k > len(study.moments) * 0.6), "KILL")


def test_sigterm_stops_at_the_next_step_and_keeps_it(teacher):
    first = teacher.survive(teacher.named("training_step")[13], "TERM")  # accumulated by two: inside the seventh step
    assert first.code == 143
    assert "it goes on from step 7" in first.output


def test_an_exception_inside_an_evaluation(teacher):
    first = teacher.survive(teacher.named("samples")[1], "FAIL")
    assert first.code == 99 and "planted" in first.output


def test_a_torn_checkpoint_gives_way_to_the_one_before(teacher):
    """Power loss: half of the last checkpoint is there, or a byte has changed that torch.load does not miss."""
    for tear in (lambda b: b[: len(b) // 2], lambda b: b[:3000] + bytes([b[3000] ^ 1]) + b[3001:]):
        shutil.rmtree(teacher.place / teacher.name, ignore_errors=True)
        assert teacher.run(teacher.name, teacher.named("save")[-1]).code == -9
        last = teacher.place / teacher.name / "checkpoints/last.ckpt"
        last.write_bytes(tear(last.read_bytes()))
        again = teacher.run(teacher.name)
        assert again.code == 0, again.output
        assert "last.ckpt cannot be read" in again.output and "going on from previous.ckpt, step" in again.output
        (last.parent / "torn.ckpt").unlink()
        assert content(teacher.place / teacher.name) == teacher.expected


def test_two_torn_checkpoints_are_one_line_and_stay(teacher):
    shutil.rmtree(teacher.place / teacher.name, ignore_errors=True)
    assert teacher.run(teacher.name, len(teacher.moments) - 2).code == -9
    folder = teacher.place / teacher.name / "checkpoints"
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / name).write_bytes(b"PK" + bytes(500))
    again = teacher.run(teacher.name)
    assert again.code == 2 and "move the folder checkpoints away to start anew" in again.output
    assert (folder / "last.ckpt").stat().st_size == 502


def test_one_folder_has_one_writer(teacher, place):
    """A job that was requeued while the first still runs."""
    folder = place / "teacher_whole"
    with owned(folder):
        second = teacher.run("teacher_whole")
    assert second.code == 2 and f"is in use by another process (pid {os.getpid()} on" in second.output
    assert teacher.run("teacher_whole").output.strip().startswith("finished before, at step 14")


def test_a_full_disk_is_one_line_and_nothing_is_lost(teacher):
    first = teacher.survive(teacher.named("save")[2], "FULL")
    assert first.code == 1
    line = first.output.strip().splitlines()[-1]
    assert line.startswith("cdmem: error:") and "free space, then the same command goes on" in line
    assert "Traceback" not in first.output


@pytest.mark.slow
@pytest.mark.parametrize("how, count", [("KILL", 20), ("TERM", 8), ("FAIL", 8), ("FULL", 8)])
def test_a_study_at_random_moments(study, how, count):
    for at in chosen(study, count, seed=2):
        study.survive(at, how)


@pytest.mark.slow
def test_a_sweep_at_random_moments(mortals, place):
    sweep = Scenario(mortals, place, "sweep", "study", "--config", "study.yaml", "--sweep", "seed=0,1")
    for at in chosen(sweep, 5, seed=3):
        sweep.survive(at, "KILL")
