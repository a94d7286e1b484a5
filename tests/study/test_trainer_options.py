"""Every argument of Lightning's Trainer does what it says, or is refused before training."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from cdmem.study.trainer_options import HARMLESS, HONOURED, REFUSED
from support.stages import TRAINER, cdmem, rows, same_weights, stage, write

ARGUMENTS = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
TESTS = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "accumulate_grad_batches": "training/test_accumulation.py",
    "callbacks": "study/test_study.py",
    "devices": "training/test_ddp.py",
    "fast_dev_run": "security/test_wrong_configs.py",
    "gradient_clip_val": "training/test_accumulation.py",
    "logger": "tracking/test_loggers.py",
    "max_time": "study/test_endings.py",
    "min_steps": "study/test_endings.py",
    "num_nodes": "training/test_launch.py",
    "plugins": "training/test_precision.py",
    "precision": "training/test_precision.py",
    "strategy": "training/test_launch.py",
}
REFUSALS = [
    ("limit_train_batches", 2, "data.n"),
    ("limit_train_batches", 1, "data.n"),  # one batch; 1.0 is all of them
    ("limit_train_batches", 0.5, "data.n"),
    ("overfit_batches", 1, "data.n"),
    ("overfit_batches", 0.5, "data.n"),
    ("max_epochs", 3, "trainer.max_steps"),
    ("min_epochs", 2, "trainer.min_steps"),
    ("check_val_every_n_epoch", 1, "trainer.val_check_interval"),
    ("val_check_interval", 0.5, "whole number"),
    ("reload_dataloaders_every_n_epochs", 1, "never ends"),
    ("enable_checkpointing", "false", "RunCheckpoint"),
    ("default_root_dir", "elsewhere", "--run_dir"),
    ("barebones", "true", "progress"),
    ("model_registry", "mine", "export"),
    ("max_time", "soon", "00:12:00:00"),
    ("gradient_clip_val", -1, "positive"),
    ("gradient_clip_algorithm", "value", "gradient_clip_val"),
    ("min_steps", 7, "max_steps"),
]


def test_every_argument_is_in_one_class():
    classes = [HONOURED, HARMLESS, set(REFUSED)]
    assert set().union(*classes) == ARGUMENTS
    assert sum(map(len, classes)) == len(ARGUMENTS)


def test_every_honoured_argument_is_tested():
    for name, file in ELSEWHERE.items():
        assert name in (TESTS / file).read_text(), (name, file)
    source = Path(__file__).read_text()
    for name in HONOURED - ELSEWHERE.keys():
        assert f"trainer.{name}" in source or f'"{name}"' in source, name


def test_defaults_are_not_refused():
    parameters = inspect.signature(pl.Trainer.__init__).parameters
    ours = {"check_val_every_n_epoch": None}  # the command line's default, for the stream of images
    for name, (harmless, _, _) in REFUSED.items():
        default = ours.get(name, parameters[name].default)
        assert any(default == value and type(default) is type(value) for value in harmless), name


@pytest.mark.parametrize(("name", "value", "hint"), REFUSALS)
def test_what_cannot_be_done_is_refused_before_training(name, value, hint, tmp_path, capsys):
    file = write(tmp_path / "t.yaml", stage("teacher"))
    assert cdmem("fit", "--config", file, "--run_dir", tmp_path / "r", f"--trainer.{name}", value) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"cdmem: error: trainer.{name}=") and hint in said and len(said.splitlines()) == 1
    assert not (tmp_path / "r").exists()


def fit(tmp_path: Path, *args: object) -> Path:
    file = write(tmp_path / "t.yaml", stage("teacher"))
    assert cdmem("fit", "--config", file, "--run_dir", tmp_path / "r", *args) == 0
    return tmp_path / "r"


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_harmless_arguments_change_no_number(name, tmp_path):
    usual = fit(tmp_path / "a")
    other = {"num_sanity_val_steps": 2}.get(name, str(not TRAINER.get(name, True)).lower())
    changed = fit(tmp_path / "b", f"--trainer.{name}", other)
    assert same_weights(usual, changed)
    losses = [[r.get("train/loss") for r in rows(run)] for run in (usual, changed)]
    assert losses[0] == losses[1]


def test_steps_and_logging(tmp_path):
    run = fit(tmp_path, "--trainer.max_steps", 4, "--trainer.log_every_n_steps", 2)
    assert [r["step"] for r in rows(run) if "train/loss" in r] == [1, 3]
    assert json.loads((run / "finished.json").read_text())["step"] == 4
    silent = fit(tmp_path / "silent", "--trainer.log_every_n_steps", 0)
    assert not (silent / "metrics.jsonl").exists() and same_weights(silent, fit(tmp_path / "loud"))


def test_validation_while_training(tmp_path):
    """``val_check_interval`` counts steps; ``limit_val_batches`` limits the images of each validation."""
    run = fit(tmp_path / "a", "--trainer.val_check_interval", 2)
    losses = [r["validate/loss_train"] for r in rows(run) if "validate/loss_train" in r]
    assert len(losses) == 3
    file = write(tmp_path / "n.yaml", stage("teacher") | {"data": {"n": 80, "held_out": 70, "batch_size": 4}})
    for command, name in (("validate", "limit_val_batches"), ("test", "limit_test_batches")):
        values = []
        for batches in (1.0, 1):
            out = tmp_path / f"{command}{batches}"
            assert cdmem("fit", "--config", file, "--run_dir", out) == 0
            assert cdmem(command, "--config", file, "--run_dir", out, f"--trainer.{name}", batches) == 0
            values.append(json.loads((out / command / "step=00000006.json").read_text())["validate/loss_train"])
        assert values[0] != values[1]


def test_predicted_batches(tmp_path):
    run = fit(tmp_path)
    args = ["--data.predict_samples", 100, "--trainer.limit_predict_batches", 1]
    assert cdmem("predict", "--config", tmp_path / "t.yaml", "--run_dir", run, *args) == 0
    with np.load(run / "samples/predict.npz") as file:
        assert len(file["images"]) == 64


SWITCHES = {"deterministic": "true", "benchmark": "true", "detect_anomaly": "true", "sync_batchnorm": "true"}
SWITCHES |= {"profiler": "simple", "gradient_clip_algorithm": "value", "accelerator": "cpu"}


LOOKS = {
    "deterministic": lambda _: torch.are_deterministic_algorithms_enabled(),
    "benchmark": lambda _: torch.backends.cudnn.benchmark,
    "detect_anomaly": lambda _: torch.is_anomaly_enabled(),
    "sync_batchnorm": lambda trainer: trainer.strategy._layer_sync is not None,
    "profiler": lambda trainer: type(trainer.profiler).__name__ == "SimpleProfiler",
    "gradient_clip_algorithm": lambda trainer: trainer.gradient_clip_algorithm == "value",
    "accelerator": lambda trainer: type(trainer.accelerator).__name__ == "CPUAccelerator",
}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_reach_the_trainer(name, tmp_path, monkeypatch):
    seen = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append(LOOKS[name](trainer))

    monkeypatch.setattr("cdmem.study.stage.StepProgress", Look)
    more = ["--trainer.gradient_clip_val", 0.1] if name == "gradient_clip_algorithm" else []
    if name == "sync_batchnorm":
        more = ["--trainer.strategy", "ddp"]
    try:
        run = fit(tmp_path, f"--trainer.{name}", SWITCHES[name], "--trainer.enable_progress_bar", "true", *more)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
    assert seen and all(seen) and (run / "finished.json").is_file()
