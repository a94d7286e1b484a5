"""Onset on curves whose answer is known, and runs that stop or keep a checkpoint there."""

from __future__ import annotations

import math

import pytest
import torch

from callbacks.onset import OnsetCallback, held_out_bar, memorization_onset, plateau_start
from support import make_training_set, random_images
from support.stages import callback, fit, last_line, read, rows, stage, study

MEASURES = callback("MemorizationCallback", 24, 3, "log", threshold=1.0)
QUALITY = callback("QualityCallback", 24, 3, "log")
CHECKPOINTS = callback("cdmem.training.RunCheckpoint", every_n_steps=32, keep_all=True)


def teacher(*callbacks: dict, held_out: int = 0) -> dict:
    """One whose every sample counts as memorised: the ratio threshold is 1, and no held-out image objects."""
    return stage("teacher", {"max_steps": 64, "callbacks": list(callbacks)}, {"held_out": held_out}, sampler_points=4)


def judge(name: str, **options) -> dict:
    return callback(f"callbacks.onset.{name}", **options)


def test_memorisation_onset_is_interpolated_in_log_step():
    curve = [(10, 0.0), (100, 0.0), (1000, 0.04), (10000, 0.9)]
    assert memorization_onset(curve, 0.04) == {"step": pytest.approx(1000), "between": [1000, 10000]}
    found = memorization_onset(curve, 0.02)
    assert found["step"] == pytest.approx(100 * math.sqrt(10)) and found["between"] == [100, 1000]
    assert memorization_onset(curve, 0.95) is None and memorization_onset([], 0.0) is None
    assert memorization_onset([(7, 0.5)], 0.1) == {"step": 7.0, "between": [None, 7]}
    assert 1 <= memorization_onset([(0, 0.0), (50, 0.5)], 0.1)["step"] <= 50


def test_plateau_starts_where_later_evaluations_change_little():
    curve = [(10, 100.0), (100, 20.0), (1000, 10.5), (10000, 10.0), (100000, 12.0)]
    assert plateau_start(curve)["between"] == [100, 1000]
    assert plateau_start(curve[:3]) is None  # the newest one is the best: it may still fall
    level = 11.0
    expected = math.log(100) + (20 - level) / (20 - 10.5) * math.log(10)
    assert plateau_start(curve)["step"] == pytest.approx(math.exp(expected))
    assert plateau_start([*curve, (10**6, 5.0)]) is None  # it was no plateau
    assert plateau_start([]) is None


def test_the_bar_is_that_of_the_held_out_images():
    images = random_images(20, (1, 4, 4))
    bar = held_out_bar(make_training_set(images[:10], held_out=images[10:]), 1 / 3, "off")
    assert bar == pytest.approx(0.2775, abs=1e-3)  # Wilson, 0 of 10
    assert held_out_bar(make_training_set(images[:10]), 1 / 3, "off") == 0.0


def test_onset_is_logged_once_and_kept(tmp_path, capsys):
    """Also by a run that goes on: it remembers what it saw."""
    settings, run = teacher(MEASURES, judge("OnsetCallback"), CHECKPOINTS), tmp_path / "run"
    assert fit(tmp_path, settings) == 0
    logged, before = rows(run), read(run / "onset.json")
    assert len([r for r in logged if "onset/tau_mem" in r]) == 1
    steps = [r["step"] for r in logged if "memorization/f_mem" in r]
    assert steps == [1, 8, 64]
    assert before["tau_mem"]["between"] == [None, 1] and before["bar"] == 0
    assert capsys.readouterr().out.count("tau_mem =") == 1
    (run / "finished.json").unlink()
    (run / "checkpoints/step=00000032.ckpt").replace(run / "checkpoints/last.ckpt")
    assert fit(tmp_path, settings, "--ckpt_path", "last") == 0
    assert "onset:" not in capsys.readouterr().out
    assert read(run / "onset.json") == before
    assert [r["step"] for r in rows(run) if "memorization/f_mem" in r] == steps
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    state = next(v for k, v in saved.items() if k.startswith("OnsetCallback"))
    fresh = OnsetCallback()
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state and [step for step, _ in fresh._lower] == steps


def test_stopping_at_onset_finishes_the_run(tmp_path, capsys):
    settings = teacher(MEASURES, judge("MemorizationStopping"))
    assert fit(tmp_path, settings) == 0
    done = read(tmp_path / "run/finished.json")
    assert done["step"] == 1 and "onset at step 1" in done["why"]
    assert "training stops here" in capsys.readouterr().out
    # The same command again, as a study gives it, neither trains on nor forgets.
    assert fit(tmp_path, settings, "--ckpt_path", "last") == 0
    assert read(tmp_path / "run/finished.json") == done
    assert "stopped before, at step 1" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "kept"), [({"action": "checkpoint"}, True), ({"threshold": 0.999}, False)])
def test_training_goes_on_where_a_checkpoint_is_enough_or_there_is_no_onset(tmp_path, options, kept):
    assert fit(tmp_path, teacher(MEASURES, judge("MemorizationStopping", **options))) == 0
    done, file = read(tmp_path / "run/finished.json"), tmp_path / "run/checkpoints/onset.ckpt"
    assert done["step"] == 64 and done["ended"] == "max_steps" and file.exists() is kept
    assert not kept or torch.load(file, weights_only=True)["cdmem"]["step"] == 1


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        ([judge("OnsetCallback")], "MemorizationCallback"),
        ([MEASURES, judge("OnsetCallback"), QUALITY], "QualityCallback"),
        ([MEASURES, judge("MemorizationStopping", threshold=2.0)], "threshold"),
        ([MEASURES, judge("OnsetCallback", tolerance=0.0)], "tolerance"),
    ],
)
def test_impossible_settings_are_one_line(tmp_path, capsys, callbacks, words):
    assert fit(tmp_path, teacher(*callbacks)) == 2 and words in last_line(capsys)


def test_a_study_goes_on_after_a_stopped_stage(tmp_path, capsys):
    stages = {
        "teacher": teacher(MEASURES, judge("MemorizationStopping", threshold=0.1), held_out=16),
        "student": stage("student", {"max_steps": 4, "callbacks": [MEASURES]}, points=4),
    }
    for words in ("training stops here", "stopped before, at step 1"):
        assert study(tmp_path, {"samples": 16}, **stages) == 0 and words in capsys.readouterr().out
    assert [read(tmp_path / f"run/{name}/finished.json")["step"] for name in ("teacher", "student")] == [1, 4]
    assert (tmp_path / "run/audit/summary.json").is_file()
