"""Every stop has a state: the end of a stage is written down, and studies, pages and later commands read it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest

from cdmem.run.ending import Ending, read_ending
from support.stages import cdmem, checkpoint, rows, same_weights, stage, write, write_study

EARLY = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "train/loss", "check_on_train_epoch_end": False, "stopping_threshold": 1e9},
}


class StopAt(pl.Callback):
    """Asks to stop at a step, and says nothing."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == self.step


class RaiseAt(StopAt):
    """Ends by an error or a signal."""

    def __init__(self, step: int, how: str = "error") -> None:
        super().__init__(step)
        self.how = how

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            if self.how == "error":
                raise RuntimeError("power cut")
            signal.raise_signal(signal.SIGTERM)


def callback(kind: type, **init_args) -> dict:
    return {"class_path": f"{__name__}.{kind.__name__}", "init_args": init_args}


def clock(monkeypatch, step: int) -> None:
    """``trainer.max_time`` has passed after this many batches of a job."""
    counted = {"batches": 0}
    monkeypatch.setattr("cdmem.training.ending.TimeLimit.time_remaining", lambda *_: step - counted["batches"])

    def look(self, trainer):
        counted["batches"] += 1
        trainer.should_stop = trainer.should_stop or counted["batches"] >= step

    monkeypatch.setattr("cdmem.training.ending.TimeLimit._check_time_remaining", look)
    monkeypatch.setattr("cdmem.training.ending.TimeLimit.on_fit_start", lambda *_: counted.update(batches=0))


def ending(folder: Path) -> Ending:
    return read_ending(json.loads((folder / "finished.json").read_text()))


def study_file(tmp_path: Path, teacher: dict, student: dict | None = None) -> list[object]:
    audit = {"samples": 8, "metrics": ["memorization"]}
    file = write_study(tmp_path, audit, teacher=teacher, student=student or stage("student", points=5))
    return ["study", "--config", file, "--run_dir", tmp_path / "study"]


@pytest.mark.parametrize(
    ("callbacks", "wanted"),
    [
        ([], ("max_steps", None, "")),
        ([callback(StopAt, step=3)], ("stopped", "StopAt", "should_stop")),
        ([EARLY], ("stopped", "EarlyStopping", "Stopping threshold reached")),
        (
            [{"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": {"milliseconds": 1}}}],
            ("out_of_time", "Timer", ""),
        ),
    ],
)
def test_how_a_run_ended(callbacks, wanted, tmp_path):
    trainer = {"callbacks": callbacks, "val_check_interval": 3 if EARLY in callbacks else None}
    file = write(tmp_path / "t.yaml", stage("teacher", trainer))
    assert cdmem("fit", "--config", file, "--run_dir", tmp_path / "r") == 0
    end = ending(tmp_path / "r")
    assert (end.ended, end.by) == wanted[:2] and wanted[2] in (end.why or "")
    assert end.step == checkpoint(tmp_path / "r")["global_step"]
    assert (end.step == 6) == (wanted[0] == "max_steps")


@pytest.mark.parametrize(("how", "by"), [("error", "RuntimeError"), ("signal", "SIGTERMException")])
def test_an_interruption_is_written_down_and_forgotten(how, by, tmp_path):
    trainer = {"callbacks": [callback(RaiseAt, step=3, how=how)]}
    file = write(tmp_path / "t.yaml", stage("teacher", trainer))
    with pytest.raises((RuntimeError, SystemExit)):
        from cdmem.cli.main import main

        main(["fit", "--config", file, "--run_dir", str(tmp_path / "r")])
    end = ending(tmp_path / "r")
    assert (end.ended, end.by) == ("interrupted", by) and not end.complete
    again = write(tmp_path / "t.yaml", stage("teacher"))
    assert cdmem("fit", "--config", again, "--run_dir", tmp_path / "r") == 0
    assert ending(tmp_path / "r").ended == "max_steps"


