"""Bad input: one line naming key, value and mend, exit code 2, before any training, nothing overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cdmem.cli.main import main
from support.settings import nested

STAGE = {
    "threads": 1,
    "wandb": False,
    "data": {"source": "digits", "n": 8, "held_out": 16, "batch_size": 4},
    "model": {
        "class_path": "cdmem.training.DiffusionTeacher",
        "init_args": nested(
            "teacher",
            **{
                "network": {"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1}},
                "ema_half_lives": [2],
            },
        ),
    },
    "trainer": {"accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False, "enable_model_summary": False},
}
STUDENT_MODEL = {
    "class_path": "cdmem.training.Student",
    "init_args": nested("student", **{"teacher": "missing.ckpt", "ema_half_lives": [2]}),
}


def write(path: Path, config: dict) -> str:
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.fixture
def stage(tmp_path):
    return write(tmp_path / "teacher.yaml", STAGE)


@pytest.fixture
def student(tmp_path):
    return write(tmp_path / "student.yaml", STAGE | {"model": STUDENT_MODEL})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    config = write(folder / "teacher.yaml", STAGE)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", config, "--run_dir", str(folder / "run")])
    assert stop.value.code == 0
    return folder / "run"


def refused(capsys, args: list[str], *words: str) -> str:
    """Run, expect exit 2 and one line on stderr with all the words; return the line."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.strip().splitlines() if line]
    assert stop.value.code == 2, captured.err
    assert len(lines) == 1, captured.err
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


OVERRIDES = [
    (["--data.n", "5000"], ["data.n", "5000"]),
    (["--data.n", "1790"], ["data.n", "1790"]),
    (["--data.n", "1"], ["data.n"]),
    (["--data.nn", "5"], ["data.nn"]),
    (["--data.source", "mnist"], ["data.source", "mnist", "digits"]),
    (["--data.source", "cifar10", "--data.path", "nowhere"], ["data.path", "nowhere"]),
    (["--data.source", "celeba", "--data.path", "nowhere", "--data.resolution", "8"], ["data.path", "nowhere"]),
    (["--data.source", "folder", "--data.path", "nowhere"], ["data.path", "nowhere"]),
    (["--data.batch_size", "0"], ["data.batch_size"]),
    (["--data.classes", "[77]"], ["data.classes", "77"]),
    (["--model.network.widht", "5"], ["widht"]),
    (["--model.network.width", "15"], ["model.network.width", "15"]),
    (["--model.averaging.half_lives", "[]"], ["model.averaging.half_lives"]),
    (["--model.averaging.weights", "ema_7"], ["model.weights", "ema_7", "ema_2"]),
    (["--model.sampling.points", "1"], ["model.sampling.points"]),
    (["--trainer.max_steps", "-1"], ["trainer.max_steps"]),
    (["--trainer.max_steps", "many"], ["trainer.max_steps"]),
    (["--trainer.precision", "16-true"], ["trainer.precision", "bf16-mixed"]),
    (["--nonsense", "3"], ["nonsense"]),
    (["--ckpt_path", "none.ckpt"], ["ckpt_path", "none.ckpt"]),
]


@pytest.mark.parametrize(("override", "words"), OVERRIDES, ids=[" ".join(o) for o, _ in OVERRIDES])
def test_wrong_settings_are_refused_before_anything_is_written(capsys, tmp_path, stage, override, words):
    refused(capsys, ["fit", "--config", stage, *override], *words)
    assert not (tmp_path / "runs").exists()


def test_side_that_the_network_cannot_halve(capsys, tmp_path):
    unet = {"class_path": "cdmem.networks.UNet", "init_args": {"channels": [8, 8, 8], "layers": 1}}
    config = json.loads(json.dumps(STAGE))
    config["model"]["init_args"]["network"] = unet
    config["data"]["resolution"] = 6
    refused(capsys, ["fit", "--config", write(tmp_path / "c.yaml", config)], "data.resolution", "divisible by 4")


def test_held_out_file_that_overlaps(capsys, tmp_path, stage):
    from sklearn.datasets import load_digits

    pixels = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    np.savez(tmp_path / "h.npz", images=pixels)
    args = ["--data.held_out", "0", "--data.held_out_path", str(tmp_path / "h.npz")]
    refused(capsys, ["fit", "--config", stage, *args], "data.held_out_path")


def test_no_such_config_or_command(capsys):
    refused(capsys, ["fit", "--config", "no.yaml"], "no.yaml")
    refused(capsys, ["study", "--config", "no.yaml"], "no.yaml")
    refused(capsys, ["train"], "train", "--help")


