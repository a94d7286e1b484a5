"""Wrong settings, names and places: one line naming key, value and hint before any training, and nothing changes."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from support.breaking import BOMB
from support.report import make_study_folder
from support.untrusted import STUDY, exits, main, stage, student, tree, write

FIT = "fit --config own.yaml"
DISTIL = "fit --config student.yaml"
NEW = f"{FIT} --run_dir new"
LAST = "run/teacher/checkpoints/last.ckpt"
AUDIT = "audit --training_set images.npz --generator images.npz"
SAMPLE = "sample --checkpoint run/teacher"
LONG = "a" * 300
# Commands whose error names the last option with its value.
NAMED = [
    *(f"{FIT} --{setting}" for setting in (
        "data.n=5000", "data.n=1790", "data.n=1", "data.nn=5", "data.batch_size=0",
        f"data.batch_size={2**32}",  # draws for hours
        "data.source=cifar10 --data.path nowhere", "data.source=folder --data.path nowhere",
        "data.source=celeba --data.resolution=8 --data.path nowhere", f"data.source=array --data.path {LONG}.npz",
        "model.network.widht=5", "model.network.width=15", "model.averaging.half_lives=[]", "model.sampling.points=1",
        "trainer.max_steps=-1", "trainer.max_steps=many", "nonsense=3", "threads=-1", f"threads={10**9}",
        "ckpt_path=none.ckpt", f"run_dir={LONG}", "run_dir=own.yaml/run",
    )),
    f"predict --config own.yaml --run_dir new --ckpt_path {LAST} --data.predict_samples {10**12}",
    *(f"{DISTIL} --model.teacher {name}" for name in ("missing.ckpt", LONG)),
    f"{DISTIL} --data.n 9 --model.teacher run/teacher",
    *(f"{SAMPLE} --{option}" for option in ("out images.npz", f"out {LONG}.npz", "out x.npz --nfe 4")),
    f"sample --out o.npz --checkpoint {LONG}",
    "report study study --out own.yaml/x.html",
    *(f"{AUDIT} --out {out}" for out in
      ("link.json", "folder.json", "images.npz/o.json", "/proc/o.json", f"{LONG}.json", "'a\0b.json'")),
    *(f"audit --{other} images.npz --{option} {name}"
      for other, option in (("training_set", "generator"), ("generator", "training_set"))
      for name in ("a" * 5000, "~no_such_user_at_all/x", "''", "'a\0b'")),
    *(f"{AUDIT} --{option}" for option in ("weights raw", "teacher run", "device meta", "near_duplicates 0.9999")),
]  # fmt: skip
# The command, the key that is named, words of the error.
SETTINGS = [
    (f"{FIT} --data.source mnist", "data.source=mnist", "digits"),
    (f"{FIT} --data.classes [77]", "data.classes", "77"),
    (f"{FIT} --data.held_out {2**63 - 1}", "data.n="),
    (f"{FIT} --data.held_out 0 --data.held_out_path digits.npz", "data.held_out_path"),  # they overlap
    (f"{FIT} --model.averaging.weights ema_7", "model.averaging.weights=ema_7", "ema_2"),
    (f"{FIT} --trainer.max_epochs {10**400}", "trainer.max_epochs="),
    (f"{FIT} --trainer.precision 16-true", "trainer.precision=16-true", "bf16-mixed"),
    ("fit --config no.yaml", "", "no.yaml"),
    ("study --config no.yaml", "", "no.yaml"),
    ("train", "", "train", "--help"),
    (f"{DISTIL} --model.teacher run/teacher --data.resolution 12", "model.teacher=", "shape"),
    (f"{DISTIL} --model.teacher run/teacher --ckpt_path {LAST}", "ckpt_path=", "--model.teacher"),
    (f"{DISTIL} --model.teacher run/teacher --model.method null", "model.method="),
    *((f"{DISTIL} --model.teacher run/teacher --model.{group} null", "") for group in ("averaging", "seeds", "data")),
    *((f"{FIT} --model.{group} null", "") for group in ("network", "optimization", "seeds", "sampling", "noise")),
    (f"{DISTIL} --run_dir run/student --model.teacher other.ckpt --ckpt_path last", "model.teacher=", "distilled"),
    (f"{FIT} --run_dir run/teacher --ckpt_path last --model.noise.p_mean -1", "model.init_args.noise.p_mean",
     "--run_dir"),
    ("sample", "", "checkpoint"),
    (f"report {LONG}", "runs="),
    ("study --config study.yaml --student.data.n 9", "student.data"),
    ("study --config study.yaml --student.model.method.mu 2", "model.method.mu=2"),  # before the teacher trains
]  # fmt: skip


def named(command):
    """The last option with as much of its value as an error repeats."""
    option, value = shlex.split(command.replace("=", " "))[-2:]
    return f"{option.removeprefix('--')}={value[:20] if value.isprintable() else ''}"


@pytest.mark.parametrize("row", [*((command, named(command)) for command in NAMED), *SETTINGS],
                         ids=lambda row: row[0][:90].replace("\0", "0"))  # fmt: skip
def test_wrong_settings(row, place, refuse):
    np.savez(place / "digits.npz", images=np.rint(load_digits().images * 255 / 16).astype(np.uint8))
    shift = {name: weight + 1 for name, weight in torch.load(place / LAST, weights_only=True)["state_dict"].items()}
    change(place / LAST, place / "other.ckpt", state_dict=shift)
    (place / "link.json").symlink_to(place / "nowhere")
    (place / "folder.json").mkdir()
    if row[0].startswith("report study"):
        make_study_folder(place / "study")
    refuse(*row)


def config(**parts):
    return {"c.yaml": stage(**parts)}


def callback(name, held_out=16, **init):
    return config(trainer__callbacks=[{"class_path": name, "init_args": init}], data__held_out=held_out)


def cadence(**changes):
    return callback("MemorizationCallback", cadence={"samples": 4, "points": 2} | changes)


def study(**changes):
    return {"c.yaml": STUDY | changes}


def change(source, file, **changes):
    """A checkpoint in which something is replaced; None drops a key."""
    state = torch.load(source, weights_only=True)
    for part in (state, state["cdmem"]):
        for key in part.keys() & changes.keys():
            part.pop(key) if changes[key] is None else part.update({key: changes[key]})
    torch.save(state, file)


def checkpoint(**changes):
    return {"x.ckpt": lambda file: change(file.parent / LAST, file, **changes)}


def unfinished(**changes):
    """A run that was killed, with such a checkpoint and a record of metrics of which no line may be lost."""

    def make(teacher):
        (teacher / "finished.json").unlink()
        for name in ("previous.ckpt", "last.ckpt"):
            change(teacher / "checkpoints/last.ckpt", teacher / "checkpoints" / name, **changes)
        rows = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
        write(teacher / "metrics.jsonl", "\n".join(rows) + "\n")

    return {"run/teacher": make}


def untrained(folder):
    """A study's folder whose audit does not say of which training set it is."""
    make_study_folder(folder)
    summary = json.loads((folder / "audit/summary.json").read_text())
    del summary["training_set"]
    write(folder / "audit/summary.json", json.dumps(summary))


