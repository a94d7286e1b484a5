"""The effective weight lambda~ over noise levels (3.5): the one under which the crossover of losses is M_pt.

Published: a soft-max over M with temperature 1/20 and an entropy penalty of 1e-3. **Assumed**: the squared difference
is in units of d^2 and lambda~ = exp(theta) with free scale, which the temperature needs; the penalty is on the
entropy of that soft-max; Adam from uniform weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

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
