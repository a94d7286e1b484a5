"""What cannot work in a study, or with code of the user's own, is refused before its teacher trains."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from callbacks import MemorizationCallback
from callbacks.evaluation import Cadence
from cdmem.audit.settings import AuditSettings
from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from cdmem.diffusion import Distance
from cdmem.diffusion.preconditioning import Denoiser
from cdmem.distillation import ConsistencyDistillation
from cdmem.errors import InputError
from cdmem.metrics import SampleMetric
from cdmem.models.load import load_model
from cdmem.networks import MLP
from cdmem.study.config import read_study, stage_arguments
from cdmem.study.stage import build
from cdmem.study.trial import try_study
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher
from support.stages import cdmem, write_study
from support.stages import stage as tiny_stage

HERE = __name__


@dataclass(frozen=True)
class Raises(ConsistencyDistillation):
    def loss(self, student, part, noise):
        raise ZeroDivisionError("no step")


@dataclass(frozen=True)
class Mean(ConsistencyDistillation):
    def loss(self, student, part, noise):
        return super().loss(student, part, noise).mean()


@dataclass(frozen=True)
class Constant(ConsistencyDistillation):
    def loss(self, student, part, noise):
        return super().loss(student, part, noise).detach()


@dataclass(frozen=True)
class MeanDistance(Distance):
    def __call__(self, a, b):
        return (a - b).square().mean()


@dataclass(frozen=True)
class AsDenoiser(ConsistencyDistillation):
    function: ClassVar = Denoiser


class RaisesMetric(SampleMetric):
    def evaluate(self, rows):
        raise ZeroDivisionError("no number")


class ObjectMetric(SampleMetric):
    def evaluate(self, rows):
        return {"best": object()}


class NumberMetric(SampleMetric):
    def evaluate(self, rows):
        return 1.0


class TensorMetric(SampleMetric):
    def evaluate(self, rows):
        return {"mean": rows["images"].float().mean()}


# What the student is, what is measured of it along training, and in the audit; the key and words of the refusal.
REFUSED = {
    "a width": ({"network": MLP(width=15)}, {}, {}, "student.model.network.width", "must be even"),
    "teacher_weights": ({"teacher_weights": "ema_9"}, {}, {}, "student.model.teacher_weights", "choose one of"),
    "mid_sigmas": ({"mid_sigmas": [0.001]}, {}, {}, "student.model.mid_sigmas", "must lie between"),
    "another teacher": (
        {"teacher": "analytic:gaussian", "network": MLP()}, {}, {}, "student.model.teacher", "distils its own teacher"
    ),
    "evaluations of the audit": ({}, {}, {"nfe": [1, 5]}, "audit.nfe", "student: model.mid_sigmas has 1 levels"),
    "a method that raises": ({"method": Raises()}, {}, {}, "student.model.method", "no step, test_trial.py line"),
    "a mean as loss": ({"method": Mean()}, {}, {}, "student.model.method", "its loss of 2 images is []"),
    "a constant loss": ({"method": Constant()}, {}, {}, "student.model.method", "does not depend on the student"),
    "a mean as distance": (
        {"method": ConsistencyDistillation(distance=MeanDistance())}, {}, {},
        "student.model.method.distance", "its distance of 2 images is []",
    ),
    "a metric that raises": ({}, {}, {"metrics": [f"{HERE}.RaisesMetric"]}, "metrics", "no number, test_trial.py line"),
    "a metric of objects": ({}, {}, {"metrics": [f"{HERE}.ObjectMetric"]}, "metrics", "not JSON serializable"),
    "a metric that is a number": ({}, {}, {"metrics": [f"{HERE}.NumberMetric"]}, "metrics", "returns a float"),
    "evaluations along training": ({}, {"nfe": [7]}, {}, "student.MemorizationCallback.nfe", "mid_sigmas has 1 levels"),
}  # fmt: skip


def stage(model, training_set, place, **callback):
    """What a stage is to the trial, without a parser."""
    found = [MemorizationCallback(cadence=Cadence(samples=8), **callback)] if callback else []
    return SimpleNamespace(
        model=model,
        datamodule=SimpleNamespace(training_set=training_set),
        trainer=SimpleNamespace(max_steps=4, callbacks=found),
        settings=SimpleNamespace(run_dir=place),
    )


@pytest.fixture(scope="module")
def teacher():
    training_set = choose(load_source("digits"), SubsetSpec(n=8, held_out=16))
    model = DiffusionTeacher(MLP(width=16, depth=1))
    model.prepare(training_set)
    return stage(model, training_set, "run/teacher")


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_the_teacher_trains(case, teacher):
    model, callback, audit, key, said = REFUSED[case]
    student = stage(Student(**{"teacher": "run/teacher"} | model), None, "run/student", **callback)
    with pytest.raises(InputError) as error:
        try_study({"teacher": teacher, "student": student}, AuditSettings(samples=8, **audit))
    assert str(error.value).startswith(f"{key}=") and said in str(error.value)
    assert student.model.raw is None and teacher.model.raw.network.training  # nothing was built into the real ones
    assert all(p.requires_grad for p in teacher.model.raw.parameters())


def study(folder, audit, metric, method):
    """study.yaml of a teacher and a student with code of this file."""
    callback = {"class_path": "callbacks.MetricCallback", "init_args": {"metric": {"class_path": f"{HERE}.{metric}"}}}
    callback["init_args"]["cadence"] = {"samples": 8, "points": 1}
    student = tiny_stage("student", {"callbacks": [callback]})
    student["model"]["init_args"]["method"] = {"class_path": f"{HERE}.{method}"}
    settings = {"samples": 8, "metrics": ["memorization"]} | audit
    return write_study(folder, settings, teacher=tiny_stage("teacher"), student=student)


@pytest.mark.parametrize(
    ("metric", "method", "key"),
    [("RaisesMetric", "AsDenoiser", "MetricCallback.metric"), ("TensorMetric", "Raises", "student.model.method")],
)
def test_the_command_refuses_in_one_line(metric, method, key, tmp_path, capsys):
    file = study(tmp_path, {}, metric, method)
    assert cdmem("study", "--config", file, "--run_dir", tmp_path / "run") == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"cdmem: error: {key}={HERE}.") and "\n" not in error
    assert not (tmp_path / "run").exists()


def test_what_works_is_left_alone(tmp_path):
    """Own method, metrics and a parameterisation that is not the usual one, to the end; the record says which."""
    audit = {"metrics": ["memorization", f"{HERE}.TensorMetric"], "nfe": [1]}
    file = study(tmp_path, audit, "TensorMetric", "AsDenoiser")
    assert cdmem("study", "--config", file, "--run_dir", tmp_path / "run") == 0
    student = load_model(tmp_path / "run/student")
    assert type(student.raw) is Denoiser  # not a consistency function: its samples would be other ones
    x, sigma = torch.ones(1, 1, 8, 8), torch.tensor([student.sigma_min])
    assert not torch.equal(student.function()(x, sigma), x)
    assert load_model(tmp_path / "run/teacher").record.function is None


# ---- code of one's own among a study's overrides ---------------------------------------------------------------------

NET, METHOD = "cdmem.networks.MLP", "cdmem.distillation.ConsistencyTraining"
OVERRIDES = [  # as fit takes them, and what the stage is then made with
    (["model.network", NET, "model.network.width", "6"], "network", {"class_path": NET, "width": 6}),
    (["model.network.width", "6", "model.network", NET], "network", {"class_path": NET, "width": 6}),
    (["model.network", NET, "model.network.init_args.width", "6"], "network", {"class_path": NET, "width": 6}),
    (["model.method", METHOD, "model.method.mu", "0.5"], "method", {"class_path": METHOD, "mu": 0.5}),
    (
        ["model.method", "small.yaml", "model.method.mu", "0.5"],
        "method",
        {"class_path": METHOD, "points": 7, "mu": 0.5},
    ),
    (["model.method", "small.yaml"], "method", {"class_path": METHOD, "points": 7}),
    (
        ["model.method.distance", "{class_path: cdmem.diffusion.PseudoHuber, init_args: {c: 0.5}}"],
        "method",
        {"distance": {"class_path": "cdmem.diffusion.PseudoHuber", "init_args": {"c": 0.5}}},
    ),
]


@pytest.mark.parametrize(("words", "part", "wanted"), OVERRIDES)
def test_a_class_and_its_settings_in_one_command(words, part, wanted, tmp_path):
    """Neither replaces the other, as in ``fit``."""
    (tmp_path / "small.yaml").write_text(f"class_path: {METHOD}\ninit_args: {{points: 7}}\n")
    write_study(tmp_path, {"samples": 8}, teacher=tiny_stage("teacher"), student=tiny_stage("student"))
    options = [f"--student.{word}" if k % 2 == 0 else word for k, word in enumerate(words)]
    config = read_study(["--config", "study.yaml", "--run_dir", "run", *options])
    found = build("fit", stage_arguments(config, "student")).record["model"]["init_args"][part]
    found = {"class_path": found["class_path"]} | found["init_args"]
    assert {key: found[key] for key in wanted} == wanted