UNET = {"class_path": "cdmem.networks.UNet", "init_args": {"channels": [8, 8, 8], "layers": 1}}
FIT_C, STUDY_C, RESUME = "fit --config c.yaml --run_dir new", "study --config c.yaml", f"{NEW} --ckpt_path x.ckpt"
AGAIN = f"{FIT} --run_dir run/teacher"
CADENCE = "MemorizationCallback.cadence"
THEORY = "theory edge --out out --config edge.yaml"
# What the file is: what is written, the command, the key, a word of the error.
FILES = {
    "side that the network cannot halve": (config(model__init_args__network=UNET, data__resolution=6), FIT_C,
        "data.resolution", "divisible by 4"),
    "section that is a list": ({"c.yaml": student() | {"trainer": ["x"]}}, "plan --config c.yaml", "trainer="),
    "misspelt key of a study": (study(teecher="x.yaml"), STUDY_C, "teecher", "teacher"),
    "misspelt key of an audit": (study(audit={"sampels": 3}), STUDY_C, "audit.sampels", "audit.samples"),
    "audit of one sample": (study(audit={"samples": 1}), STUDY_C, "audit.samples"),
    "absent teacher": (study(teacher="absent.yaml"), STUDY_C, "teacher", "absent.yaml"),
    "no students": (study(students={}), STUDY_C, "students"),
    "seed that is text": (study(seed="one"), STUDY_C, "seed"),
    "empty key of a study": (study(**{"": 1}), STUDY_C, "''="),
    "student without a name": (study(students={"": {"config": "student.yaml"}}), STUDY_C, "students="),
    "student outside the run": (study(students={"../../x": "student.yaml"}), STUDY_C, "students="),
    "second teacher": (study(students={"teacher": "student.yaml"}), STUDY_C, "students="),
    "onset of nothing": (callback("OnsetCallback"), FIT_C, "trainer.callbacks="),
    "gap to no images": (callback("WhiteboxCallback", 0), FIT_C, "data.held_out="),
    "quality against no images": (callback("QualityCallback", 0), FIT_C, "data.held_out="),
    "more evaluations than steps ever": (cadence(points=10**11), FIT_C, f"{CADENCE}.points="),
    "no samples at once": (cadence(batch_size=0), FIT_C, f"{CADENCE}.batch_size="),
    "one sample in test": (cadence(test_samples=1), FIT_C, f"{CADENCE}.test_samples="),
    "checkpoint without a role": (checkpoint(role=None), RESUME, "ckpt_path="),
    "checkpoint with a step that is text": (checkpoint(global_step="x"), RESUME, "ckpt_path="),
    "checkpoint of no version": (unfinished(**{"pytorch-lightning_version": torch.zeros(2)}), AGAIN, "ckpt_path=",
        "cannot be restored"),
    "checkpoint of no training set": (checkpoint(training_set=None), RESUME, "ckpt_path="),
    "checkpoint of another optimizer": (unfinished(optimizer_states=[{"state": {}}]), AGAIN, "ckpt_path=",
        "cannot be restored"),
    "checkpoint without the loop of validate": (checkpoint(loops={"fit_loop": {}}),
        "validate --config own.yaml --run_dir new --ckpt_path x.ckpt", "ckpt_path="),
    "teacher of no solver": (checkpoint(sampler={"solver": "cuda", "points": 3}), f"{DISTIL} --model.teacher x.ckpt",
        "model.teacher="),
    "finished at no step": ({"run/teacher/finished.json": '{"seconds": 1}'}, AGAIN, "run_dir="),
    "comparison with an audit of nothing": ({"study": untrained}, "report study study --out out.html", "run="),
    "settings that grow": ({"edge.yaml": BOMB}, THEORY, "config="),
    "laboratory without a size": ({"edge.yaml": "mixture: {k: null}"}, THEORY, "mixture.k="),
}  # fmt: skip


