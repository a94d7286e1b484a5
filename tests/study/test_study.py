"""The commands as a user runs them: study, fit, resume, sample, predict, validate; callbacks from outside the tree."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cdmem.cli.main import main
from cdmem.seeds import first_sample, generator_seed
from support.settings import nested

STEPS = 8
CALLBACKS = [
    {"class_path": "callbacks.MemorizationCallback", "init_args": {"cadence": {"samples": 24, "points": 3}}},
    {"class_path": "callbacks.QualityCallback", "init_args": {"cadence": {"samples": 24, "points": 3}}},
    {"class_path": "callbacks.SampleGridCallback", "init_args": {"columns": 4, "cadence": {"samples": 4, "points": 1}}},
    {
        "class_path": "cdmem.training.RunCheckpoint",
        "init_args": {"every_n_steps": 4, "keep_all": True},
    },
]
TRAINER = {
    "accelerator": "cpu",
    "max_steps": STEPS,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 2,
    "callbacks": CALLBACKS,
}
DATA = {"n": 8, "held_out": 32, "batch_size": 4, "duplication": [{"fraction": 0.25, "copies": 3}]}
TEACHER = {
    "threads": 1,
    "data": DATA,
    "model": {
        "class_path": "cdmem.training.DiffusionTeacher",
        "init_args": nested(
            "teacher",
            **{
                "network": {"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1, "dropout": 0.1}},
                "ema_half_lives": [2, 4],
                "sampler_points": 4,
            },
        ),
    },
    "trainer": TRAINER,
}
STUDENT = {
    "threads": 1,
    "data": DATA,
    "model": {
        "class_path": "cdmem.training.Student",
        "init_args": nested("student", **{"points": 5, "ema_half_lives": [2], "dropout": 0.1}),
    },
    "trainer": TRAINER,
}


def run(*args: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 0


def write(path: Path, config: dict) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return str(path)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished tiny study and the command that made it."""
    folder = tmp_path_factory.mktemp("study")
    write(folder / "configs/tiny/teacher.yaml", TEACHER)
    write(folder / "configs/tiny/student.yaml", STUDENT)
    config = write(
        folder / "configs/tiny.yaml",
        {
            "teacher": "tiny/teacher.yaml",
            "students": {"student": "tiny/student.yaml"},
            "audit": {"samples": 40, "batch_size": 16},
        },
    )
    command = ["study", "--config", config, "--run_dir", str(folder / "runs/tiny"), "--seed", "3"]
    run(*command)
    return folder, command


def test_the_run_folder_is_complete(study):
    runs = study[0] / "runs/tiny"
    expected = ["config.yaml", "training_set.json", "environment.json", "audit/summary.json"]
    for stage in ("teacher", "student"):
        names = ["config.yaml", "training_set.json", "metrics.jsonl", "checkpoints/last.ckpt", "finished.json"]
        expected += [f"{stage}/{name}" for name in names]
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
    ]
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
    assert set(summary["distillation"]["student"]["f_mem_trend"]) == {"1", "2"}


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
    command = study[1]
    with pytest.raises(SystemExit) as stop:
        main([*command[:-1], "4"])
    assert stop.value.code == 2 and "seed" in capsys.readouterr().err