def test_old_records_are_read():
    assert read_ending({"step": 4, "seconds": 1.5}) == Ending(4, "max_steps", None, None, 1.5)
    assert read_ending({"step": 4, "stopped": "onset"}) == Ending(4, "stopped", None, "onset")
    for wrong in ({}, {"step": "4"}, {"step": True}, {"step": 4, "ended": "x"}):
        with pytest.raises((KeyError, ValueError)):
            read_ending(wrong)


def test_the_time_limit_counts_per_job(tmp_path, monkeypatch, capsys):
    """Two jobs out of time and a third without a limit make the weights and lines of one run."""
    file = write(tmp_path / "t.yaml", stage("teacher"))
    fit = ["fit", "--config", file, "--run_dir", tmp_path / "r"]
    clock(monkeypatch, 2)
    for step in (2, 4):
        assert cdmem(*fit, "--trainer.max_time", "00:00:10:00") == 0
        assert ending(tmp_path / "r") == Ending(
            step, "out_of_time", "trainer.max_time", None, ending(tmp_path / "r").seconds
        )
        assert "the same command goes on" in capsys.readouterr().out
    assert cdmem(*fit) == 0
    assert cdmem("fit", "--config", file, "--run_dir", tmp_path / "whole") == 0
    assert same_weights(tmp_path / "r", tmp_path / "whole")
    # Lightning validates where a run is asked to stop.
    trained = [[r for r in rows(tmp_path / name) if "train/loss" in r] for name in ("r", "whole")]
    assert trained[0] == trained[1]


def test_min_steps_outlast_a_stop(tmp_path):
    file = write(tmp_path / "t.yaml", stage("teacher", {"callbacks": [callback(StopAt, step=2)], "min_steps": 4}))
    assert cdmem("fit", "--config", file, "--run_dir", tmp_path / "r") == 0
    assert ending(tmp_path / "r").step >= 4


def test_a_study_distils_what_was_stopped_on_purpose(tmp_path, capsys):
    command = study_file(tmp_path, stage("teacher", {"callbacks": [callback(StopAt, step=3)]}))
    assert cdmem(*command) == 0
    first = checkpoint(tmp_path / "study/teacher")
    assert first["global_step"] == 3
    said = capsys.readouterr().out
    assert "note: teacher stopped on purpose by StopAt at step 3" in said
    summary = json.loads((tmp_path / "study/audit/summary.json").read_text())
    assert summary["stages"]["teacher"]["ended"] == "stopped" and summary["stages"]["student"]["ended"] == "max_steps"
    assert "stopped on purpose by StopAt at step 3" in (tmp_path / "study/report.html").read_text()
    assert cdmem(*command) == 0  # the same command again changes nothing
    assert checkpoint(tmp_path / "study/teacher")["global_step"] == 3


def test_a_study_waits_for_what_ran_out_of_time(tmp_path, monkeypatch, capsys):
    command = study_file(tmp_path, stage("teacher"))
    clock(monkeypatch, 4)
    limited = [*command, "--teacher.trainer.max_time", "00:00:10:00"]
    assert cdmem(*limited) == 2
    said = capsys.readouterr().err
    assert "ran out of time" in said and "--allow_unfinished" in said and not (tmp_path / "study/student").exists()
    assert cdmem(*limited) == 0  # goes on to the end
    assert ending(tmp_path / "study/teacher").ended == "max_steps"


def test_an_unfinished_teacher_is_left_alone_once_distilled(tmp_path, monkeypatch, capsys):
    command = study_file(tmp_path, stage("teacher"))
    clock(monkeypatch, 4)
    limited = [*command, "--teacher.trainer.max_time", "00:00:10:00"]
    assert cdmem(*limited, "--allow_unfinished") == 0
    before = (tmp_path / "study/teacher/checkpoints/last.ckpt").read_bytes()
    assert "note: teacher ran out of time by trainer.max_time at step 4" in capsys.readouterr().out
    assert cdmem(*limited, "--allow_unfinished") == 0
    assert cdmem(*command) == 2  # it would train on
    said = capsys.readouterr().err
    assert "was distilled from its step 4" in said and "python -m cdmem study" in said
    assert (tmp_path / "study/teacher/checkpoints/last.ckpt").read_bytes() == before
