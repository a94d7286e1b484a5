"""One model in every form that people pass on: the same images, the same numbers of evaluations, the same pairs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDIMPipeline, DDIMScheduler

from cdmem.audit import auditor as audits
from cdmem.audit.auditor import sized
from cdmem.diffusion.sampling import ConsistencySampler, OdeSampler
from cdmem.metrics.whitebox.record import IMAGES, POINTS
from cdmem.models.pipelines import PipelineSampler
from support.folders import make_unet, saved
from support.stages import cdmem, fit, read, stage

UNET = {"class_path": "cdmem.networks.UNet", "init_args": {"channels": [8, 16], "layers": 1, "norm_groups": 4}}
STEPS = {"max_steps": 2}
FAST = ["--samples", 24, "--metrics", "memorization"]


def audit(*args: object) -> int:
    return cdmem("audit", *args)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Teachers by Heun and by Euler, a student, each as run and as exported folder; pipelines of others."""
    folder = tmp_path_factory.mktemp("forms")
    assert fit(folder, stage("teacher", STEPS, network=UNET, sampler_points=4), run="heun") == 0
    assert fit(folder, stage("teacher", STEPS, network=UNET, sampler_points=4, solver="euler"), run="euler") == 0
    student = stage("student", STEPS, points=5, teacher=str(folder / "heun"), mid_sigmas=[2.0, 0.5])
    assert fit(folder, student, run="run") == 0
    for run in ("heun", "euler", "run"):
        assert cdmem("export", "--checkpoint", folder / run, "--out", folder / f"{run}_out") == 0
    saved(folder / "ddim", make_unet(), DDIMScheduler(), DDIMPipeline)
    shutil.copytree(folder / "run_out", folder / "cm")
    (folder / "cm/cdmem.json").unlink()
    saved(folder / "wide", make_unet(sample_size=16), CMStochasticIterativeScheduler(), ConsistencyModelPipeline)
    # Away from its teacher, and without the path to it.
    (folder / "alone").mkdir()
    content = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    content["cdmem"]["teacher"] = "/no/such/place"
    torch.save(content, folder / "alone/last.ckpt")
    shutil.copytree(folder / "run_out", folder / "alone/out")
    return folder


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)


# ---- the same numbers of evaluations ----------------------------------------------------------------------------

CAN = {
    "heun": {3},
    "euler": {2, 3, 4},
    "run": {1, 2, 3},
    "ddim": {1, 2, 3, 4},
    "cm": {1, 2, 3, 4},  # the points of its grid
}
CAN["run_out"] = CAN["run"]


@pytest.mark.parametrize("form", CAN)
def test_sample_and_audit_take_the_same_evaluations(form, tmp_path, capsys):
    for nfe in (0, 1, 2, 3, 4):
        asked = ["--nfe", nfe]
        samples, out = tmp_path / f"{nfe}.npz", tmp_path / f"{nfe}.json"
        codes = [cdmem("sample", "--checkpoint", form, "--samples", 2, "--seed", 0, "--out", samples, *asked)]
        generator = ["--generator", form, "--training_set", "run", "--samples", 2, "--metrics", "memorization"]
        codes.append(audit(*generator, "--quiet", "--out", out, *asked))
        error = capsys.readouterr().err
        assert codes == ([0, 0] if nfe in CAN[form] else [2, 2]), (form, nfe, error)
        if codes == [2, 2]:
            assert error.count("cdmem: error: nfe=") == 2
        else:
            assert nfe in [m["nfe"] for m in read(out)["models"]]


# ---- pairs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("alone/last.ckpt", "heun_out"),
        ("alone/out", "heun_out"),
        ("alone/out", "heun/checkpoints/last.ckpt"),
        ("cm", "heun"),
        ("cm", "heun_out"),
    ],
)
def test_a_student_in_every_form_is_paired(student, teacher, tmp_path):
    out = tmp_path / "a.json"
    asked = ["--generator", student, "--teacher", teacher, "--training_set", "run", *FAST, "--nfe", 1, "--quiet"]
    assert audit(*asked, "--out", out) == 0
    record = read(out)
    found = [(m["role"], m["method"], m["nfe"]) for m in record["models"][:2]]
    assert found == [("teacher", "heun", 7), ("teacher", "euler", 1)]
    entry = record["models"][2]
    assert entry["role"] == "student" and entry["verdict"]["claim"] != "unpaired"
    assert sum(entry["paired"]["transfer"].values()) == 24 and entry["rmse_to_teacher"] > 0
    assert record["notes"], "what cannot be paired is said"


