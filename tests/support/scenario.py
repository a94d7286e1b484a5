"""A run that is disturbed at a moment of its own and started again, compared bit by bit with the undisturbed one."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import torch

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


def write_configs(folder: Path) -> None:
    """``teacher.yaml``, ``student.yaml`` and ``study.yaml``: everything that keeps a state takes part."""
    stages = {"teacher": TEACHER, "student": STUDENT}
    made = {role: stage(role, TRAINER, {"flip": True}, **settings) for role, settings in stages.items()}
    write_study(folder, {"samples": 12, "metrics": ["memorization"]}, **made)


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
