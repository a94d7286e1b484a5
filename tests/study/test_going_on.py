"""``--run_dir`` alone goes on with the settings of the folder, once whoever gives it has said that they trust it."""

from __future__ import annotations

import shutil

import pytest
import yaml

from support.stages import cdmem, checkpoint, stage, write


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine/teacher.yaml", stage("teacher", lr_schedule="constant"))
    write(tmp_path / "mine/student.yaml", stage("student", lr_schedule="constant"))
    audit = {"samples": 8, "metrics": ["memorization"], "nfe": [1]}
    study = {"teacher": "teacher.yaml", "students": {"student": "student.yaml"}, "audit": audit, "wandb": False}
    write(tmp_path / "mine/study.yaml", study)
    return tmp_path


def asked(capsys, command):
    """The command without consent is refused with the one that works, which is run; what it prints."""
    capsys.readouterr()
    assert cdmem(*command.split()) == 2
    line = capsys.readouterr().err.strip()
    assert line.endswith(f": python -m cdmem {command} --allow_code") and "\n" not in line, line
    assert cdmem(*command.split(), "--allow_code") == 0
    return capsys.readouterr().out


def test_a_stage(place, capsys):
    fit = ["fit", "--config", "mine/teacher.yaml", "--run_dir", "run", "--wandb", "false"]
    assert cdmem(*fit, "--model.averaging.half_lives", "[3]") == 0
    shutil.rmtree(place / "mine")  # the folder is enough
    assert "finished before, at step 6" in asked(capsys, "fit --run_dir run")
    asked(capsys, "fit --run_dir run --trainer.max_steps 8")
    assert checkpoint(place / "run")["global_step"] == 8
    assert yaml.safe_load((place / "run/config.yaml").read_text())["model"]["init_args"]["averaging"]["half_lives"] == [
        3
    ]


def test_a_study(place, capsys):
    assert cdmem("study", "--config", "mine/study.yaml", "--run_dir", "deep/run", "--student.trainer.max_steps", 4) == 0
    (place / "deep/run/audit/summary.json").unlink()
    shutil.rmtree(place / "deep/run/student")
    asked(capsys, "study --run_dir deep/run")
    assert checkpoint(place / "deep/run/student")["global_step"] == 4
    assert (place / "deep/run/audit/summary.json").is_file()


def test_a_sweep(place, capsys):
    assert cdmem("study", "--config", "mine/study.yaml", "--run_dir", "grid", "--sweep", "seed=0,1") == 0
    shutil.rmtree(place / "grid/seed=1/student")
    sweep = (place / "grid/sweep.json").read_text()
    (place / "grid/sweep.json").write_text(sweep[::-1].replace("dehsinif", "gnitiaw", 1)[::-1])
    assert "1/1: seed=1" in asked(capsys, "study --run_dir grid")


@pytest.mark.parametrize("command", ["fit", "study", "validate"])
def test_a_folder_without_settings(place, capsys, command):
    assert cdmem(command, "--run_dir", "nowhere", "--allow_code") == 2
    line = capsys.readouterr().err
    assert line.startswith("cdmem: error: config=None: ") and f"python -m cdmem {command} --config FILE" in line
    assert not (place / "nowhere").exists()