@pytest.mark.parametrize("row", FILES)
def test_wrong_files(row, place, refuse):
    files, command, *expected = FILES[row]
    for name, content in files.items():
        content(place / name) if callable(content) else write(place / name, content)
    refuse(command, *expected)


def test_a_trained_folder_is_never_overwritten(place, capsys):
    before = tree(place)
    assert main(*FIT.split(), "--run_dir", "run/teacher") == 0
    assert "finished before, at step" in capsys.readouterr().out and tree(place) == before


def test_a_development_run_of_lightning_leaves_nothing(place):
    before = tree(place)
    assert main(*NEW.split(), "--trainer.fast_dev_run", "true", "--wandb", "true") == 0
    assert tree(place) == before


def test_an_audit_of_nothing(place, refuse, capsys):
    again = "study --config study.yaml --run_dir run"
    assert exits(again.split(), capsys)[0] == 0
    write(place / "run/audit/summary.json", '{"models": []}')
    refuse(again, "run_dir=")


def test_a_training_that_diverges_keeps_its_last_finite_state(place, capsys):
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e38}}
    save = {"class_path": "cdmem.training.RunCheckpoint", "init_args": {"every_n_steps": 1}}
    own = stage(model__init_args__optimization={"warmup_steps": 0, "optimizer": sgd}, trainer__callbacks=[save])
    own["trainer"] |= {"max_steps": 9, "log_every_n_steps": 1}
    write(place / "c.yaml", own)
    code, error = exits(FIT_C.split(), capsys)
    assert code == 2 and error.startswith("cdmem: error: train/loss=") and "diverged" in error and "\n" not in error
    state = torch.load(place / "new/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(bool(weight.isfinite().all()) for weight in state.values())
