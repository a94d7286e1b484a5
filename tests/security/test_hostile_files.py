"""Pickles in every place where a stranger's file is read: nothing runs, and the command ends with one line.

What is confined how: docs/security.md.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cdmem.cli.export import find_rows, known_images
from cdmem.data.cifar10 import MD5
from cdmem.errors import InputError
from cdmem.io import torch_archive as archive
from cdmem.metrics.quality.efficientnet import EfficientNetLite0Features
from cdmem.report.run_data import read_run
from cdmem.run.folder import RunFolder
from cdmem.run.metrics_log import MetricsRecord
from cdmem.training import checkpoint
from support.hostile import PICKLES, Song, bare, in_archive, make_pipeline, object_array, write_settings
from support.report import make_study_folder
from support.strangers import exits, refused


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study's folder with a trained teacher and student, and the user's own configs."""
    folder = tmp_path_factory.mktemp("trained")
    write_settings(folder)
    from cdmem.study.stage import build

    common = ["--threads", "1"]
    build("fit", ["--config", str(folder / "own.yaml"), "--run_dir", str(folder / "run/teacher"), *common]).execute()
    teacher = ["--model.teacher", str(folder / "run/teacher")]
    args = ["--config", str(folder / "student.yaml"), "--run_dir", str(folder / "run/student"), *teacher, *common]
    build("fit", args).execute()
    load = lambda name: torch.load(folder / f"run/{name}/checkpoints/last.ckpt", weights_only=True)  # noqa: E731
    return SimpleNamespace(folder=folder, teacher=load("teacher"), student=load("student"))


@pytest.fixture
def place(trained, tmp_path):
    """A copy of that folder for one test."""
    for name in ("run", "own.yaml", "student.yaml", "study.yaml"):
        source = trained.folder / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    np.savez(tmp_path / "images.npz", images=np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8))
    return tmp_path


@pytest.fixture
def song(tmp_path_factory):
    made = Song(tmp_path_factory.mktemp("mark") / "sung")
    yield made
    assert not made.mark.exists(), "a stranger's code has run"


def test_the_song_is_heard_where_nothing_is_confined(trained, tmp_path):
    """Otherwise the tests here would prove nothing."""
    heard = Song(tmp_path / "sung")
    for name, make in PICKLES.items():
        make(tmp_path / "x.ckpt", heard, trained.teacher)
        if name != "second_structure":
            try:
                content = (tmp_path / "x.ckpt").read_bytes()
                pickle.loads(content) if name in ("bare", "legacy_before_archive") else torch.load(
                    io.BytesIO(content), weights_only=False
                )
            except pickle.UnpicklingError:
                pass
            assert heard.mark.exists(), name
            heard.mark.unlink()
    np.load(object_array(tmp_path / "x.npy", heard), allow_pickle=True)
    assert heard.mark.exists()


# ---- checkpoints ----------------------------------------------------------------------------------------------------

SILENT = ("--trainer.enable_progress_bar", "false", "--threads", "1")
COMMANDS = {
    "sample": (["sample", "--checkpoint", "x.ckpt", "--out", "o.npz"], "x.ckpt"),
    "export": (["export", "--checkpoint", "x.ckpt", "--out", "exported"], "x.ckpt"),
    "generator": (["audit", "--generator", "x.ckpt", "--training_set", "run/teacher"], "x.ckpt"),
    "audited_teacher": (
        ["audit", "--generator", "run/student", "--training_set", "run/teacher", "--teacher", "x.ckpt"],
        "x.ckpt",
    ),
    "audited_run": (
        ["audit", "--generator", "run", "--training_set", "run/teacher"],
        "run/student/checkpoints/last.ckpt",
    ),
    "ckpt_path": (["fit", "--config", "own.yaml", "--run_dir", "new", "--ckpt_path", "x.ckpt", *SILENT], "x.ckpt"),
    "resume": (
        ["fit", "--config", "own.yaml", "--run_dir", "run/teacher", *SILENT],
        "run/teacher/checkpoints/last.ckpt",
    ),
    "validate": (["validate", "--config", "own.yaml", "--run_dir", "new", "--ckpt_path", "x.ckpt", *SILENT], "x.ckpt"),
    "predict": (["predict", "--config", "own.yaml", "--run_dir", "new", "--ckpt_path", "x.ckpt", *SILENT], "x.ckpt"),
    "teacher": (["fit", "--config", "student.yaml", "--run_dir", "n", "--model.teacher", "x.ckpt", *SILENT], "x.ckpt"),
    "study": (["study", "--config", "study.yaml", "--run_dir", "run"], "run/teacher/checkpoints/last.ckpt"),
    "plan": (["plan", "--config", "student.yaml", "--model.teacher", "x.ckpt"], "x.ckpt"),
}
# Every form through one command, every command with the form that looks most like a checkpoint.
CASES = [("sample", form) for form in PICKLES] + [(c, "in_archive") for c in COMMANDS if c != "sample"]
CASES += [("resume", "in_optimizer"), ("resume", "in_averages"), ("study", "old_format"), ("teacher", "in_record")]


