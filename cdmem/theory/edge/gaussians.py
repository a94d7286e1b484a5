"""The isotropic experiment: losses and crossover of the untrained denoisers, and the trained ones at every capacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdmem.theory.edge.crossover import predicted, weighted
from cdmem.theory.edge.losses import constant, generalising, partly_memorising
from cdmem.theory.edge.numbers import reference_numbers, study_numbers
from cdmem.theory.edge.study import References, Study


@dataclass(frozen=True)
class Crossovers:
    """M*/N on one data set; None where the losses do not cross.

    Attributes:
        per_time: Monte Carlo, one per time.
        formula: per time, from d s^2 / (psi s^2 + 1) and the nearest-neighbour average of L_pmem.
        uniform: for lambda = 1 over the grid, Monte Carlo.
        psi: for the training weight lambda = psi.
        uniform_bounds: (3.3) for lambda = 1 with C = 1 and C = 2.
        nearest: L_pmem of the references' capacities by the exact average over choices of samples.
        constants: C of (3.2) per capacity but the last, by the nearest-neighbour average.
    """

    per_time: list[float | None]
    formula: list[float | None]
    uniform: float | None
    psi: float | None
    uniform_bounds: tuple[float, float]
    nearest: list[float]
    constants: list[float]


def crossovers(ref: References, data: Any, dim: int, variance: float) -> Crossovers:
    """All crossovers of one seed's references; ``data`` are its training points."""
    n, times = len(data), np.array(ref.times)
    gen = np.array([e.mean for e in ref.gen])
    fine = np.arange(1, n + 1)
    near = partly_memorising(data, fine)
    level = generalising(np.asarray(ref.times), dim, variance).numpy()
    psi = (1 - times**2) / times**2

    def over_n(m: float | None) -> float | None:
        return None if m is None else m / n

    eye = np.eye(len(times))
    flat = np.repeat(near[:, None], len(times), 1)
    return Crossovers(
        per_time=[over_n(weighted(ref.capacities, ref.pmem, gen, w)) for w in eye],
        formula=[over_n(weighted(list(fine), flat, level, w)) for w in eye],
        uniform=over_n(weighted(ref.capacities, ref.pmem, gen, np.ones(len(times)))),
        psi=over_n(weighted(ref.capacities, ref.pmem, gen, psi)),
        uniform_bounds=tuple(predicted(times, np.ones(len(times)), variance, c) for c in (1.0, 2.0)),
        nearest=[float(near[m - 1]) for m in ref.capacities],
        constants=[constant(near[m - 1], m, n, dim, variance) for m in ref.capacities[:-1]],
    )


def gaussian_results(found: Study, ref: References, cross: Crossovers, times: Sequence[float]) -> dict[str, Any]:
    """For results.json."""
    return {
        "losses": reference_numbers(ref),
        "crossover": {
            "per_t": cross.per_time,
            "per_t_formula": cross.formula,
            "uniform": cross.uniform,
            "psi": cross.psi,
            "uniform_formula_C_1_to_2": cross.uniform_bounds,
            "pmem_formula": cross.nearest,
            "C": cross.constants,
        },
        "trained": study_numbers(found, list(times)),
    }
