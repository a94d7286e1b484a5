"""Onset on curves whose answer is known, and runs that stop or keep a checkpoint there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from callbacks.onset import OnsetCallback, held_out_bar, memorization_onset, plateau_start
from cdmem.cli.main import main
from support import make_training_set, random_images
from support.settings import nested

MEASURES = [{"class_path": "callbacks.MemorizationCallback", "init_args": {"cadence": {"samples": 24, "points": 3}}}]
QUALITY = {"class_path": "callbacks.QualityCallback", "init_args": {"cadence": {"samples": 24, "points": 3}}}
CHECKPOINTS = {
    "class_path": "cdmem.training.RunCheckpoint",
    "init_args": {"every_n_steps": 32, "keep_all": True},
}


def config(*callbacks: dict, measures: list[dict] = MEASURES) -> dict:
    """A teacher whose every sample counts as memorised: the ratio threshold is 1, and no held-out image objects."""
    measures = json.loads(json.dumps(measures))
    for entry in measures:
        if "Memorization" in entry["class_path"]:
            entry["init_args"]["threshold"] = 1.0
    return {
        "threads": 1,
        "data": {"n": 8, "held_out": 0, "batch_size": 4},
        "model": {
            "class_path": "cdmem.training.DiffusionTeacher",
            "init_args": nested(
                "teacher",
                network={"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1}},
                ema_half_lives=[2],
                sampler_points=4,
            ),
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 64,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 2,
            "callbacks": [*measures, *callbacks],
        },
    }


def fit(folder: Path, settings: dict, *args: str) -> int:
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(file), "--run_dir", str(folder / "run"), *args])
    return int(stop.value.code)


def callback(name: str, **options) -> dict:
    return {"class_path": f"callbacks.onset.{name}", "init_args": options}


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
    settings = config(callback("OnsetCallback"))
    assert fit(tmp_path, settings) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len([r for r in rows if "onset/tau_mem" in r]) == 1
    steps = [r["step"] for r in rows if "memorization/f_mem" in r]
    assert len(steps) == len(set(steps))
    record = json.loads((tmp_path / "run/onset.json").read_text())
    assert record["tau_mem"]["between"] == [None, steps[0]] and record["bar"] == 0
    assert capsys.readouterr().out.count("tau_mem =") == 1


def test_a_resumed_run_remembers_what_it_saw(tmp_path, capsys):
    settings = config(callback("OnsetCallback"), CHECKPOINTS)
    assert fit(tmp_path, settings) == 0
    run = tmp_path / "run"
    before = json.loads((run / "onset.json").read_text())
    (run / "finished.json").unlink()
    (run / "checkpoints/step=00000032.ckpt").replace(run / "checkpoints/last.ckpt")
    capsys.readouterr()
    assert fit(tmp_path, settings, "--ckpt_path", "last") == 0
    assert "onset:" not in capsys.readouterr().out
    assert json.loads((run / "onset.json").read_text()) == before
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "memorization/f_mem" in r] == [1, 8, 64]
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    state = next(v for k, v in saved.items() if k.startswith("OnsetCallback"))
    fresh = OnsetCallback()
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state and [step for step, _ in fresh._lower] == [1, 8, 64]


def test_stopping_at_onset_finishes_the_run(tmp_path, capsys):
    settings = config(callback("MemorizationStopping"))
    assert fit(tmp_path, settings) == 0
    done = json.loads((tmp_path / "run/finished.json").read_text())
    assert done["step"] == 1 and "onset at step 1" in done["why"]
    assert "training stops here" in capsys.readouterr().out
    # The same command again, as a study gives it, neither trains on nor forgets.
    assert fit(tmp_path, settings, "--ckpt_path", "last") == 0
    assert json.loads((tmp_path / "run/finished.json").read_text()) == done
    assert "stopped before, at step 1" in capsys.readouterr().out


def test_a_checkpoint_is_kept_and_training_goes_on(tmp_path):
    assert fit(tmp_path, config(callback("MemorizationStopping", action="checkpoint"))) == 0
    kept = torch.load(tmp_path / "run/checkpoints/onset.ckpt", weights_only=True)
    assert kept["cdmem"]["step"] == 1
    done = json.loads((tmp_path / "run/finished.json").read_text())
    assert done["step"] == 64 and done["ended"] == "max_steps"


def test_no_onset_no_stop(tmp_path):
    settings = config(callback("MemorizationStopping", threshold=0.999))
    assert fit(tmp_path, settings) == 0
    assert json.loads((tmp_path / "run/finished.json").read_text())["step"] == 64


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (config(callback("OnsetCallback"), measures=[]), "MemorizationCallback"),
        (config(measures=[MEASURES[0], callback("OnsetCallback"), QUALITY]), "QualityCallback"),
        (config(callback("MemorizationStopping", threshold=2.0)), "threshold"),
        (config(callback("OnsetCallback", tolerance=0.0)), "tolerance"),
    ],
)
def test_impossible_settings_are_one_line(tmp_path, capsys, settings, words):
    assert fit(tmp_path, settings) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_study_goes_on_after_a_stopped_stage(tmp_path, capsys):
    teacher = config(callback("MemorizationStopping", threshold=0.1))
    student = config()
    student["model"] = {
        "class_path": "cdmem.training.Student",
        "init_args": nested("student", points=4, ema_half_lives=[2]),
    }
    student["trainer"]["max_steps"] = 4
    for name, settings in (("teacher", teacher), ("student", student)):
        settings["data"]["held_out"] = 16
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    study = {"teacher": "teacher.yaml", "students": {"student": "student.yaml"}, "audit": {"samples": 16}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study | {"run_dir": str(tmp_path / "study")}))
    for words in ("training stops here", "stopped before, at step 1"):
        with pytest.raises(SystemExit) as stop:
            main(["study", "--config", str(tmp_path / "study.yaml")])
        assert stop.value.code == 0 and words in capsys.readouterr().out
    assert json.loads((tmp_path / "study/teacher/finished.json").read_text())["step"] == 1
    assert json.loads((tmp_path / "study/student/finished.json").read_text())["step"] == 4
    assert (tmp_path / "study/audit/summary.json").is_file()
