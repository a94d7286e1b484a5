"""The commands as a user runs them: study, fit, resume, sample, predict, validate; callbacks from outside the tree."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cdmem.cli.main import main
from cdmem.seeds import first_sample, generator_seed
from support.stages import callback, cdmem, checkpoint, mlp, rows, same_weights, stage, write, write_study

STEPS = 8
CALLBACKS = [
    callback("MemorizationCallback", samples=24, points=3),
    callback("QualityCallback", samples=24, points=3),
    callback("SampleGridCallback", samples=4, columns=4),
    callback("cdmem.training.RunCheckpoint", every_n_steps=4, keep_all=True),
]
DATA = {"held_out": 32, "duplication": [{"fraction": 0.25, "copies": 3}]}
MODELS = {
    "teacher": {"network": mlp(dropout=0.1), "ema_half_lives": [2, 4], "sampler_points": 4},
    "student": {"points": 5, "dropout": 0.1},
}


def config(role: str, callbacks: list | None = None, **model) -> dict:
    """A stage of the study, or one a little different."""
    trainer = {"max_steps": STEPS, "log_every_n_steps": 2, "callbacks": CALLBACKS if callbacks is None else callbacks}
    return stage(role, trainer, DATA, **(MODELS[role] | model))


def run(*args: object) -> None:
    assert cdmem(*args) == 0


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished tiny study and the command that made it."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "configs").mkdir()
    stages = {role: config(role) for role in MODELS}
    file = write_study(folder / "configs", {"samples": 40, "batch_size": 16}, **stages)
    command = ["study", "--config", file, "--run_dir", str(folder / "runs/tiny"), "--seed", "3"]
    run(*command)
    return folder, command


def test_the_run_folder_is_complete(study):
    runs = study[0] / "runs/tiny"
    expected = ["config.yaml", "training_set.json", "environment.json", "audit/summary.json"]
    for role in MODELS:
        names = ["config.yaml", "training_set.json", "metrics.jsonl", "checkpoints/last.ckpt", "finished.json"]
        expected += [f"{role}/{name}" for name in names]
    for name in expected:
        assert (runs / name).is_file(), name
    assert list((runs / "teacher/panels").glob("*.png")) and list((runs / "student/evaluations").glob("*.npz"))
    record = json.loads((runs / "training_set.json").read_text())
    assert record["n"] == 8 and record["rows"] == 8 + 2 * 2


def test_summary_follows_its_schema(study):
    summary = json.loads((study[0] / "runs/tiny/audit/summary.json").read_text())
    assert summary["training_set"]["n"] == 8 and summary["training_set"]["rows"] == 12
    kinds = [(m["role"], m["method"], m["nfe"]) for m in summary["models"]]
    assert kinds == [
        ("teacher", "heun", 7),
        ("teacher", "euler", 1),
        ("teacher", "euler", 2),
        ("student", "consistency", 1),
        ("student", "consistency", 2),
        ("ceiling", "heun", 1),
        ("ceiling", "heun", 2),
    ]
    assert [m["name"] for m in summary["models"][-2:]] == ["ceiling of student"] * 2
    for m in summary["models"]:
        low, high = m["f_mem"]["ci95"]
        assert low <= m["f_mem"]["value"] <= high
        assert m["samples"] == 40 and m["seeds"] == [first_sample(3), first_sample(3) + 39] and m["weights"] == "ema_2"
        assert m["step"] == STEPS
        for value in (m["quality"]["fd_pixels"], m["quality"]["kid_pixels"], m["rmse_to_teacher"], m["same_basin"]):
            assert math.isfinite(value)
    assert summary["models"][0]["rmse_to_teacher"] == 0 and summary["models"][0]["variance_ratio"] == 1
    assert summary["control"]["heldout_f_mem"]["samples"] == 32
    assert summary["control"]["copycat"]["f_mem"]["value"] == 1
    assert set(summary["distillation"]["student"]["rmse_trend"]) == {"1", "2"}


def test_audit_numbers_are_those_of_the_stored_images(study):
    """f_mem by brute force in int64 over the images that the audit kept."""
    runs = study[0] / "runs/tiny"
    record = json.loads((runs / "training_set.json").read_text())
    from sklearn.datasets import load_digits

    pixels = np.rint(load_digits().images * 255 / 16).astype(np.int64)
    train = pixels[record["indices"]].reshape(8, -1)
    with np.load(runs / "samples/student_consistency_nfe=1.npz") as file:
        images = file["images"].astype(np.int64).reshape(40, -1)
    squared = np.sort(((images[:, None] - train[None]) ** 2).sum(2), 1)
    expected = float((9 * squared[:, 0] < squared[:, 1]).mean())
    summary = json.loads((runs / "audit/summary.json").read_text())
    assert summary["models"][3]["f_mem"]["value"] == pytest.approx(expected)


def test_metrics_are_recorded_along_training(study):
    records = rows(study[0] / "runs/tiny/student")
    measured = [r for r in records if "memorization/f_mem" in r]
    assert measured[0]["step"] == 0 and measured[-1]["step"] == STEPS
    for key in ("memorization/f_mem_nfe2", "distillation/rmse_to_teacher", "distillation/same_basin_nfe2"):
        assert all(math.isfinite(r[key]) for r in measured)
    assert any("quality/fd_pixels" in r for r in records) and any("train/loss" in r for r in records)
    assert measured[-1]["images_seen"] == STEPS * 4


def test_a_finished_study_is_not_trained_again(study, capsys):
    folder, command = study
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs/tiny").rglob("*.ckpt")}
    summary = (folder / "runs/tiny/audit/summary.json").read_bytes()
    run(*command)
    assert {p: p.stat().st_mtime_ns for p in (folder / "runs/tiny").rglob("*.ckpt")} == before
    assert (folder / "runs/tiny/audit/summary.json").read_bytes() == summary
    assert "finished before" in capsys.readouterr().out


def test_a_study_folder_of_other_settings_is_refused(study, capsys):
    assert cdmem(*study[1][:-1], "4") == 2 and "seed" in capsys.readouterr().err


@pytest.mark.parametrize("lost", [["student", "audit"], ["student/finished.json", "audit/summary.json"]])
def test_a_study_goes_on(study, tmp_path, lost):
    """With the finished teacher only, or in the middle of the student: the undisturbed student, bit for bit."""
    folder, command = study
    again = Path(shutil.copytree(folder / "runs/tiny", tmp_path / "again"))
    for name in lost:
        (shutil.rmtree if (again / name).is_dir() else os.remove)(again / name)
    if (again / "student").is_dir():
        middle = again / "student/checkpoints/step=00000004.ckpt"
        middle.replace(again / "student/checkpoints/last.ckpt")
        assert checkpoint(again / "student")["global_step"] == 4
    run(*command[:3], "--run_dir", again, "--seed", "3")
    assert same_weights(folder / "runs/tiny/student", again / "student")
    assert rows(folder / "runs/tiny/student") == rows(again / "student")


OUTSIDE = '''
from callbacks.evaluation import EvaluationCallback
from lightning.pytorch import Callback


class MeanBrightness(EvaluationCallback):
    """A user's metric: one file."""

    prefix = "brightness"

    def measure(self, evaluation):
        _, images = evaluation.samples(self.samples)
        return {"mean": float(images.mean())}