def test_student_needs_a_fitting_teacher(capsys, tmp_path, student, trained):
    refused(capsys, ["fit", "--config", student], "model.teacher", "missing.ckpt")
    refused(capsys, ["fit", "--config", student, "--model.teacher", str(trained), "--data.n", "9"], "model.teacher")
    refused(
        capsys,
        ["fit", "--config", student, "--model.teacher", str(trained), "--data.resolution", "12"],
        "model.teacher",
        "shape",
    )
    assert not (tmp_path / "runs").exists()


def test_corrupt_or_foreign_checkpoints(capsys, tmp_path, student, trained):
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes((trained / "checkpoints/last.ckpt").read_bytes()[:1000])
    refused(capsys, ["fit", "--config", student, "--model.teacher", str(torn)], "model.teacher", "torn.ckpt")
    other = tmp_path / "other.ckpt"
    torch.save({"weights": torch.zeros(2)}, other)
    refused(capsys, ["fit", "--config", student, "--model.teacher", str(other)], "model.teacher", "cdmem")
    refused(capsys, ["sample", "--checkpoint", str(torn)], "checkpoint", "torn.ckpt")


def test_a_trained_folder_is_never_overwritten(capsys, stage, trained):
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", stage, "--run_dir", str(trained)])
    assert stop.value.code == 0 and "finished before, at step" in capsys.readouterr().out
    refused(
        capsys,
        ["fit", "--config", stage, "--run_dir", str(trained), "--ckpt_path", "last", "--model.noise.p_mean", "-1"],
        "model.init_args.noise.p_mean",
        "--run_dir",
    )
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


def test_a_teacher_is_not_a_students_resume_point(capsys, student, trained):
    refused(
        capsys,
        [
            "fit",
            "--config",
            student,
            "--model.teacher",
            str(trained),
            "--ckpt_path",
            str(trained / "checkpoints/last.ckpt"),
        ],
        "ckpt_path",
        "--model.teacher",
    )


def test_a_student_is_not_resumed_with_another_teacher(capsys, tmp_path, stage, student, trained):
    common = ["--run_dir", str(tmp_path / "s")]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", student, "--model.teacher", str(trained), *common])
    assert stop.value.code == 0
    with pytest.raises(SystemExit):
        main(["fit", "--config", stage, "--run_dir", str(tmp_path / "t"), "--model.seeds.training", "5"])
    capsys.readouterr()
    args = ["fit", "--config", student, "--model.teacher", str(tmp_path / "t"), *common, "--ckpt_path", "last"]
    refused(capsys, args, "model.teacher", "distilled")


def test_sample_never_overwrites(capsys, tmp_path, trained):
    (tmp_path / "s.npz").write_text("mine")
    refused(capsys, ["sample", "--checkpoint", str(trained), "--out", str(tmp_path / "s.npz")], "out", "exists")
    assert (tmp_path / "s.npz").read_text() == "mine"
    refused(capsys, ["sample", "--checkpoint", str(trained), "--nfe", "4", "--out", "x.npz"], "nfe")
    refused(capsys, ["sample"], "checkpoint")


STUDY = [
    ({"teecher": "x.yaml"}, ["teecher", "teacher"]),
    ({"audit": {"sampels": 3}}, ["audit.sampels", "audit.samples"]),
    ({"audit": {"samples": 1}}, ["audit.samples"]),
    ({"teacher": "absent.yaml"}, ["teacher", "absent.yaml"]),
    ({"students": {}}, ["students"]),
    ({"seed": "one"}, ["seed"]),
]


@pytest.mark.parametrize(("change", "words"), STUDY, ids=[next(iter(c)) + str(k) for k, (c, _) in enumerate(STUDY)])
def test_wrong_studies_are_refused(capsys, tmp_path, stage, student, change, words):
    study = {"teacher": "teacher.yaml", "students": {"student": "student.yaml"}, "audit": {"samples": 8}}
    refused(capsys, ["study", "--config", write(tmp_path / "study.yaml", study | change)], *words)
    assert not (tmp_path / "runs").exists()


def test_a_student_stage_mistake_is_found_before_the_teacher_trains(capsys, tmp_path, stage, student):
    study = write(tmp_path / "study.yaml", {"teacher": "teacher.yaml", "students": {"student": "student.yaml"}})
    refused(capsys, ["study", "--config", study, "--student.model.method.mu", "2"], "model.method.mu")
    refused(capsys, ["study", "--config", study, "--student.data.n", "9"], "student.data")
    assert not (tmp_path / "runs").exists()
