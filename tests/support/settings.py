"""Short settings of tiny models: flat names for what configs nest in groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdmem import distillation
from cdmem.cli.main import main
from cdmem.diffusion import losses
from cdmem.training.settings import Averaging, Optimization, Seeds
from cdmem.training.student import DistillationData
from cdmem.training.teacher import Sampling, TrainingNoise

GROUPS = {
    "optimization": (
        Optimization,
        {"optimizer": "optimizer", "lr_schedule": "schedule", "warmup_steps": "warmup_steps"},
    ),
    "averaging": (Averaging, {"ema_half_lives": "half_lives", "ema_ramp": "ramp", "weights": "weights"}),
    "seeds": (Seeds, {"training_seed": "training", "sampling_seed": "sampling"}),
}
TEACHER = {
    "sampling": (Sampling, {"sampler_points": "points", "solver": "solver"}),
    "noise": (TrainingNoise, {"p_mean": "p_mean", "p_std": "p_std"}),
}
STUDENT = {"data": (DistillationData, {"data": "images", "teacher_sample_count": "count"})}
METHOD = ("points", "start_points", "curriculum", "solver", "distance", "weighting", "intervals")
METHOD += ("mu", "mu_start", "dropout")
DISTANCES = {"l1": "L1", "l2": "L2", "pseudo_huber": "PseudoHuber"}


def _grouped(role: str, flat: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings that belong to no group, and those of each group that are given."""
    tables = GROUPS | (TEACHER if role == "teacher" else STUDENT)
    rest, groups = dict(flat), {}
    for group, (_, names) in tables.items():
        given = {new: rest.pop(old) for old, new in names.items() if old in rest}
        if given:
            groups[group] = given
    return rest, groups


def _with_method(role: str, flat: dict[str, Any], make: Callable[[str, dict[str, Any]], Any]) -> tuple[dict, dict]:
    """:func:`_grouped`, a student's ``method`` made from its class's name and settings."""
    rest, groups = _grouped(role, flat)
    if role == "student":
        settings = {name: rest.pop(name) for name in METHOD if name in rest}
        name = "ConsistencyTraining" if rest.pop("training", False) else "ConsistencyDistillation"
        rest["method"] = make(name, settings)
    return rest, groups


def nested(role: str, **flat: Any) -> dict[str, Any]:
    """``init_args`` of a config; ``training=True`` is consistency training, the control."""

    def method(name: str, settings: dict[str, Any]) -> dict[str, Any]:
        if "distance" in settings:
            settings["distance"] = {"class_path": f"cdmem.diffusion.{DISTANCES[settings['distance']]}"}
        return {"class_path": f"cdmem.distillation.{name}", "init_args": settings}

    rest, groups = _with_method(role, flat, method)
    return rest | groups


def built(role: str, **flat: Any) -> dict[str, Any]:
    """Arguments of :class:`DiffusionTeacher` or :class:`Student`."""

    def method(name: str, settings: dict[str, Any]) -> Any:
        if isinstance(settings.get("distance"), str):
            settings["distance"] = getattr(losses, DISTANCES[settings["distance"]])()
        return getattr(distillation, name)(**settings)

    rest, groups = _with_method(role, flat, method)
    tables = GROUPS | (TEACHER if role == "teacher" else STUDENT)
    return rest | {group: tables[group][0](**given) for group, given in groups.items()}


def callback(name: str, samples: int | None = None, points: int = 1, **options: Any) -> dict[str, Any]:
    """A callback of a config, with a linear cadence if samples are given."""
    cadence = {} if samples is None else {"cadence": {"samples": samples, "points": points, "spacing": "linear"}}
    return {"class_path": name if "." in name else f"callbacks.{name}", "init_args": options | cadence}


def mlp(**options: Any) -> dict[str, Any]:
    return {"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1} | options}


def tiny_stage(
    role: str, trainer: dict[str, Any] | None = None, data: dict[str, Any] | None = None, /, **model: Any
) -> dict[str, Any]:
    """The config of a stage that trains in a second: an MLP on eight digits; ``model`` as for :func:`nested`."""
    kind = "DiffusionTeacher" if role == "teacher" else "Student"
    usual = {"ema_half_lives": [2]} | ({"network": mlp()} if role == "teacher" else {})
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_steps": 4}
    return {
        "threads": 1,
        "data": {"n": 8, "held_out": 16, "batch_size": 4} | (data or {}),
        "model": {"class_path": f"cdmem.training.{kind}", "init_args": nested(role, **(usual | model))},
        "trainer": quiet | (trainer or {}),
    }


def write_study(folder: Path, audit: dict[str, Any], **stages: dict[str, Any]) -> str:
    """study.yaml and the config of every stage, the teacher first; the path of the former."""
    files = {name: f"{name}.yaml" for name in stages}
    study = {"teacher": files.pop("teacher"), "students": files, "audit": audit}
    for name, content in {**stages, "study": study}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "study.yaml")


def cdmem(*args: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    return int(stop.value.code or 0)
