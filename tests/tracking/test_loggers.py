"""Loggers of the user's own stand beside ours, and write into the run folder unless they are told otherwise."""

from __future__ import annotations

import csv

import pytest

from support.stages import cdmem, rows, stage, write

TENSORBOARD = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger"}


@pytest.mark.parametrize("logger", [False, True, "CSVLogger", ["CSVLogger", TENSORBOARD]])
def test_the_record_is_always_written(logger, tmp_path):
    file = write(tmp_path / "t.yaml", stage("teacher", {"logger": logger}))
    assert cdmem("fit", "--config", file, "--run_dir", tmp_path / "r") == 0
    losses = [r["train/loss"] for r in rows(tmp_path / "r") if "train/loss" in r]
    assert len(losses) == 6
    if isinstance(logger, bool):
        return
    with (tmp_path / "r/lightning_logs/version_0/metrics.csv").open() as table:
        theirs = [float(row["train/loss"]) for row in csv.DictReader(table) if row.get("train/loss")]
    assert theirs == pytest.approx(losses)


def test_tensorboard_for_real(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    file = write(tmp_path / "t.yaml", stage("teacher", {"logger": TENSORBOARD}))
    assert cdmem("fit", "--config", file, "--run_dir", tmp_path / "r") == 0
    events = accumulator.EventAccumulator(str(tmp_path / "r/lightning_logs/version_0"))
    events.Reload()
    theirs = {event.step: event.value for event in events.Scalars("train/loss")}
    ours = {r["step"]: r["train/loss"] for r in rows(tmp_path / "r") if "train/loss" in r}
    assert theirs == pytest.approx(ours)
    assert "train/lr" in events.Tags()["scalars"]


def test_a_folder_of_its_own_is_kept(tmp_path):
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "elsewhere")}}
    file = write(tmp_path / "t.yaml", stage("teacher", {"logger": logger}))
    assert cdmem("fit", "--config", file, "--run_dir", tmp_path / "r") == 0
    assert list((tmp_path / "elsewhere").rglob("metrics.csv")) and not list((tmp_path / "r").rglob("metrics.csv"))
