"""``audit`` as a user runs it: on a run, a checkpoint, a pipeline folder and images; the gate; bad input."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from support.stages import callback, cdmem, read, stage, study

CALLBACKS = [
    callback("MemorizationCallback", 24, 6),
    callback("cdmem.training.RunCheckpoint", every_n_steps=6),
]
DATA = {"held_out": 32, "duplication": [{"fraction": 0.25, "copies": 3}]}
STAGES = {
    "teacher": stage("teacher", {"callbacks": CALLBACKS}, DATA, sampler_points=4),
    "student": stage("student", {"callbacks": CALLBACKS}, DATA, points=5),
}


def audit(*args: object) -> int:
    return cdmem("audit", "--quiet", *args)


def refused(capsys, *args: object) -> str:
    assert audit(*args) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("cdmem: error: ") and "\n" not in error
    return error


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny study."""
    folder = tmp_path_factory.mktemp("audited")
    assert study(folder, {"samples": 24, "metrics": ["memorization"]}, "--seed", 1, **STAGES) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def t():
    return choose(load_source("digits"), SubsetSpec(n=60, seed=2, held_out=120))


@pytest.fixture(scope="module")
def files(tmp_path_factory, t):
    """T, H and two generators as files: exact copies, and held-out images."""
    folder = tmp_path_factory.mktemp("files")

    def save(name, images):
        np.savez(folder / f"{name}.npz", images=images.permute(0, 2, 3, 1).numpy())

    save("train", t.images.repeat(2, 1, 1, 1))
    save("held", t.held_out_images[:60])
    save("fresh", t.held_out_images[60:])
    save("copies", t.images[torch.arange(80) % 60])
    return folder


def test_a_run_folder_with_pairs_and_verdict(run, tmp_path, capsys):
    out = tmp_path / "out" / "audit.json"
    assert audit("--generator", run, "--training_set", run, "--samples", 24, "--nfe", 1, "--seed", 1, "--out", out) == 0
    printed = capsys.readouterr().out
    record = read(out)
    kinds = [(m["role"], m["method"], m["nfe"]) for m in record["models"]]
    others = [("student", "consistency", 1), ("ceiling", "heun", 1)]
    assert kinds == [("teacher", "heun", 7), ("teacher", "euler", 1), *others]
    student = record["models"][2]
    transfer = student["paired"]["transfer"]
    assert sum(transfer.values()) == 24 and set(transfer) == {"kept_same", "kept_other", "lost", "gained", "neither"}
    assert student["verdict"]["statement"] in printed and student["verdict"]["claim"]
    assert set(student["metrics"]) >= {"coverage", "authenticity_pixels", "likelihood_pixels", "manifold_pixels"}
    assert student["inside"] and len(student["digest"]) == 64
    # What the study measured and what the audit command measures are the same numbers.
    stored = read(run / "audit/summary.json")
    same = next(m for m in stored["models"] if m["role"] == "student" and m["nfe"] == 1)
    for key in ("f_mem", "unique", "variance_ratio", "rmse_to_teacher", "seeds", "ratio_cdf"):
        assert student[key] == same[key], key


def test_a_student_alone_finds_its_teacher_or_says_so(run, tmp_path, capsys):
    checkpoint = run / "student/checkpoints/last.ckpt"
    common = ["--training_set", run, "--samples", 8, "--nfe", 1, "--metrics", "memorization"]
    assert audit("--generator", checkpoint, *common) == 0
    assert "kept same" in capsys.readouterr().out
    # A moved study keeps its teacher beside the student; a place without a checkpoint is passed over.
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    assert audit("--generator", moved / "student", *common) == 0
    assert "kept same" in capsys.readouterr().out
    shutil.rmtree(moved / "teacher/checkpoints")
    alone = tmp_path / "alone.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["cdmem"]["teacher"] = "/no/such/place"
    torch.save(content, alone)
    assert audit("--generator", alone, *common) == 0
    printed = capsys.readouterr().out
    assert "teacher was not found" in printed and "no teacher was sampled" in printed
    assert audit("--generator", alone, *common, "--teacher", run / "teacher") == 0
    assert "kept same" in capsys.readouterr().out
    assert "is a student" in refused(capsys, "--generator", alone, *common, "--teacher", run / "student")


