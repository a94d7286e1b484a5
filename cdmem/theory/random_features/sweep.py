"""Losses and score error along training for several psi_n and seeds, and what they have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdmem.theory.curves import crossing
from cdmem.theory.experiment import Progress
from cdmem.theory.random_features.flow import curve, modes
from cdmem.theory.random_features.model import gaussian_data, make_features
from cdmem.theory.random_features.moments import population_moments, training_moments

PER_DECADE = 12
ONSET = 0.2  # of L_gen; the data have variance 1, and so has the loss of no training


@dataclass(frozen=True)
class Sweep:
    """Training loss, test loss and score error (psi_n, seeds, times) at the times ``tau``, for n / d = ``psi_n`` as
    rounded; ``error`` is the largest bound on an entry of U."""

    psi_n: list[float]
    tau: np.ndarray
    train: np.ndarray
    test: np.ndarray
    score: np.ndarray
    error: float

    def gap(self) -> np.ndarray:
        """L_gen = test less train."""
        return self.test - self.train


def times_for(low: float, high: float) -> np.ndarray:
    """Geometric, 12 per decade, from a tenth of the fastest to a hundred times the slowest time."""
    first, last = math.floor(math.log10(low) * PER_DECADE), math.ceil(math.log10(high) * PER_DECADE)
    return 10 ** (np.arange(first, last + 1) / PER_DECADE)


def run_sweep(
    d: int, p: int, psi_ns: Sequence[float], spectrum: np.ndarray, t: float, activation: str, tau: np.ndarray,
    seeds: int, seed: int, progress: Progress,
) -> Sweep:  # fmt: skip
    """Exact moments, one eigen-decomposition per psi_n and seed. A seed keeps its weights over all psi_n, and the
    points of a small set are the first of every larger one."""
    counts = [max(round(x * d), 1) for x in psi_ns]
    losses = np.empty((3, len(counts), seeds, len(tau)))
    error = 0.0
    for k in range(seeds):
        rng = np.random.default_rng([seed, k])
        features = make_features(p, d, rng, activation)
        points = gaussian_data(max(counts), spectrum, rng)
        population = population_moments(features, spectrum, t)
        for i, n in enumerate(progress.bar(counts, f"trainings of seed {k + 1} of {seeds}")):
            moments = training_moments(features, points[:n], t)
            losses[:, i, k] = curve(modes(moments, t), population, features.psi_p, tau)
            error = max(error, moments.error, population.error)
    return Sweep([n / d for n in counts], tau, *losses, error)


@dataclass(frozen=True)
class Onset:
    """Times of one psi_n, by means over seeds: at which L_gen reaches 0.2 (None if it never does), at which it is half
    of what it is in the end, and of the least test loss."""

    onset: float | None
    half: float | None
    best: float


def onsets(sweep: Sweep) -> list[Onset]:
    """One per psi_n."""
    rows = []
    for test, gap in zip(sweep.test.mean(1), sweep.gap().mean(1)):
        times = (crossing(sweep.tau, gap, level, log_x=True) for level in (ONSET, gap[-1] / 2))
        rows.append(Onset(*times, float(sweep.tau[int(test.argmin())])))
    return rows


def least_score(sweep: Sweep) -> np.ndarray:
    """E_score* (psi_n, seeds): the least score error along training, by a parabola in ln tau around it."""
    k = np.clip(sweep.score.argmin(-1), 1, len(sweep.tau) - 2)[..., None]
    a, b, c = (np.take_along_axis(sweep.score, k + shift, -1)[..., 0] for shift in (-1, 0, 1))
    bend = a - 2 * b + c
    return b - np.where(bend > 0, (a - c) ** 2 / (8 * np.where(bend > 0, bend, 1.0)), 0.0)
