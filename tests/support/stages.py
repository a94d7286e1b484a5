"""Stages that train in a second: their configs, the command line in process, and what a run folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cdmem.cli.main import main
from support.settings import nested

CLASSES = {"teacher": "cdmem.training.DiffusionTeacher", "student": "cdmem.training.Student"}
DATA = {"n": 8, "held_out": 16, "batch_size": 4}
TRAINER = {
    "accelerator": "cpu",
    "max_steps": 6,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


def mlp(**options: Any) -> dict[str, Any]:
    return {"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1} | options}


def callback(
    name: str, samples: int | None = None, points: int = 1, spacing: str = "linear", **options: Any
) -> dict[str, Any]:
    """An entry of ``trainer.callbacks``, with a cadence if samples are given."""
    cadence = {} if samples is None else {"cadence": {"samples": samples, "points": points, "spacing": spacing}}
    return {"class_path": name if "." in name else f"callbacks.{name}", "init_args": options | cadence}


def stage(
    role: str, trainer: dict[str, Any] | None = None, data: dict[str, Any] | None = None, /, **model: Any
) -> dict[str, Any]:
    """The config of a teacher (an MLP on eight digits) or a student; ``model`` goes to :func:`nested`."""
    usual = {"ema_half_lives": [2]} | ({"network": mlp()} if role == "teacher" else {})
    return {
        "threads": 1,
        "data": DATA | (data or {}),
        "model": {"class_path": CLASSES[role], "init_args": nested(role, **(usual | model))},
        "trainer": TRAINER | (trainer or {}),
    }


def write(path: Path, content: dict[str, Any]) -> str:
    """A YAML file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return str(path)


def write_study(folder: Path, audit: dict[str, Any], **stages: dict[str, Any]) -> str:
    """study.yaml and the config of every stage, the teacher first; the path of the former."""
    files = {name: f"{name}.yaml" for name in stages}
    study = {"teacher": files.pop("teacher"), "students": files, "audit": audit}
    for name, content in {**stages, "study": study}.items():
        write(folder / f"{name}.yaml", content)
    return str(folder / "study.yaml")


def cdmem(*args: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    return int(stop.value.code or 0)


def fit(folder: Path, content: dict[str, Any], *args: object, run: str = "run") -> int:
    """Train a config in ``folder / run``."""
    return cdmem("fit", "--config", write(folder / "stage.yaml", content), "--run_dir", folder / run, *args)


def study(folder: Path, audit: dict[str, Any], *args: object, **stages: dict[str, Any]) -> int:
    """Train and audit in ``folder / "run"``."""
    return cdmem("study", "--config", write_study(folder, audit, **stages), "--run_dir", folder / "run", *args)


def last_line(capsys: pytest.CaptureFixture) -> str:
    """What was said last on stderr."""
    return capsys.readouterr().err.strip().splitlines()[-1]


def read(file: Path) -> Any:
    return json.loads(file.read_text())


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
