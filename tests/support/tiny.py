"""Stages that train in a second, as configs, and the command line in process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdmem.cli.main import main
from support.settings import nested

NETWORK = {"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1}}
DATA = {"n": 8, "held_out": 32, "batch_size": 4, "duplication": [{"fraction": 0.25, "copies": 3}]}
TRAINER = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 2}
CLASSES = {"teacher": "cdmem.training.DiffusionTeacher", "student": "cdmem.training.Student"}
MODELS = {"teacher": {"network": NETWORK, "sampler_points": 4}, "student": {"points": 5}}


def callback(class_path: str, samples: int | None = None, points: int = 2, **options: Any) -> dict:
    """An entry of trainer.callbacks; with ``samples`` it has a cadence."""
    cadence = {} if samples is None else {"cadence": {"samples": samples, "points": points}}
    return {"class_path": class_path, "init_args": cadence | options}


def stage(role: str, *callbacks: dict, steps: int = 6, data: dict | None = None, **model: Any) -> dict:
    """The config of a teacher or student; ``data`` and ``model`` are added to the tiny ones."""
    settings = nested(role, **{"ema_half_lives": [2], **MODELS[role], **model})
    return {
        "threads": 1,
        "data": DATA | (data or {}),
        "model": {"class_path": CLASSES[role], "init_args": settings},
        "trainer": TRAINER | {"max_steps": steps, "callbacks": list(callbacks)},
    }


def write(path: Path, config: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def command(*words: object) -> int:
    """The exit code of ``python -m cdmem`` with these words."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code)


def fit(folder: Path, config: dict, *words: object, run: str = "run") -> int:
    """Train a config in ``folder / run``; the exit code."""
    return command("fit", "--config", write(folder / "stage.yaml", config), "--run_dir", folder / run, *words)


def study(folder: Path, teacher: dict, student: dict, audit: dict, *words: object, run: str = "run") -> int:
    """Train and audit both in ``folder / run``; the exit code."""
    write(folder / "teacher.yaml", teacher)
    write(folder / "student.yaml", student)
    config = {"teacher": "teacher.yaml", "students": {"student": "student.yaml"}, "audit": audit}
    return command("study", "--config", write(folder / "study.yaml", config), "--run_dir", folder / run, *words)


def last_line(capsys: pytest.CaptureFixture) -> str:
    """What was said last on stderr."""
    return capsys.readouterr().err.strip().splitlines()[-1]


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read(file: Path) -> Any:
    return json.loads(file.read_text())