class Crash(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step == self.step:
            raise RuntimeError("power cut")
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / "my_metric.py").write_text(OUTSIDE)
    monkeypatch.delitem(sys.modules, "my_metric", raising=False)  # README's metric has the same name
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_metric"


def test_a_users_metric_is_one_file_and_two_lines_of_yaml(tmp_path, outside):
    own = config("teacher", [callback(f"{outside}.MeanBrightness", samples=8, points=2)])
    run("fit", "--config", write(tmp_path / "t.yaml", own), "--run_dir", tmp_path / "r")
    values = [r["brightness/mean"] for r in rows(tmp_path / "r") if "brightness/mean" in r]
    assert len(values) == 2 and all(-2 < v < 2 for v in values)


@pytest.mark.parametrize("role", MODELS)
def test_resume_is_bit_exact(study, tmp_path, outside, role):
    """2n steps = n steps, a crash, --ckpt_path last, n steps: weights, averages, optimizer and the metrics record."""
    crash = callback(f"{outside}.Crash", step=5)
    own = config(role, [CALLBACKS[0], crash, callback("cdmem.training.RunCheckpoint", every_n_steps=2)])
    file = write(tmp_path / "c.yaml", own)
    common = ["fit", "--config", file, "--seed", "3"]
    common += [] if role == "teacher" else ["--model.teacher", str(study[0] / "runs/tiny/teacher")]
    broken, straight = tmp_path / "r", tmp_path / "straight"
    with pytest.raises(RuntimeError, match="power cut"):
        main([*common, "--run_dir", str(broken)])
    # The crash is a setting, too: switch it off in both places, or the folder is refused as one of other settings.
    crash["init_args"]["step"] = 99
    settings = yaml.safe_load((broken / "config.yaml").read_text())
    settings["trainer"]["callbacks"][1]["init_args"]["step"] = 99
    write(broken / "config.yaml", settings)
    write(tmp_path / "c.yaml", own)
    run(*common, "--run_dir", broken, "--ckpt_path", "last")
    run(*common, "--run_dir", straight)
    assert same_weights(broken, straight) and rows(broken) == rows(straight)
    a, b = (checkpoint(folder)["optimizer_states"][0]["state"] for folder in (broken, straight))
    assert all(torch.equal(a[k]["exp_avg"], b[k]["exp_avg"]) for k in a)