def test_a_study_goes_on_after_a_stage_is_lost(study, tmp_path, capsys):
    """Run in a fresh folder with the finished teacher only: the student equals the undisturbed one, bit for bit."""
    import shutil

    folder, command = study
    again = tmp_path / "again"
    shutil.copytree(folder / "runs/tiny", again)
    shutil.rmtree(again / "student")
    shutil.rmtree(again / "audit")
    run(*command[:3], "--run_dir", str(again), "--seed", "3")
    a, b = state(folder / "runs/tiny/student"), state(again / "student")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_study_goes_on_in_the_middle_of_a_stage(study, tmp_path):
    import shutil

    folder, command = study
    again = tmp_path / "again"
    shutil.copytree(folder / "runs/tiny", again)
    for name in ("student/finished.json", "audit/summary.json"):
        (again / name).unlink()
    middle = again / "student/checkpoints/step=00000004.ckpt"
    assert torch.load(middle, weights_only=True)["global_step"] == 4
    middle.replace(again / "student/checkpoints/last.ckpt")
    run(*command[:3], "--run_dir", str(again), "--seed", "3")
    a, b = state(folder / "runs/tiny/student"), state(again / "student")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    strip = [
        [{k: v for k, v in r.items() if k != "time"} for r in rows(f / "student")]
        for f in (folder / "runs/tiny", again)
    ]
    assert strip[0] == strip[1]


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
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_metric"


def test_a_users_metric_is_one_file_and_two_lines_of_yaml(tmp_path, outside):
    config = json.loads(json.dumps(TEACHER))
    config["trainer"]["callbacks"].append(
        {"class_path": f"{outside}.MeanBrightness", "init_args": {"cadence": {"samples": 8, "points": 2}}}
    )
    run("fit", "--config", write(tmp_path / "t.yaml", config), "--run_dir", str(tmp_path / "r"))
    values = [r["brightness/mean"] for r in rows(tmp_path / "r") if "brightness/mean" in r]
    assert len(values) == 2 and all(-2 < v < 2 for v in values)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_resume_is_bit_exact(study, tmp_path, outside, role):
    """2n steps = n steps, a crash, --ckpt_path last, n steps: weights, averages, optimizer and the metrics record."""
    base = TEACHER if role == "teacher" else STUDENT
    config = json.loads(json.dumps(base))
    config["trainer"]["callbacks"] = [
        *CALLBACKS[:1],
        {"class_path": f"{outside}.Crash", "init_args": {"step": 5}},
        {"class_path": "cdmem.training.RunCheckpoint", "init_args": {"every_n_steps": 2}},
    ]
    extra = [] if role == "teacher" else ["--model.teacher", str(study[0] / "runs/tiny/teacher")]
    file = write(tmp_path / "c.yaml", config)
    broken = ["fit", "--config", file, "--run_dir", str(tmp_path / "r"), "--seed", "3", *extra]
    with pytest.raises(RuntimeError, match="power cut"):
        main(broken)
    # The crash is a setting, too: switch it off in both places, or the folder is refused as one of other settings.
    config["trainer"]["callbacks"][1]["init_args"]["step"] = 99
    settings = yaml.safe_load((tmp_path / "r/config.yaml").read_text())
    settings["trainer"]["callbacks"][1]["init_args"]["step"] = 99
    (tmp_path / "r/config.yaml").write_text(yaml.safe_dump(settings))
    write(tmp_path / "c.yaml", config)
    run(*broken, "--ckpt_path", "last")
    straight = tmp_path / "straight"
    run("fit", "--config", file, "--run_dir", str(straight), "--seed", "3", *extra)
    load = [torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (tmp_path / "r", straight)]
    a, b = (c["state_dict"] for c in load)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    moments = [c["optimizer_states"][0]["state"] for c in load]
    assert all(torch.equal(moments[0][k]["exp_avg"], moments[1][k]["exp_avg"]) for k in moments[0])
    kept, whole = ([{k: v for k, v in r.items() if k != "time"} for r in rows(f)] for f in (tmp_path / "r", straight))
    assert kept == whole


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
    teacher = ["--config", str(folder / "configs/tiny/teacher.yaml"), "--run_dir", str(folder / "runs/tiny/teacher")]

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
    folder = study[0]
    config = str(folder / "configs/tiny/teacher.yaml")
    run("fit", "--config", config, "--data.n", "10", "--trainer.max_steps", "2", "--model.noise.p_mean", "-1.0")
    record = json.loads((tmp_path / "runs/tiny/teacher/training_set.json").read_text())
    settings = yaml.safe_load((tmp_path / "runs/tiny/teacher/config.yaml").read_text())
    assert record["n"] == 10 and settings["model"]["init_args"]["noise"]["p_mean"] == -1.0
    assert (
        settings["data"]["subset_seed"] == generator_seed(0, "subset")
        and settings["model"]["init_args"]["seeds"]["training"] == 0
    )


