"""Denoising losses L_{N,t} = (1/N) sum_i E |xbar(t, x_t^i) - x^i|^2: by Monte Carlo with intervals, and by formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from cdmem.theory.edge.mixture import noisy, psi
from cdmem.theory.measures import Interval

Denoiser = Callable[[Tensor, float], Tensor]  # (R, ...) points and one time -> posterior means
Z95 = 1.959963984540054
BLOCK = 4096  # points at a time


def monte_carlo(denoise: Denoiser, data: Tensor, t: float, draws: int, seed: int) -> Interval:
    """Loss of a denoiser at a time, with its 95 % interval over the noise draws, for fixed data.

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
        z = torch.randn(min(per_draw, draws - start), *data.shape, generator=generator, dtype=data.dtype)
        x = noisy(data.flatten(1), torch.tensor(t, dtype=data.dtype), z.flatten(2)).reshape(-1, *data.shape[1:])
        off = (denoise(x, t).reshape(z.shape) - data).flatten(2)
        errors.append((off**2).sum(-1))
    table = torch.cat(errors)  # (draws, N)
    mean = float(table.mean())
    half = Z95 * math.sqrt(float(table.var(0).sum()) / draws) / len(data)
    return Interval(mean, mean - half, mean + half)


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