def test_a_study_whose_teacher_was_exchanged_is_no_pair(run, tmp_path, capsys):
    moved = tmp_path / "study"
    shutil.copytree(run, moved)
    common = ["--training_set", moved, "--samples", 8, "--metrics", "memorization"]
    out = tmp_path / "o.json"
    assert audit("--generator", moved, *common, "--nfe", 2, 1, 2, "--weights", "raw", "--out", out) == 0
    models = read(out)["models"]
    assert [m["nfe"] for m in models if m["role"] == "student"] == [1, 2]
    # The weights asked for are the student's; what was distilled is the reference, whatever is asked for.
    stored = read(run / "audit/summary.json")["models"]
    assert models[0]["digest"] == stored[0]["digest"] and models[0]["weights"] != "raw"
    assert read(out)["distillation"] == {}  # the evaluations were of other weights
    file = moved / "teacher/checkpoints/last.ckpt"
    content = torch.load(file, weights_only=True)
    for value in content["state_dict"].values():
        if value.is_floating_point():
            value.add_(0.01)
    torch.save(content, file)
    assert "another teacher" in refused(capsys, "--generator", moved, *common)
    del content["cdmem"]["network"]
    torch.save(content, file)
    assert "its record" in refused(capsys, "--generator", moved, *common)


@pytest.mark.parametrize("form", ["npz", "folder", "arr_0"])
def test_images_made_elsewhere(files, tmp_path, capsys, t, form):
    generator = files / "copies.npz"
    if form == "arr_0":
        np.savez(tmp_path / "plain.npz", np.load(generator)["images"][..., 0])
        generator = tmp_path / "plain.npz"
    elif form == "folder":
        generator = tmp_path / "pictures"
        generator.mkdir()
        for k, image in enumerate(np.load(files / "copies.npz")["images"]):
            Image.fromarray(image[..., 0]).save(generator / f"{k:04d}.png")
    out = tmp_path / "a.json"
    args = ["--generator", generator, "--training_set", files / "train.npz", "--held_out", files / "held.npz"]
    assert audit(*args, "--out", out) == 0
    record = read(out)
    (model,) = record["models"]
    assert model["f_mem"]["value"] == 1.0 and model["unique"] == 60 and model["samples"] == 80
    assert record["training_set"]["rows"] == 120 and record["training_set"]["n"] == 60
    assert model["metrics"]["authenticity_pixels"]["authenticity"] == 0.0
    assert model["metrics"]["adaptive_extraction"]["extracted"] == 1.0
    assert model["quality"]["fd_pixels_train"] < model["quality"]["fd_pixels"]
    assert record["control"]["heldout_f_mem"]["samples"] == 60 and "convergence is unknown" in " ".join(record["notes"])


def test_the_gate(files, tmp_path, capsys):
    common = ["--training_set", files / "train.npz", "--metrics", "memorization"]
    assert audit("--generator", files / "copies.npz", *common, "--fail_above", 0.5) == 1
    assert "FAILED" in capsys.readouterr().out
    # 0 of 60: the upper end is 6 %, so a gate of 1 % cannot be passed by 60 images, whatever they show.
    assert audit("--generator", files / "fresh.npz", *common, "--fail_above", 0.01) == 1
    assert audit("--generator", files / "fresh.npz", *common, "--fail_above", 0.08) == 0
    assert "passed" in capsys.readouterr().out


def test_without_held_out_images_it_says_what_is_missing(files, tmp_path, capsys):
    out = tmp_path / "a.json"
    assert audit("--generator", files / "fresh.npz", "--training_set", files / "train.npz", "--out", out) == 0
    assert "no held-out images" in capsys.readouterr().out
    record = read(out)
    assert record["control"]["heldout_f_mem"] is None
    assert "data.held_out" in record["models"][0]["metrics"]["copy_test_pixels"]["unavailable"]


def test_flip_and_near_duplicates(files, tmp_path, t):
    np.savez(tmp_path / "mirrored.npz", images=t.images.flip(-1).permute(0, 2, 3, 1).numpy())
    common = ["--generator", tmp_path / "mirrored.npz", "--training_set", files / "train.npz"]

    def found(*more):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        assert audit(*common, "--metrics", "memorization", "--out", out, *more) == 0
        return read(out)

    assert found()["models"][0]["f_mem"]["value"] < 0.1
    assert found("--flip")["models"][0]["f_mem"]["value"] == 1.0
    assert found("--near_duplicates", "0.9")["training_set"]["near_duplicates_merged"] > 0


