"""Two gloo processes sharing the global batch do what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {
    "threads": 1,
    "wandb": False,
    "data": {"n": 8, "held_out": 16, "batch_size": 4},
    "model": {
        "class_path": "cdmem.training.teacher.DiffusionTeacher",
        "init_args": {
            # An SGD step is linear in the gradient, so that the difference is float32 rounding only.
            "network": {"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1}},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
            "ema_half_lives": [2],
            "sampler_points": 4,
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 6,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {"class_path": "callbacks.memorization.MemorizationCallback", "init_args": {"samples": 25, "points": 2}},
            {"class_path": "callbacks.quality.QualityCallback", "init_args": {"samples": 25, "points": 2}},
        ],
    },
}


def fit(folder: Path, *extra: str) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Train in a process of its own (which starts the others); weights and evaluation rows."""
    config = folder.parent / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "-m", "cdmem", "fit", "--config", str(config), "--run_dir", str(folder), *extra]
    env = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    log = folder.parent / f"{folder.name}.log"
    with log.open("w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, timeout=150, env=env)
    assert done.returncode == 0, log.read_text()
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return state, [row for row in map(json.loads, lines) if "train/loss" not in row]


def test_two_processes_equal_one(tmp_path):
    one, one_rows = fit(tmp_path / "one")
    two, two_rows = fit(tmp_path / "two", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-6), name
    assert len(one_rows) == len(two_rows) == 4
    for a, b in zip(one_rows, two_rows):
        for key in set(a) - {"time"}:
            assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-6), key
    # 25 samples on 2 ranks: every seed once.
    assert sum(1 for _ in (tmp_path / "two/evaluations").glob("*.npz")) == 2


def test_a_study_on_two_processes_ends_with_one_audit(tmp_path):
    """Both stages train on two processes; one of them audits, and nobody waits for ever."""
    student = CONFIG | {
        "model": {
            "class_path": "cdmem.training.student.ConsistencyStudent",
            "init_args": {"points": 4, "ema_half_lives": [2]},
        }
    }
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(student))
    study = {"teacher": "teacher.yaml", "students": {"student": "student.yaml"}, "audit": {"samples": 10}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "cdmem", "study", "--config", str(tmp_path / "study.yaml")]
    for stage in ("teacher", "student"):
        command += [f"--{stage}.trainer.devices", "2", f"--{stage}.trainer.strategy", "ddp"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    with (tmp_path / "log").open("w") as stream:
        done = subprocess.run(
            [*command, "--run_dir", str(tmp_path / "run")],
            stdout=stream,
            stderr=subprocess.STDOUT,
            timeout=200,
            env=env,
        )
    assert done.returncode == 0, (tmp_path / "log").read_text()
    summary = json.loads((tmp_path / "run/audit/summary.json").read_text())
    assert [m["samples"] for m in summary["models"]] == [10] * 5