def test_wandb_offline_never_asks_and_keeps_its_run(tmp_path, monkeypatch, study):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    config = str(study[0] / "configs/tiny/teacher.yaml")
    run("fit", "--config", config, "--run_dir", str(tmp_path / "w"), "--trainer.max_steps", "2")
    name = (tmp_path / "w/wandb_id").read_text().strip()
    assert list((tmp_path / "w/wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))


def test_class_conditional_teacher_and_student(tmp_path):
    teacher = json.loads(json.dumps(TEACHER))
    teacher["model"]["init_args"]["conditional"] = True
    run("fit", "--config", write(tmp_path / "t.yaml", teacher), "--run_dir", str(tmp_path / "t"))
    student = write(tmp_path / "s.yaml", STUDENT)
    run("fit", "--config", student, "--run_dir", str(tmp_path / "s"), "--model.teacher", str(tmp_path / "t"))
    about = torch.load(tmp_path / "s/checkpoints/last.ckpt", weights_only=True)["cdmem"]
    assert about["num_classes"] == 10
    out = [tmp_path / f"{name}.npz" for name in "ab"]
    run("sample", "--checkpoint", str(tmp_path / "s"), "--samples", "4", "--out", str(out[0]))
    torch.manual_seed(1)  # labels must come from the sample seeds, not from the global stream
    run("sample", "--checkpoint", str(tmp_path / "s"), "--samples", "4", "--batch_size", "3", "--out", str(out[1]))
    with np.load(out[0]) as a, np.load(out[1]) as b:
        assert np.abs(a["images"].astype(int) - b["images"].astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["analytic:empirical", "analytic:gaussian", "analytic:partial:0.5"])
def test_analytic_teachers_are_teachers(tmp_path, name):
    config = json.loads(json.dumps(STUDENT))
    config["model"]["init_args"] |= {
        "teacher": name,
        "network": {"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1}},
    }
    run("fit", "--config", write(tmp_path / "c.yaml", config), "--run_dir", str(tmp_path / "r"))
    measured = [r for r in rows(tmp_path / "r") if "distillation/rmse_to_teacher" in r]
    assert measured and all(math.isfinite(r["distillation/rmse_to_teacher"]) for r in measured)


def test_a_config_with_interpolations_trains_in_the_folder_of_its_name(tmp_path, study, monkeypatch):
    monkeypatch.setenv("IMAGES", "10")
    config = yaml.safe_load((study[0] / "configs/tiny/teacher.yaml").read_text())
    config["data"]["n"] = "${oc.decode:${oc.env:IMAGES}}"
    config["trainer"] |= {"max_steps": 2, "callbacks": None}
    run("fit", "--config", write(tmp_path / "mine.yaml", config), "--wandb", "false")
    assert json.loads((tmp_path / "runs/mine/training_set.json").read_text())["n"] == 10


def test_a_resume_reads_its_checkpoint_once(study, tmp_path, monkeypatch):
    """Found, checked and handed to Lightning: one read of the file."""
    folder = Path(shutil.copytree(study[0] / "runs/tiny/teacher", tmp_path / "teacher"))
    (folder / "finished.json").unlink()
    reads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, *a, **k: reads.append(Path(str(file)).name) or load(file, *a, **k))
    config = str(study[0] / "configs/tiny/teacher.yaml")
    run("fit", "--config", config, "--run_dir", str(folder), "--seed", "3", "--ckpt_path", "last")
    assert reads == ["last.ckpt"] and json.loads((folder / "finished.json").read_text())["step"] == STEPS