def test_sample_predict_and_validate(study, tmp_path):
    folder = study[0]
    out = tmp_path / "s.npz"
    run("sample", "--checkpoint", str(folder / "runs/tiny/student"), "--samples", "5", "--nfe", "2", "--out", str(out))
    with np.load(out) as file:
        images, seeds = file["images"], file["seeds"]
    assert images.shape == (5, 8, 8, 1) and images.dtype == np.uint8 and seeds[0] == first_sample(3)
    with np.load(folder / "runs/tiny/samples/student_consistency_nfe=2.npz") as audited:
        assert np.array_equal(images, audited["images"][:5])
    assert Image.open(out.with_suffix(".png")).size[0] > 0
    teacher = ["--config", str(folder / "configs/teacher.yaml"), "--run_dir", str(folder / "runs/tiny/teacher")]

    def kept() -> dict[str, bytes]:
        parts = (p for name in ("evaluations", "panels") for p in (folder / "runs/tiny/teacher" / name).iterdir())
        return {p.name: p.read_bytes() for p in parts}

    before = kept()
    run("validate", *teacher, "--seed", "3")
    assert kept() == before, "what training wrote at its steps was overwritten"
    found = json.loads(next((folder / "runs/tiny/teacher/validate").glob("*.json")).read_text())
    assert {"validate/loss_train", "validate/loss_held_out", "memorization/f_mem"} <= set(found)
    # The checkpoint was evaluated, not a fresh network.
    last = [r for r in rows(folder / "runs/tiny/teacher") if "quality/fd_pixels" in r][-1]
    assert found["quality/fd_pixels"] == pytest.approx(last["quality/fd_pixels"], rel=1e-6)
    run("test", *teacher, "--seed", "3")
    run("predict", *teacher, "--seed", "3", "--data.predict_samples", "6")
    with np.load(folder / "runs/tiny/teacher/samples/predict.npz") as file:
        assert file["images"].shape == (6, 8, 8, 1)


def test_stage_configs_work_by_themselves_and_take_overrides(study, tmp_path):
    short = ["--trainer.max_steps", 2, "--data.n", 10, "--model.noise.p_mean", "-1.0"]
    run("fit", "--config", study[0] / "configs/teacher.yaml", *short)
    record = json.loads((tmp_path / "runs/teacher/training_set.json").read_text())
    settings = yaml.safe_load((tmp_path / "runs/teacher/config.yaml").read_text())
    assert record["n"] == 10 and settings["model"]["init_args"]["noise"]["p_mean"] == -1.0
    assert settings["data"]["subset_seed"] == generator_seed(0, "subset")
    assert settings["model"]["init_args"]["seeds"]["training"] == 0


def test_wandb_offline_never_asks_and_keeps_its_run(tmp_path, monkeypatch, study):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run("fit", "--config", study[0] / "configs/teacher.yaml", "--run_dir", tmp_path / "w", "--trainer.max_steps", "2")
    name = (tmp_path / "w/wandb_id").read_text().strip()
    assert list((tmp_path / "w/wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))


def test_class_conditional_teacher_and_student(tmp_path):
    for role, more in (("teacher", []), ("student", ["--model.teacher", tmp_path / "teacher"])):
        file = write(tmp_path / f"{role}.yaml", config(role, **({"conditional": True} if role == "teacher" else {})))
        run("fit", "--config", file, "--run_dir", tmp_path / role, *more)
    assert checkpoint(tmp_path / "student")["cdmem"]["num_classes"] == 10
    images = []
    for batch_size in (256, 3):
        torch.manual_seed(batch_size)  # labels must come from the sample seeds, not from the global stream
        out = tmp_path / f"{batch_size}.npz"
        run("sample", "--checkpoint", tmp_path / "student", "--samples", 4, "--batch_size", batch_size, "--out", out)
        with np.load(out) as arrays:
            images.append(arrays["images"].astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1


@pytest.mark.parametrize("name", ["analytic:empirical", "analytic:gaussian", "analytic:partial:0.5"])
def test_analytic_teachers_are_teachers(tmp_path, name):
    file = write(tmp_path / "c.yaml", config("student", teacher=name, network=mlp()))
    run("fit", "--config", file, "--run_dir", tmp_path / "r")
    measured = [r for r in rows(tmp_path / "r") if "distillation/rmse_to_teacher" in r]
    assert measured and all(math.isfinite(r["distillation/rmse_to_teacher"]) for r in measured)


def test_a_config_with_interpolations_trains_in_the_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGES", "10")
    own = config("teacher", [])
    own["data"]["n"] = "${oc.decode:${oc.env:IMAGES}}"
    own["trainer"]["max_steps"] = 2
    run("fit", "--config", write(tmp_path / "mine.yaml", own), "--wandb", "false")
    assert json.loads((tmp_path / "runs/mine/training_set.json").read_text())["n"] == 10


def test_a_resume_reads_its_checkpoint_once(study, tmp_path, monkeypatch):
    """Found, checked and handed to Lightning: one read of the file."""
    folder = Path(shutil.copytree(study[0] / "runs/tiny/teacher", tmp_path / "teacher"))
    (folder / "finished.json").unlink()
    reads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, *a, **k: reads.append(Path(str(file)).name) or load(file, *a, **k))
    run("fit", "--config", study[0] / "configs/teacher.yaml", "--run_dir", folder, "--seed", "3", "--ckpt_path", "last")
    assert reads == ["last.ckpt"] and json.loads((folder / "finished.json").read_text())["step"] == STEPS
