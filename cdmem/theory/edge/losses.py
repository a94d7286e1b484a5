"""Denoising losses L_{N,t} = (1/N) sum_i E |xbar(t, x_t^i) - x^i|^2 by Monte Carlo and by formula, and where they cross.

The effective weight lambda~ over noise levels (3.5) is the one under which the crossover is M_pt. Published: a soft-max
over M with temperature 1/20 and an entropy penalty of 1e-3. **Assumed**: the squared difference is in units of d^2 and
lambda~ = exp(theta) with free scale, which the temperature needs; the penalty is on the entropy of that soft-max; Adam
from uniform weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from cdmem.theory.edge.mixture import noisy, psi

Denoiser = Callable[[Tensor, float], Tensor]  # (R, ...) points and one time -> posterior means
Z95 = 1.959963984540054
BLOCK = 4096  # points at a time


@dataclass(frozen=True)
class Estimate:
    """A Monte-Carlo mean with its 95 % interval over the noise draws, for fixed data."""

    mean: float
    low: float
    high: float


def monte_carlo(denoise: Denoiser, data: Tensor, t: float, draws: int, seed: int) -> Estimate:
    """Loss of a denoiser at a time.

    Args:
        denoise: the denoiser.
        data: (N, ...) points, float64.
        t: the time.
        draws: noises per point, 2 or more.
        seed: of the noise: the same seed gives every denoiser the same noise.
    """
    generator = torch.Generator().manual_seed(seed)
    per_draw = max(1, BLOCK // len(data))
    errors = []
    for start in range(0, draws, per_draw):
        count = min(per_draw, draws - start)
        z = torch.randn(count, *data.shape, generator=generator, dtype=data.dtype)
        flat = data.flatten(1)
        x = noisy(flat, torch.tensor(t, dtype=data.dtype), z.flatten(2)).reshape(-1, *data.shape[1:])
        off = (denoise(x, t).reshape(z.shape) - data).flatten(2)
        errors.append((off**2).sum(-1))
    table = torch.cat(errors)  # (draws, N)
    mean = float(table.mean())
    half = Z95 * math.sqrt(float(table.var(0).sum()) / draws) / len(data) if draws > 1 else math.nan
    return Estimate(mean, mean - half, mean + half)


def generalising(t: Tensor | float, dim: int, variance: float = 1.0) -> Tensor:
    """L of the true mixture with separated means: d s^2 / (psi s^2 + 1); dim is the rank d of the covariance."""
    return dim * variance / (psi(torch.as_tensor(t, dtype=torch.float64)) * variance + 1)


def partly_memorising(data: Tensor, capacities: np.ndarray) -> np.ndarray:
    """L of M memorised samples where the posterior picks one of them, averaged exactly over all subsets of M samples.

    A sample costs nothing if it is memorised, else its squared distance to the nearest memorised one: to its k-th
    neighbour with probability C(N - 1 - k, M - 1) / C(N, M). This is the limit of little noise, where (3.2) holds.

    Args:
        data: (N, ...) points.
        capacities: numbers M, 1 to N.

    Returns:
        one loss per M.
    """
    flat = data.flatten(1)
    n = len(flat)
    far = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    ranks = far.sort(1).values[:, 1:].mean(0).numpy()  # mean squared distance to the k-th neighbour
    m = np.asarray(capacities, dtype=float)[:, None]
    left = n - 1 - np.arange(1, n)[None, :]
    fits = left >= m - 1
    log_p = gammaln(np.where(fits, left, n) + 1) - gammaln(m) - gammaln(np.where(fits, left - m + 1, 0) + 1)
    log_p -= gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)
    return (np.exp(np.where(fits, log_p, -np.inf)) * ranks).sum(1)


def nearest_loss(data: Tensor, kept: Tensor) -> float:
    """The same for one choice: mean squared distance of the points (N, ...) to the nearest of those ``kept`` (M,)."""
    flat = data.flatten(1)
    return float((torch.cdist(flat, flat[kept], compute_mode="donot_use_mm_for_euclid_dist") ** 2).min(1).values.mean())


def constant(loss: float, capacity: int, n: int, dim: int, variance: float = 1.0) -> float:
    """C of (3.2), L_pmem - L_mem = C (1 - M/N) d s^2."""
    return loss / ((1 - capacity / n) * dim * variance)


def first_below(capacities: Sequence[float], partly: Sequence[float], level: float) -> float | None:
    """The capacity, between two given ones by interpolation, from which on the partly memorising loss is no more than
    the generalising one; None if it stays above."""
    m, gap = np.asarray(capacities, float), np.asarray(partly, float) - level
    below = np.flatnonzero(gap <= 0)
    if not len(below):
        return None
    k = int(below[0])
    if k == 0:
        return float(m[0])
    return float(m[k - 1] + (m[k] - m[k - 1]) * gap[k - 1] / (gap[k - 1] - gap[k]))


def weighted(capacities: Sequence[float], partly: np.ndarray, general: np.ndarray, weights: np.ndarray) -> float | None:
    """M*(lambda): crossover of the losses averaged over times with weights lambda.

    Args:
        capacities: M, ascending.
        partly: (M, times) losses of the partly memorising denoisers.
        general: (times,) losses of the generalising one.
        weights: (times,) lambda.
    """
    w = np.asarray(weights, float) / np.sum(weights)
    return first_below(capacities, partly @ w, float(general @ w))


def predicted(times: np.ndarray, weights: np.ndarray, variance: float, factor: float) -> float:
    """M*/N by formula (3.3): 1 - E[lambda / (psi s^2 + 1)] / (C E[lambda]), C = factor in [1, 2]."""
    t2 = np.asarray(times, float) ** 2
    share = t2 / ((1 - t2) * variance + t2)
    return 1 - float(np.average(share, weights=weights)) / factor


TEMPERATURE, PENALTY = 1 / 20, 1e-3


@dataclass(frozen=True)
class Case:
    """One (N, d, K).

    Attributes:
        n, d, k: the tuple.
        capacities: M of the losses.
        gap: (M, times) L_pmem - L_gen.
        target: measured M_pt / N.
    """

    n: int
    d: int
    k: int
    capacities: np.ndarray
    gap: np.ndarray
    target: float


@dataclass(frozen=True)
class Fit:
    """The fitted weights and what they predict.

    Attributes:
        weights: lambda~ per time, normalised to sum 1.
        scale: their sum before that.
        predicted: M/N of every case, also of those not fitted.
        train: mean squared error of M/N over the fitted cases.
        test: over the others; None without any.
        constant: the same as test for the mean M_pt/N of the fitted cases, which uses no loss at all.
    """

    weights: list[float]
    scale: float
    predicted: list[float]
    train: float
    test: float | None
    constant: float | None


FINE = 200  # capacities between which the soft-max chooses


def fit(cases: Sequence[Case], fitted: Sequence[bool], steps: int = 1500, rate: float = 0.05) -> Fit:
    """Fit lambda~ on the cases marked in ``fitted`` and predict all."""
    share = np.linspace(0.02, 1, FINE)
    gaps = torch.stack([torch.from_numpy(_resampled(case, share)) for case in cases])  # (cases, FINE, times)
    target = torch.tensor([case.target for case in cases], dtype=torch.float64)
    use = torch.tensor(list(fitted))
    grid = torch.from_numpy(share)
    theta = torch.full((gaps.shape[2],), float(np.log(1 / gaps.shape[2])), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=rate)

    def soft(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_p = torch.log_softmax(-((gaps @ theta.exp()) ** 2) / TEMPERATURE, 1)
        return log_p.exp() @ grid, -(log_p.exp() * log_p).sum(1)

    for _ in range(steps):
        found, entropy = soft(theta)
        loss = ((found - target)[use] ** 2).mean() + PENALTY * entropy[use].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        found, _ = soft(theta)
        error = (found - target) ** 2
        weights = theta.exp()
    rest = ~use
    return Fit(
        weights=(weights / weights.sum()).tolist(),
        scale=float(weights.sum()),
        predicted=found.tolist(),
        train=float(error[use].mean()),
        test=float(error[rest].mean()) if rest.any() else None,
        constant=float(((target[rest] - target[use].mean()) ** 2).mean()) if rest.any() else None,
    )


def _resampled(case: Case, share: np.ndarray) -> np.ndarray:
    """Gaps per d at the same shares M/N for every case, interpolated."""
    at = np.asarray(case.capacities) / case.n
    return np.stack([np.interp(share, at, column) for column in case.gap.T], 1) / case.d
