"""M_pt over (N, d, K): the sweep, the law in N, and the fitted weight lambda~.

The effective weight lambda~ over noise levels (3.5) is the one under which the crossover of losses is M_pt. Published:
a soft-max over M with temperature 1/20 and an entropy penalty of 1e-3. **Assumed**: the squared difference is in units
of d^2 and lambda~ = exp(theta) with free scale, which the temperature needs; the penalty is on the entropy of that
soft-max; Adam from uniform weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from cdmem.theory.edge.capacity_sweep import Measurement, Trainer, gaussian_problem, sweep_capacities
from cdmem.theory.edge.mixture import Sizes, grid
from cdmem.theory.edge.transition import Transition
from cdmem.theory.edge.untrained import crossovers, untrained_losses
from cdmem.theory.settings import each, number

TEMPERATURE, PENALTY = 1 / 20, 1e-3
FINE = 200  # capacities between which the soft-max chooses
COUNT = 20  # capacities of L_pmem


@dataclass(frozen=True)
class Grid:
    """Combinations (N, d, K) of the sweep, N slowest.

    Attributes:
        n: numbers of training points; an empty list leaves the sweep out.
        d: dimensions.
        k: numbers of components.
        refine: about as many more capacities in each transition.
        seeds: data sets per combination, whose samples are pooled.
    """

    n: list[int] = field(default_factory=lambda: [30, 60], metadata=each(4, 2000, optional=True))
    d: list[int] = field(default_factory=lambda: [30, 50], metadata=each(2, 2000, optional=True))
    k: list[int] = field(default_factory=lambda: [3, 6], metadata=each(1, 2000, optional=True))
    refine: int = number(0, 0, 100)
    seeds: int = number(1, 1, 64)


@dataclass(frozen=True)
class Case:
    """One (N, d, K) for the fit.

    Attributes:
        d: dimension.
        shares: (M,) M/N of the losses.
        gap: (M, times) L_pmem - L_gen.
        target: measured M_pt / N.
    """

    d: int
    shares: np.ndarray
    gap: np.ndarray
    target: float


@dataclass(frozen=True)
class Cell:
    """One (N, d, K): the transition in capacities and the crossover of uniform weights."""

    sizes: Sizes
    transition: Transition
    capacities: list[int]
    ratios: list[float]
    uniform: float | None
    case: Case | None

    def numbers(self) -> dict[str, Any]:
        """For results.json."""
        return {
            **self.sizes.numbers(),
            "capacity": self.capacities,
            "ratio": self.ratios,
            "transition": asdict(self.transition),
            "M_pt_over_n": self.transition.shares(self.sizes.n)["M_pt"],
            "crossover_uniform": self.uniform,
        }


def measure(sizes: Sizes, trainer: Trainer, measurement: Measurement, seeds: Sequence[int]) -> Cell:
    """Train and measure one (N, d, K); the samples of all ``seeds`` are pooled, the losses are of the first."""
    problems = [gaussian_problem(sizes, measurement.fresh, measurement.samples, seed) for seed in seeds]
    sweep = sweep_capacities(problems, trainer, measurement, [])
    losses = untrained_losses(problems[0], grid().tolist(), COUNT, measurement.loss_draws)
    found, ratios = sweep.transition(), [c.ratio for c in sweep.pooled()]
    gap = losses.pmem_mean - np.array([e.mean for e in losses.gen])
    target, shares = found.shares(sizes.n)["M_pt"], np.array(losses.capacities) / sizes.n
    case = None if target is None else Case(sizes.d, shares, gap, target)
    uniform = crossovers(losses, problems[0].data, sizes.d, sizes.variance).uniform
    return Cell(sizes, found, sweep.capacities, ratios, uniform, case)


@dataclass(frozen=True)
class Law:
    """M_pt = slope N (least squares through the origin), with the spread of M_pt / N."""

    slope: float
    low: float
    high: float
    smallest: float
    largest: float
    tuples: int


def law(cells: Sequence[Cell], seed: int) -> Law | None:
    """The proportionality of M_pt and N with a bootstrap interval over (N, d, K); None for fewer than two."""
    reached = [(c.sizes.n, c.transition.middle) for c in cells if c.transition.middle is not None]
    points = np.array(reached, dtype=float)
    if len(points) < 2:
        return None
    rng = np.random.default_rng(seed)

    def slope(rows: np.ndarray) -> float:
        return float((rows[:, 0] * rows[:, 1]).sum() / (rows[:, 0] ** 2).sum())

    drawn = [slope(points[rng.integers(len(points), size=len(points))]) for _ in range(1000)]
    share = points[:, 1] / points[:, 0]
    ends = np.quantile(drawn, [0.025, 0.975])
    return Law(slope(points), float(ends[0]), float(ends[1]), float(share.min()), float(share.max()), len(points))


@dataclass(frozen=True)
class Fit:
    """The fitted weights and what they predict.

    Attributes:
        weights: lambda~ per time, normalised to sum 1.
        scale: their sum before that.
        predicted: M/N of every case, also of those not fitted.
        train: mean squared error of M/N over the fitted cases.
        test: over the others.
        constant: the same as test for the mean M_pt/N of the fitted cases, which uses no loss at all.
        fitted: which cases.
    """

    weights: list[float]
    scale: float
    predicted: list[float]
    train: float
    test: float
    constant: float
    fitted: list[bool]


def weights(cells: Sequence[Cell], seed: int) -> Fit | None:
    """lambda~ fitted on a random half of the cells, tested on the other; None for fewer than four."""
    cases = [c.case for c in cells if c.case is not None]
    if len(cases) < 4:
        return None
    order = np.random.default_rng(seed).permutation(len(cases))
    return fit(cases, [bool(k in order[: (len(cases) + 1) // 2]) for k in range(len(cases))])


def fit(cases: Sequence[Case], fitted: Sequence[bool], steps: int = 1500, rate: float = 0.05) -> Fit:
    """Fit lambda~ on the cases marked in ``fitted`` and predict all."""
    share = np.linspace(0.02, 1, FINE)
    shares, use = torch.from_numpy(share), torch.tensor(list(fitted))
    # Gaps per d at the same shares M/N for every case, interpolated: (cases, FINE, times).
    even = [np.stack([np.interp(share, c.shares, column) for column in c.gap.T], 1) / c.d for c in cases]
    gaps = torch.from_numpy(np.stack(even))
    target = torch.tensor([case.target for case in cases], dtype=torch.float64)
    theta = torch.full((gaps.shape[2],), float(np.log(1 / gaps.shape[2])), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=rate)

    def soft(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_p = torch.log_softmax(-((gaps @ theta.exp()) ** 2) / TEMPERATURE, 1)
        return log_p.exp() @ shares, -(log_p.exp() * log_p).sum(1)

    for _ in range(steps):
        predicted, entropy = soft(theta)
        loss = ((predicted - target)[use] ** 2).mean() + PENALTY * entropy[use].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        predicted, _ = soft(theta)
        error = (predicted - target) ** 2
        weights = theta.exp()
    return Fit(
        weights=(weights / weights.sum()).tolist(),
        scale=float(weights.sum()),
        predicted=predicted.tolist(),
        train=float(error[use].mean()),
        test=float(error[~use].mean()),
        constant=float(((target[~use] - target[use].mean()) ** 2).mean()),
        fitted=list(fitted),
    )
