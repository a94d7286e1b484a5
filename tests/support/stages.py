"""Stages of a second: configs of tiny models, the command line, and what a run folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cdmem.cli.main import main
from support.settings import nested

OPTIMIZER = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
TRAINER = {
    "accelerator": "cpu",
    "max_steps": 6,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


def config(role: str, trainer: dict[str, Any] | None = None, **flat: Any) -> dict[str, Any]:
    """Settings of a teacher or a student of 8 digits; ``flat`` as for :func:`support.settings.nested`."""
    usual = {"ema_half_lives": [2], "optimizer": OPTIMIZER, "lr_schedule": "constant"}
    if role == "teacher":
        usual["network"] = {"class_path": "cdmem.networks.MLP", "init_args": {"width": 8, "depth": 1}}
    kind = "DiffusionTeacher" if role == "teacher" else "Student"
    return {
        "threads": 1,
        "data": {"n": 8, "held_out": 12, "batch_size": 4},
        "model": {"class_path": f"cdmem.training.{kind}", "init_args": nested(role, **usual | flat)},
        "trainer": TRAINER | (trainer or {}),
    }


def write(path: Path, content: dict[str, Any]) -> str:
    """A YAML file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return str(path)


def cdmem(*args: object) -> int:
    """The command line's exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    return int(stop.value.code or 0)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Lines of the metrics record, without their times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def checkpoint(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run folder."""
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def same_weights(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same weights, averages and moments, to the bit."""
    one, two = checkpoint(a), checkpoint(b)
    moments = [[m for s in c["optimizer_states"][0]["state"].values() for m in s.values()] for c in (one, two)]
    states = [one["state_dict"], two["state_dict"]]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(torch.as_tensor(x), torch.as_tensor(y))
        for x, y in [*((states[0][k], states[1][k]) for k in states[0]), *zip(*moments, strict=True)]
    )
