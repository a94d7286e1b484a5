"""What a student's run folder tells about its distillation: the curve, and whether it had stopped changing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdmem.errors import InputError
from cdmem.io.arrays import UNREADABLE, read_arrays
from cdmem.io.text import parse_yaml, read_text
from cdmem.metrics.comparison.convergence import BySeed, convergence, extrapolate, rmse_convergence
from cdmem.metrics.memorization.fraction import memorized
from cdmem.run.folder import CHANGES, CONFIG, RunFolder
from cdmem.run.metrics_log import MetricsRecord
from cdmem.training.checkpoint import read_checkpoint
from cdmem.training.settings import constant_phase, read_phases

NAME = re.compile(r"step=(\d{1,15})_nfe=(\d{1,6})\.npz")
COLUMNS = ("seeds", "squared1", "squared2")
OPTIMIZER = "model.init_args.optimization.optimizer"


def _rows_by_nfe(folder: RunFolder, threshold: float, until: int | None) -> tuple[dict[int, BySeed], dict[int, BySeed]]:
    """Per NFE: step -> (seeds, memorised), and step -> (seeds, squared error to the teacher's endpoint)."""
    flags: dict[int, BySeed] = {}
    errors: dict[int, BySeed] = {}
    for file in sorted((folder / "evaluations").glob("step=*_nfe=*.npz")):
        named = NAME.fullmatch(file.name)
        if named is None:
            continue
        step, nfe = map(int, named.groups())
        if until is not None and step > until:
            continue
        rows = _read_rows(file)
        squared = [torch.from_numpy(rows[name]) for name in ("squared1", "squared2")]
        flags.setdefault(nfe, {})[step] = (rows["seeds"], memorized(*squared, threshold).numpy())
        if "squared_error" in rows:
            errors.setdefault(nfe, {})[step] = (rows["seeds"], rows["squared_error"])
    return flags, errors


def _read_rows(file: Path) -> dict[str, np.ndarray]:
    """One evaluation's columns, as long as its seeds.

    Raises:
        InputError: torn, pickled or altered: the verdict rests on these files, so none is passed over.
    """
    try:
        rows = read_arrays(file, (*COLUMNS, "squared_error"))
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


def _constant_phase(folder: RunFolder) -> list[int] | None:
    """Steps [from, to] of the last stretch at a constant full rate, by the checkpoint's own schedule; None without one.

    Raises:
        InputError: a checkpoint or changes.json that cannot be read.
    """
    if not folder.last_checkpoint.is_file():
        return None
    try:
        phase = constant_phase(read_phases(read_checkpoint(folder.last_checkpoint).get("schedule") or ()))
        changes = folder.read_json(CHANGES) if (folder / CHANGES).is_file() else []
        # Another rate within the phase begins a new one.
        rates = [int(change["step"]) for change in changes if str(change["key"]).startswith(OPTIMIZER)]
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        problem = f"its learning rate cannot be read ({type(error).__name__})"
        raise InputError("changes", folder / CHANGES, problem, "restore what the run wrote") from None
    return None if phase is None else [max([phase[0], *(step for step in rates if step < phase[1])]), phase[1]]


def distillation_record(folder: RunFolder, threshold: float, until: int | None = None) -> dict[str, Any]:
    """The student's curve along distillation, and by NFE whether f_mem and rmse had stopped changing.

    Args:
        folder: of the student's run.
        threshold: memorised means d1 / d2 below it.
        until: the audited checkpoint's step; what came later says nothing about it.

    Returns:
        ``curve``, ``f_mem_trend``, ``rmse_trend`` and ``extrapolation`` by NFE (None where they cannot be judged),
        ``lr_schedule``, and ``constant_phase``: the steps [from, to] of its last stretch at the full rate, or None.
    """
    rows = (row for row in MetricsRecord(folder).rows() if isinstance(row, dict) and "step" in row)
    shown = ("memorization/f_mem", "distillation/")
    curve = [{k: v for k, v in row.items() if k == "step" or k.startswith(shown)} for row in rows]
    flags, errors = _rows_by_nfe(folder, threshold, until)
    f_mem = {nfe: convergence(by_step) for nfe, by_step in sorted(flags.items())}
    rmse = {nfe: rmse_convergence(errors.get(nfe, {})) for nfe in f_mem}
    return {
        "curve": [point for point in curve if len(point) > 1],
        "f_mem_trend": {str(nfe): None if c is None else c.record() for nfe, c in f_mem.items()},
        "rmse_trend": {str(nfe): None if c is None else c.record() for nfe, c in rmse.items()},
        "extrapolation": {str(nfe): extrapolate(flags[nfe], errors.get(nfe, {})) for nfe in f_mem},
        "lr_schedule": _lr_schedule(folder),
        "constant_phase": _constant_phase(folder),
    }
