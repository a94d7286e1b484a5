"""Short settings of tiny models: flat names for what configs nest in groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cdmem import distillation
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
METHOD += ("mu", "mu_start", "dropout", "reuse")
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
        names = {"training": "ConsistencyTraining", "regression": "TrajectoryRegression"}
        asked = [names[key] for key in names if rest.pop(key, False)]
        rest["method"] = make(asked[0] if asked else "ConsistencyDistillation", settings)
    return rest, groups


def nested(role: str, **flat: Any) -> dict[str, Any]:
    """``init_args`` of a config; ``training=True`` is consistency training, ``regression=True`` that: the controls."""

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