@pytest.mark.parametrize(("command", "form"), CASES)
def test_a_pickle_as_checkpoint(command, form, trained, place, song, capsys):
    args, target = COMMANDS[command]
    for other in place.glob("run/*/checkpoints/previous.ckpt"):
        other.unlink()
    good = trained.student if "student" in target else trained.teacher
    (place / target).unlink(missing_ok=True)
    PICKLES[form](place / target, song, good)
    refused(args, capsys, place)


def test_each_of_the_two_gates_holds_alone(trained, tmp_path, song, monkeypatch):
    """The look into the archive, and torch's own unpickler."""
    file = tmp_path / "x.ckpt"
    in_archive(file, song, trained.teacher)
    with pytest.raises(ValueError, match="exec"):
        archive.check_archive(file)
    monkeypatch.setattr(checkpoint, "check_archive", lambda file: None)
    with pytest.raises(InputError, match="Weights only load failed"):
        checkpoint.read_checkpoint(file)


def test_our_own_checkpoints_pass(trained, place, capsys):
    for name in ("teacher", "student"):
        archive.check_archive(place / f"run/{name}/checkpoints/last.ckpt")
    assert exits(["sample", "--checkpoint", "run/student", "--samples", 2, "--out", "o.npz"], capsys)[0] == 0
    values = {
        "a": torch.Size([1]),
        "b": {1, 2},
        "c": torch.float16,
        "d": b"x",
        "e": torch.ones(2, dtype=torch.bfloat16),
    }
    values |= {"f": torch.nn.Parameter(torch.ones(1)), "g": 1j, "h": torch.device("cpu")}  # of somebody's own callback
    torch.save(trained.teacher | {"callbacks": {"Mine": values}}, place / "x.ckpt")
    assert checkpoint.read_checkpoint(place / "x.ckpt")["callbacks"]["Mine"]["b"] == {1, 2}


# ---- arrays ---------------------------------------------------------------------------------------------------------

