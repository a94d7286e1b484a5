"""What a student's run folder tells about its distillation: the curve, the limit it goes to, and its length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cdmem.audit.limits import Flags, limit_record, slow_phase_record
from cdmem.errors import InputError
from cdmem.io.arrays import UNREADABLE, read_arrays
from cdmem.io.text import parse_yaml, read_text
from cdmem.metrics.comparison.convergence import BySeed, rmse_convergence
from cdmem.metrics.memorization.ratio import memorized
from cdmem.run.folder import CHANGES, CONFIG, RunFolder
from cdmem.run.metrics_log import MetricsRecord
from cdmem.training.checkpoint import read_checkpoint
from cdmem.training.settings import constant_phase, read_phases

NAME = re.compile(r"step=(\d{1,15})_nfe=(\d{1,6})\.npz")
TEACHER = "evaluations/teacher.npz"  # its samples of the same seeds
COLUMNS = ("seeds", "squared1", "squared2")
OPTIONAL = ("squared_error", "tolerant_ratio")
ROUNDS = "rounds.json"  # looks of a student that is distilled until its claim is decided
OPTIMIZER = "model.init_args.optimization.optimizer"
ERROR = 0.05  # of the intervals, unless several looks share it
Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Copies:
    """What counts as a copy in the rows of an evaluation.

    Attributes:
        threshold: memorised means d1 / d2 below it.
        tolerant: threshold of the tolerant ratio, or None where H is too small for it.
    """

    threshold: float
    tolerant: float | None = None

    def of(self, rows: Rows) -> dict[str, Flags]:
        """By ``strict`` and ``tolerant``, where that is known: seeds and copies (m,)."""
        strict = memorized(rows["squared1"], rows["squared2"], self.threshold)
        flags = {"strict": (rows["seeds"], strict)}
        if self.tolerant is not None and "tolerant_ratio" in rows:
            flags["tolerant"] = (rows["seeds"], strict | (rows["tolerant_ratio"] < self.tolerant))
        return flags


@dataclass
class Evaluations:
    """All evaluations of one student at one NFE.

    Attributes:
        copies: ``strict`` and ``tolerant`` -> step -> (seeds, copies).
        errors: step -> (seeds, squared error to the teacher's endpoint).
    """

    copies: dict[str, BySeed] = field(default_factory=lambda: {"strict": {}, "tolerant": {}})
    errors: BySeed = field(default_factory=dict)


def _evaluations(folder: RunFolder, copies: Copies, until: int | None) -> dict[int, Evaluations]:
    """By NFE, of the steps up to ``until``."""
    by_nfe: dict[int, Evaluations] = {}
    for file in sorted((folder / "evaluations").glob("step=*_nfe=*.npz")):
        named = NAME.fullmatch(file.name)
        if named is None:
            continue
        step, nfe = map(int, named.groups())
        if until is not None and step > until:
            continue
        rows, of_nfe = _read_rows(file), by_nfe.setdefault(nfe, Evaluations())
        for kind, flags in copies.of(rows).items():
            of_nfe.copies[kind][step] = flags
        if "squared_error" in rows:
            of_nfe.errors[step] = (rows["seeds"], rows["squared_error"])
    return dict(sorted(by_nfe.items()))


def _read_rows(file: Path) -> dict[str, np.ndarray]:
    """One evaluation's columns, as long as its seeds.

    Raises:
        InputError: torn, pickled or altered: the verdict rests on these files, so none is passed over.
    """
    try:
        rows = read_arrays(file, (*COLUMNS, *OPTIONAL))
        numbers = all(v.dtype.kind in "iuf" and v.shape == rows["seeds"].shape for v in rows.values())
        whole = all(rows[name].dtype == np.int64 and rows[name].ndim == 1 for name in COLUMNS)
        right = numbers and whole and len(np.unique(rows["seeds"])) == len(rows["seeds"])
        if not right or not all(np.isfinite(v).all() and (v >= 0).all() for v in rows.values()):
            raise ValueError("other columns than an evaluation writes")
        return rows
    except (*UNREADABLE, AttributeError) as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        problem = f"is no evaluation ({reason.splitlines()[0][:80] if reason else 'empty'})"
        raise InputError("evaluations", file, problem, "restore it, or remove the folder evaluations") from None


def _lr_schedule(folder: RunFolder) -> str | None:
    """The learning rate's schedule from the run's config.

    Raises:
        InputError: no such setting can be read; unknown would pass for "not annealed".
    """
    file = folder / CONFIG
    try:
        settings = parse_yaml(read_text(file))["model"]["init_args"]
        # Runs of format 1 had it among the model's own settings.
        schedule = settings.get("optimization", {}).get("schedule", settings.get("lr_schedule"))
        if schedule is not None and not isinstance(schedule, str):
            raise ValueError("lr_schedule is no word")
        return schedule
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"its learning rate cannot be read ({type(error).__name__})"
        raise InputError("config", file, problem, "restore the config.yaml that the run wrote") from None


def _course(folder: RunFolder) -> tuple[tuple[int, int] | None, int]:
    """First and last step of the last stretch at a constant full rate, or None; half-life of the evaluated average.

    Raises:
        InputError: a checkpoint or changes.json that cannot be read.
    """
    if not folder.last_checkpoint.is_file():
        return None, 0
    checkpoint = read_checkpoint(folder.last_checkpoint)
    try:
        phase = constant_phase(read_phases(checkpoint.get("schedule") or ()))
        changes = folder.read_json(CHANGES) if (folder / CHANGES).is_file() else []
        # Another rate within the phase begins a new one.
        rates = [int(change["step"]) for change in changes if str(change["key"]).startswith(OPTIMIZER)]
        weights = str(checkpoint["cdmem"]["weights"])
        half_life = int(weights.removeprefix("ema_")) if weights.startswith("ema_") else 0
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        problem = f"its learning rate cannot be read ({type(error).__name__})"
        raise InputError("changes", folder / CHANGES, problem, "restore what the run wrote") from None
    if phase is None:
        return None, half_life
    return (max([phase[0], *(step for step in rates if step < phase[1])]), phase[1]), half_life


def spent_error(folder: RunFolder) -> float:
    """The error that the last of several looks may spend; the usual one without looks."""
    if not (folder / ROUNDS).is_file():
        return ERROR
    try:
        looks = folder.read_json(ROUNDS)["looks"]
        return float(looks[-1]["error"]) if looks else ERROR
    except (KeyError, TypeError, ValueError, IndexError):
        raise InputError("rounds", folder / ROUNDS, "is no record of looks", "restore what the run wrote") from None


def _length(rows: list[dict[str, Any]], until: int | None) -> str:
    """``2,300 steps (147,200 images seen)``; empty where nothing was logged."""
    seen = [row for row in rows if "images_seen" in row and (until is None or row["step"] <= until)]
    if not seen:
        return ""
    last = max(seen, key=lambda row: row["step"])
    step = int(last["step"])
    images = round(last["images_seen"])
    return f"{step:,} steps ({images:,} images seen)"


def distillation_record(
    folder: RunFolder, copies: Copies, until: int | None = None, error: float = ERROR
) -> dict[str, Any]:
    """The student's curve along distillation, and by NFE the limit that its difference to the teacher goes to.

    Args:
        folder: of the student's run.
        copies: what counts as one.
        until: the audited checkpoint's step; what came later says nothing about it.
        error: of the intervals; smaller where it is one of several looks.

    Returns:
        ``curve``; ``limit`` by NFE (``strict`` and ``tolerant``, see :func:`~cdmem.audit.limits.limit_record`),
        ``slow_phase`` and ``rmse_trend`` by NFE (None where they cannot be judged), ``lr_schedule``,
        ``constant_phase`` (first and last step at a constant rate, or None), ``length`` in words and ``error``.
    """
    rows = [row for row in MetricsRecord(folder).rows() if isinstance(row, dict) and "step" in row]
    shown = ("memorization/f_mem", "memorization/tolerant", "distillation/")
    curve = [{k: v for k, v in row.items() if k == "step" or k.startswith(shown)} for row in rows]
    by_nfe, (phase, half_life) = _evaluations(folder, copies, until), _course(folder)
    kept = folder / TEACHER
    teacher = copies.of(_read_rows(kept)) if kept.is_file() else {}
    limits, slow, rmse = {}, {}, {}
    for nfe, of in by_nfe.items():
        limits[str(nfe)] = {
            kind: limit_record(by_step, teacher.get(kind), phase, half_life, error)
            for kind, by_step in of.copies.items()
            if by_step
        }
        slow[str(nfe)] = slow_phase_record(of.copies["strict"], teacher.get("strict"), phase)
        trend = rmse_convergence(of.errors)
        rmse[str(nfe)] = None if trend is None else trend.record()
    return {
        "curve": [point for point in curve if len(point) > 1],
        "limit": limits,
        "slow_phase": slow,
        "rmse_trend": rmse,
        "lr_schedule": _lr_schedule(folder),
        "constant_phase": None if phase is None else list(phase),
        "length": _length(rows, until),
        "error": error,
    }
