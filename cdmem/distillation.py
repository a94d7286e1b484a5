"""What a student's run folder tells about its distillation: the curve, and whether it had stopped changing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import yaml

from cdmem.metrics.convergence import BySeed, convergence, extrapolate, rmse_convergence
from cdmem.metrics.memorization import memorized
from cdmem.run import CONFIG, MetricsRecord, RunFolder


def _rows_by_nfe(folder: RunFolder, threshold: float) -> tuple[dict[int, BySeed], dict[int, BySeed]]:
    """Per NFE: step -> (seeds, memorised), and step -> (seeds, squared error to the teacher's endpoint)."""
    flags: dict[int, BySeed] = {}
    errors: dict[int, BySeed] = {}
    for file in sorted((folder / "evaluations").glob("step=*_nfe=*.npz")):
        step, nfe = (int(part.split("=")[1]) for part in file.stem.split("_"))
        with np.load(file, allow_pickle=False) as rows:
            squared = [torch.from_numpy(rows[name]) for name in ("squared1", "squared2")]
            flags.setdefault(nfe, {})[step] = (rows["seeds"], memorized(*squared, threshold).numpy())
            if "squared_error" in rows.files:
                errors.setdefault(nfe, {})[step] = (rows["seeds"], rows["squared_error"])
    return flags, errors


def distillation_record(folder: RunFolder, threshold: float) -> dict[str, Any]:
    """The student's curve along distillation, and by NFE whether f_mem and rmse had stopped changing.

    Returns:
        ``curve``, ``f_mem_trend``, ``rmse_trend`` and ``extrapolation`` by NFE (None where they cannot be judged) and
        ``lr_schedule``.
    """
    curve = []
    for row in MetricsRecord(folder).rows():
        values = {k: v for k, v in row.items() if k.startswith(("memorization/f_mem", "distillation/"))}
        if values:
            curve.append({"step": row["step"], **values})
    flags, errors = _rows_by_nfe(folder, threshold)
    f_mem = {nfe: convergence(by_step) for nfe, by_step in sorted(flags.items())}
    rmse = {nfe: rmse_convergence(errors.get(nfe, {})) for nfe in f_mem}
    settings = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    schedule = settings["model"]["init_args"].get("lr_schedule")
    return {
        "curve": curve,
        "f_mem_trend": {str(nfe): None if c is None else c.record() for nfe, c in f_mem.items()},
        "rmse_trend": {str(nfe): None if c is None else c.record() for nfe, c in rmse.items()},
        "extrapolation": {str(nfe): extrapolate(flags[nfe], errors.get(nfe, {})) for nfe in f_mem},
        "lr_schedule": schedule,
    }