GOOD = "--generator fresh --training_set train "
OF_A_RUN = "--generator run --training_set run "
BAD = {  # words of the command line: words of the error
    "--generator none --training_set run": "generator=",
    "--generator run --training_set none": "training_set=",
    GOOD + "--held_out none": "held_out=",
    GOOD + "--samples 1": "samples=",
    GOOD + "--samples 61": "samples=61",
    GOOD + "--nfe 1": "nfe=",
    OF_A_RUN + "--nfe 9": "nfe=",
    GOOD + "--fail_above 1.5": "fail_above=",
    GOOD + "--near_duplicates maybe": "near_duplicates=",
    GOOD + "--near_duplicates 1.5": "near_duplicates=",
    GOOD + "--metrics all": "metrics=",
    GOOD + "--features vgg": "features=",
    GOOD + "--out train": "out=",
    GOOD + "--device tpu9": "device=",
    OF_A_RUN + "--weights ema_7": "weights=",
    GOOD + "--no_such_option 1": "no_such_option=1",
    GOOD + "--sampels 9": "did you mean samples",
    GOOD + "--seed 1 stray": "arguments=stray",
    GOOD + "--seed one": "seed=one",
    "--generator wide --training_set train": "generator=",
    "--generator fresh --training_set black": "training_set",
    "--generator float --training_set train": "uint8",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_line(run, files, tmp_path, capsys, words):
    for name, images in (("wide", np.zeros((4, 8, 9, 1), np.uint8)), ("black", np.zeros((4, 8, 8, 1), np.uint8))):
        np.savez(tmp_path / f"{name}.npz", images=images)
    np.savez(tmp_path / "float.npz", images=np.zeros((4, 8, 8, 1)))
    places = {name: tmp_path / f"{name}.npz" for name in ("wide", "black", "float", "none")}
    places |= {"run": run, "fresh": files / "fresh.npz", "train": files / "train.npz"}
    assert BAD[words] in refused(capsys, *(places.get(word, word) for word in words.split()))


METRIC = '''
from cdmem.metrics import SampleMetric


class Brightness(SampleMetric):
    """A user's metric: one file, outside the tree."""

    def columns(self, images):
        return {"mean": images.double().mean(dim=(1, 2, 3))}

    def evaluate(self, rows):
        return {"mean": rows["mean"].mean()}


class Choosy(Brightness):
    def __init__(self, level):
        super().__init__()
'''


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text(METRIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_module", None)


def test_a_users_metric_is_named_on_the_command_line(my_module, files, tmp_path, capsys):
    good = ["--generator", files / "fresh.npz", "--training_set", files / "train.npz"]
    out = tmp_path / "a.json"
    assert audit(*good, "--metrics", "memorization", "my_module.Brightness", "--out", out) == 0
    record = read(out)
    pixels = np.load(files / "fresh.npz")["images"]
    mean = record["models"][0]["metrics"]["my_module.Brightness"]["mean"]
    assert mean == pytest.approx(pixels.mean()) and "coverage" in record["models"][0]["metrics"]
    assert record["control"]["copycat"]["metrics"]["my_module.Brightness"]["mean"] > 0
    assert record["settings"]["groups"] == ["memorization", "my_module.Brightness"]
    for name in ("my_module.Choosy", "my_module.Absent", "my_modul.Brightness", "json.JSONDecoder", "Brightness"):
        error = refused(capsys, *good, "--metrics", name, "--out", tmp_path / "none.json")
        assert error.startswith(f"cdmem: error: metrics={name}: ")


def test_a_users_metric_in_the_file_of_a_study(my_module, tmp_path):
    for metrics, code in ((["my_module.Absent"], 2), (["memorization", "my_module.Brightness"], 0)):
        assert study(tmp_path, {"samples": 24, "nfe": 1, "metrics": metrics}, **STAGES) == code
        assert (tmp_path / "run").exists() is (code == 0)
    summary = read(tmp_path / "run/audit/summary.json")
    assert all(m["metrics"]["my_module.Brightness"]["mean"] > 0 for m in summary["models"])
    assert (tmp_path / "run/report.html").is_file()
