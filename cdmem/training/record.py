"""What any checkpoint or folder of a model says of itself: one object, written and read in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from cdmem import __version__
from cdmem.diffusion.preconditioning import Scaling, make_scaling
from cdmem.diffusion.solvers import SOLVERS

FORMAT = 2
RECORDED = "recorded"
DEFAULT_POINTS = 18  # of students that were trained before their grid was recorded
MAX_SIDE = 4096  # px; a damaged record must not ask for images that fill the memory
MAX_NUMBER, MAX_POINTS, MAX_LEVELS = 2**16, 10_000, 1000  # classes, sampler points, mid_sigmas


@dataclass(frozen=True)
class ModelRecord:
    """A teacher or a student, in plain types.

    Attributes:
        role: ``teacher`` or ``student``.
        shape: of an image, (C, H, W).
        num_classes: 0 for an unconditional model.
        sigma_data: standard deviation of the training pixels in [-1, 1].
        sigma_min: smallest noise level.
        sigma_max: noise level that samples start from.
        parameterization: ``edm`` or ``vp``.
        network: class path and settings of the network.
        sampler: ``solver`` and ``points``; of a student also ``mid_sigmas``, ``points`` is its training grid's, and
            ``ode_solver`` is that of the teacher's ODE on this grid, None where its method follows none.
        weights: the evaluated weights, ``raw`` or ``ema_<half-life>``.
        half_lives: of the averages that the file holds.
        sampling_seed: of the model's own samples.
        training_set: content hash, or ``unrecorded``.
        training_set_status: ``recorded``, or ``claimed`` by whoever distilled a teacher without a record.
        null_label: label number ``num_classes`` means "no class".
        scaling: options of the preconditioning of networks from elsewhere.
        step: optimizer steps taken; None where unknown.
        method: class path of the distillation method.
        function: class path of a student's parameterisation, where the method has another one than ConsistencyFunction.
        teacher: as it was named.
        teacher_digest: of the teacher's weights.
        format: of the record itself; 1 is read, and cannot be resumed.
        version: of cdmem.
    """

    role: Literal["teacher", "student"]
    shape: tuple[int, ...]
    num_classes: int
    sigma_data: float
    sigma_min: float
    sigma_max: float
    parameterization: str
    network: dict[str, Any]
    sampler: dict[str, Any]
    weights: str
    half_lives: list[int] = field(default_factory=list)
    sampling_seed: int = 0
    training_set: str = "unrecorded"
    training_set_status: str = RECORDED
    null_label: bool = False
    scaling: dict[str, Any] | None = None
    step: int | None = None
    method: str | None = None
    function: str | None = None
    teacher: str | None = None
    teacher_digest: str | None = None
    format: int = FORMAT
    version: str = __version__

    @property
    def label_rows(self) -> int:
        """Classes that the network embeds: one more where "no class" has a label."""
        return self.num_classes + self.null_label

    def make_scaling(self) -> Scaling:
        """The preconditioning."""
        return make_scaling(vars(self))

    def plain(self) -> dict[str, Any]:
        """As checkpoints hold it."""
        return asdict(self) | {"shape": list(self.shape)}

    def check(self) -> None:
        """Refuse a damaged or hostile record before anything is built from it.

        Raises:
            TypeError, ValueError, KeyError: naming what is invalid.
        """
        if self.role not in ("teacher", "student"):
            raise ValueError(f"role {self.role}")
        for name in ("parameterization", "weights", "training_set", "training_set_status", "version"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is no text")
        if len(self.shape) != 3 or not all(type(s) is int and 1 <= s <= MAX_SIDE for s in self.shape):
            raise ValueError(f"shape {self.shape}")
        if type(self.num_classes) is not int or not 0 <= self.num_classes <= MAX_NUMBER:
            raise ValueError("num_classes")
        if self.null_label not in (False, True) or (self.null_label and not self.num_classes):
            raise ValueError("null_label")
        levels = (self.sigma_data, self.sigma_min, self.sigma_max)
        if not all(math.isfinite(v) and v > 0 for v in levels) or self.sigma_min >= self.sigma_max:
            raise ValueError(f"noise levels {levels}")
        if not 2 <= self.sampler["points"] <= MAX_POINTS:
            raise ValueError("sampler points")
        if self.role == "teacher" and self.sampler["solver"] not in SOLVERS:
            raise ValueError(f"solver {self.sampler['solver']}")
        if self.sampler.get("ode_solver") not in (None, *SOLVERS):
            raise ValueError(f"ode_solver {self.sampler['ode_solver']}")
        if len(self.sampler.get("mid_sigmas", [])) > MAX_LEVELS:
            raise ValueError("mid_sigmas")
        if self.step is not None and (type(self.step) is not int or self.step < 0):
            raise ValueError(f"step {self.step}")


def read_record(plain: Mapping[str, Any]) -> ModelRecord:
    """The record in a checkpoint, or in the ``cdmem.json`` of an exported folder.

    Raises:
        TypeError, ValueError, KeyError: no such record.
    """
    known = [f.name for f in fields(ModelRecord)]
    values = _from_first_format(plain) if plain["format"] == 1 else {k: plain[k] for k in known if k in plain}
    if values["format"] not in (1, FORMAT):
        raise ValueError(f"format {values['format']}")
    record = ModelRecord(**values | {"shape": tuple(values["shape"])})
    record.check()
    return record


def _from_first_format(old: Mapping[str, Any]) -> dict[str, Any]:
    """Format 1: flat in checkpoints, nested in exported folders."""
    same = ("format", "role", "shape", "num_classes", "sigma_data", "sigma_min", "sigma_max", "parameterization")
    values = {name: old[name] for name in (*same, "weights", "step")}
    values |= {name: old[name] for name in ("null_label", "scaling", "teacher", "teacher_digest") if name in old}
    values["sampling_seed"], values["version"] = int(old["sampling_seed"]), str(old.get("version", old.get("cdmem")))
    if isinstance(old["training_set"], Mapping):
        exported = old["training_set"]
        values |= {"training_set": str(exported["hash"]), "training_set_status": str(exported["status"])}
        values |= {"sampler": dict(old["sampler"]), "weights": "raw", "network": {}}
        return values
    values |= {"training_set": old["training_set"], "network": old["network"], "half_lives": old["ema_half_lives"]}
    values["training_set_status"] = old.get("training_set_status", RECORDED)
    if old["role"] == "teacher":
        values["sampler"] = {"solver": old["solver"], "points": old["sampler_points"]}
    else:
        points = old.get("grid_points", DEFAULT_POINTS)
        values["sampler"] = {"solver": "consistency", "points": points, "mid_sigmas": old["mid_sigmas"]}
    return values