ARRAYS = {
    "generator": ["audit", "--generator", "x.npz", "--training_set", "images.npz"],
    "training_set": ["audit", "--generator", "images.npz", "--training_set", "x.npz"],
    "held_out": ["audit", "--generator", "images.npz", "--training_set", "images.npz", "--held_out", "x.npz"],
    "data.path": ["fit", "--config", "own.yaml", "--run_dir", "n", "--data.source", "array", "--data.path", "x.npz"],
    "data.path npy": [
        *("fit", "--config", "own.yaml", "--run_dir", "n", "--data.source", "array", "--data.path", "x.npy")
    ],
    "duplication": ["fit", "--config", "own.yaml", "--run_dir", "n", "--data.duplication", "x.npy"],
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("form", ["objects", "pickle"])
def test_pickled_arrays(name, form, place, song, capsys):
    for file in (place / "x.npz", place / "x.npy"):
        object_array(file, song) if form == "objects" else bare(file, song, {})
    refused(ARRAYS[name], capsys, place)


def test_pickled_rows_of_an_evaluation(place, song, capsys):
    (place / "run/student/evaluations").mkdir(exist_ok=True)
    object_array(place / "run/student/evaluations/step=00000001_nfe=1.npz", song, "seeds", "squared1", "squared2")
    audit = ["audit", "--generator", "run/student", "--training_set", "run/teacher", "--quiet"]
    assert "evaluations=" in refused(audit, capsys, place)


def test_pickled_arrays_of_a_report_are_left_out(tmp_path, song):
    run = make_study_folder(tmp_path / "run")
    for file in [*run.glob("audit/*.npz"), *run.glob("samples/*.npz")]:
        object_array(file, song, "seeds", "squared1", "squared2", "images", "ids")
    found = read_run(run)
    assert all(found.arrays(kind, m) == {} for kind in ("audit", "samples") for m in found.models)
    assert found.load("audit/pictures.npz") == {} and len(found.notes) == 9


def test_pickled_weights_of_extractors(place, song, capsys, monkeypatch):
    bare(place / "x.pt", song, {})
    torch.save({"a": song}, place / "x.pth")
    monkeypatch.setenv("CDMEM_INCEPTION", "x.pt")
    audit = ["audit", "--generator", "images.npz", "--training_set", "images.npz", "--features"]
    assert "SHA-256" in refused([*audit, "inception"], capsys, place)
    with pytest.raises(InputError, match="SHA-256"):
        EfficientNetLite0Features(weights=str(place / "x.pth"))


def test_the_python_version_of_cifar10_is_not_read(place, song, capsys):
    """Its batches are pickles; neither they nor pickles under the binary names are opened as such."""
    args = ["fit", "--config", "own.yaml", "--run_dir", "n", "--data.source", "cifar10", "--data.path", "cifar"]
    (place / "cifar").mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        bare(place / "cifar" / name, song, {})
    assert "binary batches are not there" in refused(args, capsys, place)
    for name in MD5:
        bare(place / "cifar" / name, song, {})
    assert "MD5" in refused(args, capsys, place)


# ---- diffusers folders ----------------------------------------------------------------------------------------------

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CODE = "from pathlib import Path\nPath({mark!r}).touch()\nclass Evil: pass\n"


def instead(suffix):
    def change(folder, song):
        (folder / WEIGHTS).unlink()
        torch.save({"a": song}, folder / f"unet/diffusion_pytorch_model{suffix}")

    return change


def beside(folder, song):
    """Pickles and programs beside the good weights are not looked at."""
    for name in ("unet/diffusion_pytorch_model.bin", "scheduler/state.pt", "pytorch_model.bin", "x.pkl"):
        torch.save({"a": song}, folder / name)
    for name in ("pipeline.py", "unet/unet.py", "unet/modeling.py", "scheduler/scheduler.py", "__init__.py"):
        (folder / name).write_text(CODE.format(mark=str(song.mark)))


def config(file, **changes):
    def change(folder, song):
        beside(folder, song)
        target = folder / file
        target.write_text(json.dumps(json.loads(target.read_text()) | changes))

    return change


KEYS = {"trust_remote_code": True, "custom_pipeline": ".", "auto_map": {"AutoModel": "modeling.Evil"}, "_commit": "x"}
# Whether the folder is refused; where it is not, what it says is not followed.
FOLDERS = {
    "bin": (instead(".bin"), True),
    "pt": (instead(".pt"), True),
    "ckpt": (instead(".ckpt"), True),
    "pickle named safetensors": (lambda folder, song: bare(folder / WEIGHTS, song, {}), True),
    "code beside": (beside, False),
    "keys of the index": (config("model_index.json", **KEYS), False),
    "keys of the network": (config("unet/config.json", **KEYS), False),
    "keys of the scheduler": (config("scheduler/scheduler_config.json", **KEYS), False),
    "pipeline of the folder": (config("model_index.json", _class_name=["pipeline", "Evil"]), True),
    "network of the folder": (config("model_index.json", unet=["unet", "Evil"]), True),
    "scheduler of the folder": (config("model_index.json", scheduler=["scheduler", "Evil"]), True),
    "path in the index": (config("model_index.json", unet=["../../evil", "UNet2DModel"]), True),
    "class in the network": (config("unet/config.json", _class_name="modeling.Evil"), False),
    "code as block": (config("unet/config.json", down_block_types=["modeling.Evil", "DownBlock2D"]), True),
    "code as activation": (config("unet/config.json", act_fn="modeling.Evil"), True),
}
AUDIT = ["audit", "--generator", "p", "--training_set", "images.npz", "--nfe", "1", "--samples", "2", "--quiet"]


@pytest.mark.parametrize("name", FOLDERS)
def test_code_in_a_diffusers_folder(name, place, song, capsys):
    """Audited by itself, and as a teacher."""
    change, bad = FOLDERS[name]
    change(make_pipeline(place / "p"), song)
    if bad:
        refused(AUDIT, capsys, place)
        with pytest.raises(InputError, match=r"model\.teacher"):
            checkpoint.load_model(place / "p", "model.teacher")
    else:
        assert exits(AUDIT, capsys)[0] == 0
        assert checkpoint.load_model(place / "p", "model.teacher").role == "teacher"


# ---- records of a run folder ----------------------------------------------------------------------------------------

RECORDS = ("config.yaml", "training_set.json", "environment.json", "metrics.jsonl", "onset.json", "finished.json")
TAG = "!!python/object/apply:builtins.exec [\"open({mark!r}, 'w').close()\"]\n"


@pytest.mark.parametrize("form", ["pickle", "tag"])
def test_pickles_as_records_of_a_report(form, tmp_path, song, capsys):
    run = make_study_folder(tmp_path / "run")
    content = pickle.dumps(song) if form == "pickle" else TAG.format(mark=str(song.mark)).encode()
    for record in RECORDS:
        for folder in (run, run / "teacher", run / "student"):
            (folder / record).write_bytes(content)
    found = read_run(run)
    assert found.config == {} and all(s.config == s.onset == s.finished == {} and not s.records for s in found.stages)
    (run / "audit/summary.json").write_bytes(content)
    refused(["report", run], capsys, tmp_path)


READ = {
    "audit": (["audit", "--generator", "run/student", "--training_set", "run/teacher"], ("training_set.json",)),
    "audit student": (["audit", "--generator", "run/student", "--training_set", "run/teacher"], ("config.yaml",)),
    "fit": (["fit", "--config", "own.yaml", "--run_dir", "run/teacher"], ("config.yaml", "finished.json")),
    "study": (["study", "--config", "study.yaml", "--run_dir", "run"], ("config.yaml",)),
    "plan": (["plan", "--config", "run/teacher/config.yaml", "--allow_code"], ("config.yaml",)),
    "as config": (["fit", "--config", "run/teacher/config.yaml", "--allow_code"], ("config.yaml",)),
}


@pytest.mark.parametrize("form", ["pickle", "tag"])
@pytest.mark.parametrize("name", READ)
def test_a_pickle_as_record_of_a_run(name, form, place, song, capsys):
    args, records = READ[name]
    (place / "run/student/evaluations").mkdir(exist_ok=True)  # else nobody asks for the student's config
    content = pickle.dumps(song) if form == "pickle" else TAG.format(mark=str(song.mark)).encode()
    for record in records:
        for folder in (place / "run", place / "run/teacher", place / "run/student"):
            (folder / record).write_bytes(content)
        refused(args, capsys, place)


def test_a_pickle_as_audit_of_an_export(place, song):
    (place / "run/audit").mkdir()
    bare(place / "run/audit/summary.json", song, {})
    bare(place / "run/teacher/training_set.json", song, {})
    with pytest.raises(InputError, match="audit="):
        find_rows("run/audit/summary.json", place / "run/teacher", "0" * 64)
    assert find_rows(None, place / "run/teacher", "0" * 64) == ([], None)  # nobody asked for that one: left out
    assert known_images(place / "run/teacher", "0" * 64) is None


def test_metrics_that_are_no_records_are_passed_over(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + "[" * 10**5 + "\n" + "1" * 5000 + "\n" + '{"step": 2}\n')
    assert [row["step"] for row in MetricsRecord(folder).rows()] == [1, 2]
