"""Losses of the denoisers that are not trained (generalising, memorising, partly memorising), and the capacity at which
memorising M samples costs as little as knowing the mixture: M* of hypothesis (3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdmem.theory.curves import first_below
from cdmem.theory.edge.capacity_sweep import Problem, steps_of
from cdmem.theory.edge.denoisers import isotropic
from cdmem.theory.edge.losses import (
    Denoiser,
    constant,
    generalising,
    monte_carlo,
    nearest_loss,
    partly_memorising,
)
from cdmem.theory.measures import Interval


@dataclass(frozen=True)
class UntrainedLosses:
    """Losses of one seed on the training points.

    Attributes:
        times: of the losses.
        capacities: M of the partly memorising denoisers, ascending, the last is N.
        gen, mem: generalising and memorising, per time.
        pmem: (M, times) partly memorising.
        gen_fresh, mem_fresh, pmem_fresh: the same on fresh points.
        pmem_mean: the mean of ``pmem`` over all choices of M samples: what one choice differs from it by where there is
            little noise is known exactly and taken off.
    """

    times: list[float]
    capacities: list[int]
    gen: list[Interval]
    gen_fresh: list[Interval]
    mem: list[Interval]
    mem_fresh: list[Interval]
    pmem: np.ndarray
    pmem_fresh: np.ndarray
    pmem_mean: np.ndarray

    def numbers(self) -> dict[str, Any]:
        """For results.json, with intervals."""
        single = {"gen": self.gen, "gen_test": self.gen_fresh, "mem": self.mem, "mem_test": self.mem_fresh}
        keys = ("mean", "low", "high")
        ends = {name: {key: [getattr(e, key) for e in of] for key in keys} for name, of in single.items()}
        partly = {"pmem": self.pmem, "pmem_test": self.pmem_fresh}
        return {"t": self.times, **ends, "capacity": self.capacities, **partly}


def untrained_losses(problem: Problem, times: Sequence[float], count: int, draws: int) -> UntrainedLosses:
    """Losses by Monte Carlo with ``draws`` noises per point, at ``count`` capacities.

    The memorised samples are nested: a random order of the data, of which the first M are taken.
    """
    data, seed = problem.data, problem.seed
    order = torch.from_numpy(np.random.default_rng(seed + 7919).permutation(len(data)))
    capacities = steps_of(len(data), count)

    def of(denoise: Denoiser, points: Tensor) -> list[Interval]:
        return [monte_carlo(denoise, points, t, draws, seed + k) for k, t in enumerate(times)]

    def memorised(m: int) -> Denoiser:
        kept = data[order[:m]].flatten(1)
        return lambda x, t: isotropic(x.flatten(1), t, kept, 0.0).reshape(x.shape)

    both = (problem.data, problem.fresh)
    gen, gen_fresh = (of(problem.true, points) for points in both)
    mem, mem_fresh = (of(memorised(len(data)), points) for points in both)
    pmem, pmem_fresh = (np.array([[e.mean for e in of(memorised(m), points)] for m in capacities]) for points in both)
    chosen = np.array([nearest_loss(data, order[:m]) for m in capacities])
    mean = pmem + (partly_memorising(data, np.array(capacities)) - chosen)[:, None]
    return UntrainedLosses(list(times), capacities, gen, gen_fresh, mem, mem_fresh, pmem, pmem_fresh, mean)


def weighted(capacities: Sequence[float], partly: np.ndarray, general: np.ndarray, weights: np.ndarray) -> float | None:
    """M*(lambda): crossover of the losses averaged over times with weights lambda.

    Args:
        capacities: M, ascending.
        partly: (M, times) losses of the partly memorising denoisers.
        general: (times,) losses of the generalising one.
        weights: (times,) lambda.
    """
    w = np.asarray(weights, float) / np.sum(weights)
    return first_below(np.asarray(capacities, float).tolist(), partly @ w, float(general @ w))


def predicted(times: np.ndarray, weights: np.ndarray, variance: float, factor: float) -> float:
    """M*/N by formula (3.3): 1 - E[lambda / (psi s^2 + 1)] / (C E[lambda]), C = factor in [1, 2]."""
    t2 = np.asarray(times, float) ** 2
    share = t2 / ((1 - t2) * variance + t2)
    return 1 - float(np.average(share, weights=weights)) / factor


@dataclass(frozen=True)
class Crossovers:
    """M*/N on one data set, as in results.json; None where the losses do not cross.

    Attributes:
        per_t: Monte Carlo, one per time.
        per_t_formula: per time, from d s^2 / (psi s^2 + 1) and the nearest-neighbour average of L_pmem.
        uniform: for lambda = 1 over the grid, Monte Carlo.
        psi: for the training weight lambda = psi.
        uniform_formula_C_1_to_2: (3.3) for lambda = 1 with C = 1 and C = 2.
        pmem_formula: L_pmem of the losses' capacities by the exact average over choices of samples.
        C: of (3.2) per capacity but the last, by the nearest-neighbour average.
    """

    per_t: list[float | None]
    per_t_formula: list[float | None]
    uniform: float | None
    psi: float | None
    uniform_formula_C_1_to_2: tuple[float, float]
    pmem_formula: list[float]
    C: list[float]


def crossovers(losses: UntrainedLosses, data: Tensor, dim: int, variance: float) -> Crossovers:
    """All crossovers of one seed; ``data`` are its training points."""
    n, times = len(data), np.array(losses.times)
    gen = np.array([e.mean for e in losses.gen])
    fine = np.arange(1, n + 1)
    near = partly_memorising(data, fine)
    level = generalising(np.asarray(losses.times), dim, variance).numpy()
    psi = (1 - times**2) / times**2

    def over_n(m: float | None) -> float | None:
        return None if m is None else m / n

    eye = np.eye(len(times))
    flat = np.repeat(near[:, None], len(times), 1)
    return Crossovers(
        per_t=[over_n(weighted(losses.capacities, losses.pmem, gen, w)) for w in eye],
        per_t_formula=[over_n(weighted(list(fine), flat, level, w)) for w in eye],
        uniform=over_n(weighted(losses.capacities, losses.pmem, gen, np.ones(len(times)))),
        psi=over_n(weighted(losses.capacities, losses.pmem, gen, psi)),
        uniform_formula_C_1_to_2=tuple(predicted(times, np.ones(len(times)), variance, c) for c in (1.0, 2.0)),
        pmem_formula=[float(near[m - 1]) for m in losses.capacities],
        C=[constant(near[m - 1], m, n, dim, variance) for m in losses.capacities[:-1]],
    )
