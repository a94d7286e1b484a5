"""How much of a path or of a student's output is target, how much is not, and how that goes with memorisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from cdmem.theory.decomposition.paths import Path, exact_schedule

LEAST_PATHS = 5  # of one target
RESAMPLES = 500


@dataclass(frozen=True)
class Parts:
    """Of B paths over K levels; float64, (K, B).

    Attributes:
        w_0, w_T: least squares of x_t - alpha_t mu on x* - mu and x_T - alpha_T mu, variance-preserving frame.
        residual: |x_t - fit|^2 / |x_t|^2, mean-centred.
        a: <D - mu, x* - mu> / |x* - mu|^2, the estimate's share of the target: above 1 it overshoots.
        across: |D - mu - a (x* - mu)| / |x* - mu|.
        posterior: probability of x* given x_t under the training law.
        D_1, D_2: (B,) sums over levels of w_0 above and w_T below the exact schedule.
        commitment: (B,) the largest sigma with posterior above one half; 0 if none.
    """

    w_0: Tensor
    w_T: Tensor
    residual: Tensor
    a: Tensor
    across: Tensor
    posterior: Tensor
    D_1: Tensor
    D_2: Tensor
    commitment: Tensor


def posterior(states: Tensor, sigmas: Tensor, images: Tensor, weights: Tensor) -> Tensor:
    """p(x_j | x_t), (K, B, n), for states in the variance-exploding frame (K, B, size), images (n, size) with
    weights."""
    far = torch.cdist(states, images[None].expand(len(states), -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
    return torch.softmax(weights.double().log() - far**2 / (2 * sigmas[:, None, None] ** 2), -1)


def decompose(path: Path, images: Tensor, weights: Tensor, index: Tensor) -> Parts:
    """The parts of each path for its target x*, which is the image ``index`` (B,) of T (n, size), distinct, float64,
    with multiplicities ``weights`` (n,)."""
    sigmas, alphas = path.sigmas[:-1], path.alphas[:-1]
    mean = (weights.double()[:, None] * images).sum(0) / weights.sum()
    x, goal = path.states[:-1] - mean, images[index] - mean  # in the VE frame centring is the same at every level
    state, start = alphas[:, None, None] * x, alphas[0] * x[0]
    gram = torch.stack([(goal**2).sum(1), (goal * start).sum(1), (start**2).sum(1)])
    right = torch.stack([(state * goal).sum(2), (state * start).sum(2)])
    det = gram[0] * gram[2] - gram[1] ** 2
    w_0 = (gram[2] * right[0] - gram[1] * right[1]) / det
    w_T = (gram[0] * right[1] - gram[1] * right[0]) / det
    left = state - w_0[..., None] * goal - w_T[..., None] * start
    estimate = path.clean - mean
    a = (estimate * goal).sum(2) / gram[0]
    across = (estimate - a[..., None] * goal).norm(dim=2) / gram[0].sqrt()
    mass = posterior(path.states[:-1], sigmas, images, weights)[:, torch.arange(len(index)), index]
    exact_0, exact_T = exact_schedule(sigmas)
    decided = torch.where(mass > 0.5, sigmas[:, None], torch.zeros_like(mass))
    return Parts(
        w_0, w_T, (left**2).sum(2) / (state**2).sum(2), a, across, mass,
        (w_0 - exact_0[:, None]).sum(0), -(w_T - exact_T[:, None]).sum(0), decided.amax(0),
    )  # fmt: skip


def diversity(path: Path, groups: Tensor) -> tuple[Tensor, int]:
    """Variance of x_t (variance-preserving frame) among at least five paths that end at the same target ``groups``
    (B,), over that at the start.

    Returns:
        the ratio (K,), mean over targets (the exact schedule predicts w_T^2), and the number of targets.
    """
    states = path.alphas[:-1, None, None] * path.states[:-1]
    ratios = []
    for g in groups.unique():
        of = states[:, groups == g]
        if of.shape[1] >= LEAST_PATHS:
            spread = of.var(1).sum(1)
            ratios.append(spread / spread[0])
    return (torch.stack(ratios).mean(0) if ratios else torch.full((len(states),), float("nan"))), len(ratios)


@dataclass(frozen=True)
class Correlation:
    """Value and 95 % interval over bootstraps of the samples (percentiles); NaN without spread."""

    value: float
    low: float
    high: float


def _of(kind: str, x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float((pearsonr if kind == "pearson" else spearmanr)(x, y).statistic)


def correlate(kind: str, x: np.ndarray, y: np.ndarray, seed: int) -> Correlation:
    """``pearson`` or ``spearman`` of two lists; what is not finite in either is left out."""
    fine = np.isfinite(x) & np.isfinite(y)
    x, y = x[fine], y[fine]
    rng = np.random.default_rng(seed)
    drawn = [_of(kind, x[k], y[k]) for k in rng.integers(0, max(len(x), 1), (RESAMPLES, len(x)))]
    drawn = [v for v in drawn if math.isfinite(v)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (math.nan, math.nan)
    return Correlation(_of(kind, x, y), float(low), float(high))


@dataclass(frozen=True)
class Split:
    """Of B outputs: ``a`` along x* - mu, ``across`` in units of |x* - mu|, ``cosine`` with the teacher's output (both
    mean-centred)."""

    a: Tensor
    across: Tensor
    cosine: Tensor


def split(output: Tensor, teacher: Tensor, target: Tensor, mean: Tensor) -> Split:
    """From outputs, teacher's endpoints and targets (B, size), and the mean (size,)."""
    y, t, goal = output.double() - mean, teacher.double() - mean, target.double() - mean
    a = (y * goal).sum(1) / (goal**2).sum(1)
    across = (y - a[:, None] * goal).norm(dim=1) / goal.norm(dim=1)
    return Split(a, across, torch.nn.functional.cosine_similarity(y, t, dim=1))