def test_the_forms_make_the_same_images_of_the_same_seeds(tmp_path):
    entries = []
    for k, student in enumerate(("run", "alone/out", "cm")):
        out = tmp_path / f"{k}.json"
        asked = ["--generator", student, "--teacher", "heun", "--training_set", "run", *FAST, "--nfe", 1, "--quiet"]
        assert audit(*asked, "--out", out) == 0
        entries.append(read(out)["models"][2])
    first, exported, foreign = entries
    for key in ("f_mem", "digest", "rmse_to_teacher", "paired"):
        assert first[key] == exported[key], key
    # The pipeline clamps its last output.
    assert first["f_mem"] == foreign["f_mem"] and first["paired"]["transfer"] == foreign["paired"]["transfer"]


def test_what_cannot_be_paired_is_said(tmp_path, capsys):
    common = ["--training_set", "run", "--samples", 24, "--quiet"]
    assert audit("--generator", "cm", *common, "--teacher", "heun", "--nfe", 1, 2) == 0
    said = capsys.readouterr().out
    assert "does not record its teacher" in said and "inside" in said and "convergence is unknown" in said
    assert audit("--generator", "alone/out", *common, *FAST[2:]) == 0
    assert "no paired comparison (give --teacher PATH)" in capsys.readouterr().out
    # A teacher of others, too: what it was trained on is not recorded either.
    assert audit("--generator", "cm", *common, *FAST[2:], "--nfe", 1, "--teacher", "ddim") == 0
    said = capsys.readouterr().out
    assert "does not record what it was trained on" in said and "kept same" in said
    refused = {"ddim": "heun", "cm": "run", "alone/out": "ddim", "run": "ddim"}
    for generator, teacher in refused.items():
        assert audit("--generator", generator, *common, "--teacher", teacher) == 2
        assert capsys.readouterr().err.startswith("cdmem: error: teacher=")


# ---- shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", ["wide", "heun", "run", "run_out", "ddim"])
def test_other_shapes_are_noticed_before_anything_is_sampled(generator, tmp_path, capsys, monkeypatch):
    side = 8 if generator == "wide" else 16
    pixels = np.random.default_rng(0).integers(0, 256, (8, side, side, 1), dtype=np.uint8)
    np.savez(tmp_path / "t.npz", images=pixels)

    def never(*_, steps=None, **__):
        assert steps == 1, "sampled"  # a pipeline is tried with one step
        return torch.zeros(1)

    for sampler in (OdeSampler, ConsistencySampler, PipelineSampler):
        monkeypatch.setattr(sampler, "__call__", never)
    monkeypatch.setattr(audits.Auditor, "__init__", never)
    assert audit("--generator", generator, "--training_set", tmp_path / "t.npz", "--samples", 4) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"cdmem: error: generator={generator}: makes images of shape") and "\n" not in error


# ---- the white-box part -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("generator", "held_out"), [("heun", False), ("run", True)])
def test_the_white_box_part_shows_how_far_it_is(generator, held_out, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "t.npz", images=pixels)
    training_set = "run" if held_out else tmp_path / "t.npz"
    asked = [
        "--generator",
        generator,
        "--training_set",
        training_set,
        "--samples",
        4,
        "--nfe",
        1 if generator == "run" else 3,
    ]
    assert audit(*asked, "--metrics", "inside") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("audit inside")]
    assert len(lines) > 3
    done, total = lines[-1].split("(")[1].split(")")[0].split("/")
    assert done == total and "100 %" in lines[-1]


def test_its_size_follows_the_samples():
    assert [sized(IMAGES, m) for m in (2, 100, 1000, 2000, 10_000)] == [16, 16, 128, 256, 256]
    assert [sized(POINTS, m) for m in (2, 1000, 2000, 10_000)] == [16, 16, 32, 32]
