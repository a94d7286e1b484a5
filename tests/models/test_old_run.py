"""A run folder of an earlier version (``fixtures/make_old_run.py`` tells how it was made) is still of use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cdmem.models.load import load_model
from support.stages import cdmem

ROOT = Path(__file__).resolve().parents[2]
OLD, CONFIGS = ROOT / "tests/fixtures/old_run", ROOT / "configs"
STAGES = ["teacher", "student", "control"]


@pytest.fixture
def old(tmp_path):
    """A copy in the working directory, under the name that its own records use."""
    return Path(shutil.copytree(OLD, tmp_path / "old_run"))


def stored_models():
    return json.loads((OLD / "audit" / "summary.json").read_text())["models"]


@pytest.mark.parametrize("name", STAGES)
def test_its_functions_are_what_they_were(name):
    """D(x; sigma) and f(x; sigma) as the earlier code computed them: weights, preconditioning and averages are read
    as they were written."""
    with np.load(OLD / "functions.npz") as arrays:
        x, sigma, expected = (torch.from_numpy(arrays[key]) for key in ("x", "sigma", name))
    with torch.no_grad():
        values = load_model(OLD / name).function()(x, sigma)
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "nfe"), [("teacher", 7), ("student", 2), ("control", 1)])
def test_it_samples(old, name, nfe, tmp_path):
    out = tmp_path / "samples.npz"
    assert cdmem("sample", "--checkpoint", old / name, "--samples", 3, "--nfe", nfe, "--out", out) == 0
    with np.load(out) as arrays:
        assert arrays["images"].shape == (3, 8, 8, 1) and arrays["images"].dtype == np.uint8
        assert arrays["images"].std() > 0


def test_it_is_audited_as_its_own_study_did(old, tmp_path):
    out = tmp_path / "audit.json"
    common = ["--samples", 16, "--nfe", 1, "--metrics", "memorization", "--quiet"]
    assert cdmem("audit", "--generator", old, "--training_set", old, *common, "--out", out) == 0
    record = json.loads(out.read_text())
    key = ("name", "role", "method", "nfe", "step", "weights", "digest", "samples")
    rows, expected = ([{k: m[k] for k in key} for m in models] for models in (record["models"], stored_models()))
    assert sorted(rows, key=str) == sorted(expected, key=str)
    before = json.loads((OLD / "training_set.json").read_text())
    assert record["training_set"]["hash"] == before["hash"] and record["training_set"]["groups"] == 16
    # The records of the evaluations along distillation are found: the verdict looks at convergence.
    assert [row["step"] for row in record["distillation"]["student"]["curve"]] == [0, 3, 6]
    student = next(m for m in record["models"] if m["name"] == "student")
    assert sum(student["paired"]["transfer"].values()) == 16 and student["verdict"]["claim"]


def test_a_student_finds_its_teacher_by_the_path_in_its_checkpoint(old, capsys):
    checkpoint = Path("old_run/student/checkpoints/last.ckpt")
    common = ["--samples", 4, "--nfe", 1, "--metrics", "memorization", "--quiet"]
    assert cdmem("audit", "--generator", checkpoint, "--training_set", old, *common) == 0
    assert "kept same" in capsys.readouterr().out


def test_it_is_exported(old, tmp_path):
    from diffusers import ConsistencyModelPipeline

    assert cdmem("export", "--checkpoint", old / "control", "--out", tmp_path / "exported") == 0
    digest = next(m["digest"] for m in stored_models() if m["name"] == "control")
    metadata = json.loads((tmp_path / "exported" / "cdmem.json").read_text())
    assert metadata["digest"] == digest and metadata["form"] == "consistency"
    assert len(metadata["audit"]) == 1  # the study's audit of these weights stands in the model card
    pipeline = ConsistencyModelPipeline.from_pretrained(tmp_path / "exported", low_cpu_mem_usage=False)
    assert pipeline.unet.config.sample_size == 8


def test_its_page_is_written_again(old):
    assert cdmem("report", old) == 0
    page = (old / "report.html").read_text()
    assert all(name in page for name in STAGES) and "f_mem" in page
    assert (old / "report" / "f_mem_student.csv").is_file()
    assert (old / "audit" / "summary.json").read_bytes() == (OLD / "audit" / "summary.json").read_bytes()


def test_its_teacher_is_distilled_by_a_new_student(old, tmp_path):
    """With the config of the debug student, whose data are those of the old run by the subset seed of its record."""
    student = ["--config", CONFIGS / "debug" / "student.yaml", "--run_dir", tmp_path / "new", "--data.subset_seed", 0]
    student += ["--wandb", "false"]
    short = ["--trainer.max_steps", 2, "--trainer.enable_progress_bar", "false"]
    assert cdmem("fit", *student, *short, "--model.teacher", old / "teacher") == 0
    assert json.loads((tmp_path / "new" / "finished.json").read_text())["step"] == 2
    checkpoint = torch.load(tmp_path / "new/checkpoints/last.ckpt", weights_only=True)["cdmem"]
    digest = next(m["digest"] for m in stored_models() if m["role"] == "teacher" and m["method"] == "heun")
    assert checkpoint["teacher_digest"] == digest
    assert cdmem("sample", "--checkpoint", tmp_path / "new", "--samples", 2, "--out", tmp_path / "new.npz") == 0


def test_resuming_it_is_refused_in_one_line(old, capsys):
    (old / "teacher" / "finished.json").unlink()
    before = {p: p.read_bytes() for p in old.rglob("*") if p.is_file()}
    args = ["--config", CONFIGS / "debug/mlp_teacher.yaml", "--run_dir", old / "teacher", "--wandb", "false"]
    assert cdmem("fit", *args, "--ckpt_path", "last") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cdmem: ")]
    assert len(lines) == 1 and "format 1" in lines[0] and "cannot be resumed" in lines[0] and "sample" in lines[0]
    assert before == {p: p.read_bytes() for p in old.rglob("*") if p.is_file() and p.name != ".lock"}
