"""Models of every capacity, trained on the same data, sampled and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdmem.theory.edge.denoisers import isotropic
from cdmem.theory.edge.losses import Denoiser, monte_carlo
from cdmem.theory.edge.mixture import Sizes, grid
from cdmem.theory.edge.sampling import Copies, copied, integrate, pooled, ratio_numbers, spread_ratio, tally
from cdmem.theory.edge.training import Learned, Training, train
from cdmem.theory.edge.transition import Means, Transition, count_means, refined, transition
from cdmem.theory.settings import number

SIDE_BY_SIDE = 400_000  # weights of a step; beyond, the padding costs more than the calls


@dataclass(frozen=True)
class Measurement:
    """Capacities, and samples and draws of each measurement.

    Attributes:
        capacities: capacities M, evenly from n / capacities to n.
        refine: about as many more inside the transition.
        samples: made per model.
        fresh: points for the test loss.
        loss_draws: noises per sample of the measured losses; published 100.
    """

    capacities: int = number(10, 2, 100)
    refine: int = number(5, 0, 100)
    samples: int = number(500, 10, 20_000)
    fresh: int = number(100, 2, 10_000)
    loss_draws: int = number(20, 2, 10_000)


@dataclass(frozen=True)
class Problem:
    """Data and references of one seed.

    Attributes:
        data: (N, ...) training points.
        fresh: (V, ...) points for validation.
        true_means: (K, ...).
        true: denoiser of the true mixture.
        noise: (S, ...) starts of the sampler.
        reference: (4096, ...) points of the true mixture, for the variance ratio.
        seed: of everything random on it.
    """

    data: Tensor
    fresh: Tensor
    true_means: Tensor
    true: Denoiser
    noise: Tensor
    reference: Tensor
    seed: int


Trainer = Callable[[Any, Sequence[int], int], Sequence[Learned]]  # problem, capacities, seed


@dataclass(frozen=True)
class Row:
    """What was measured at one capacity and seed."""

    capacity: int
    copies: Copies
    var: float
    means: Means
    spread: float
    train: list[float]
    fresh: list[float]


@dataclass
class CapacitySweep:
    """Models and measurements: rows[seed][k] and models[seed][k] belong to capacities[k]."""

    problems: list[Problem]
    times: list[float]
    capacities: list[int] = field(default_factory=list)
    rows: list[list[Row]] = field(init=False)
    models: list[list[Learned]] = field(init=False)

    def __post_init__(self) -> None:
        self.rows, self.models = [[] for _ in self.problems], [[] for _ in self.problems]

    @property
    def n(self) -> int:
        """Training points N."""
        return len(self.problems[0].data)

    @property
    def shares(self) -> list[float]:
        """The capacities as M/N."""
        return [m / self.n for m in self.capacities]

    def pooled(self) -> list[Copies]:
        """Memorisation ratio per capacity, all seeds together."""
        return [pooled([row[k].copies for row in self.rows]) for k in range(len(self.capacities))]

    def transition(self) -> Transition:
        """Of the pooled ratios."""
        return transition(self.capacities, self.pooled())

    def each(self) -> list[Transition]:
        """Of each seed alone."""
        return [transition(self.capacities, [r.copies for r in row]) for row in self.rows]

    def average(self, key: str) -> list[Any]:
        """A field of the rows, e.g. ``var`` or ``means.to_true``, averaged over seeds, per capacity."""
        table = np.array([[attrgetter(key)(row) for row in rows] for rows in self.rows], dtype=float)
        return table.mean(0).tolist()

    def numbers(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "capacity": self.capacities,
            **ratio_numbers(self.pooled()),
            "seeds": len(self.problems),
            "ratio_of_each_seed": [[row.copies.ratio for row in rows] for rows in self.rows],
            "transition": asdict(self.transition()),
            "transition_over_n": self.transition().shares(self.n),
            "M_pt_over_n_of_each_seed": [t.shares(self.n)["M_pt"] for t in self.each()],
            "variance": self.average("var"),
            "variance_ratio": self.average("spread"),
            "means": {key: self.average(f"means.{key}") for key in Means.__annotations__},
            "t": self.times,
            "train_loss": self.average("train"),
            "test_loss": self.average("fresh"),
        }


def gaussian_problem(sizes: Sizes, fresh: int, samples: int, seed: int) -> Problem:
    """Data of a mixture whose means are uniform on the sphere of radius sqrt(d), as published."""
    rng = np.random.default_rng(seed)

    def normal(count: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal((count, sizes.d)))

    directions = normal(sizes.k)
    means = directions / directions.norm(dim=1, keepdim=True) * sizes.d**0.5

    def draw(count: int) -> Tensor:
        labels = rng.integers(sizes.k, size=count)
        return means[labels] + sizes.variance**0.5 * normal(count)

    def true(x: Tensor, t: float) -> Tensor:
        return isotropic(x, t, means, sizes.variance)

    data, held, noise = draw(sizes.n), draw(fresh), normal(samples)
    return Problem(data, held, means, true, noise, draw(4096), seed)


def train_gaussians(problem: Problem, capacities: Sequence[int], seed: int, training: Training) -> list[Learned]:
    """Models of M means and a variance, as many side by side as pay."""
    members = max(1, SIDE_BY_SIDE // (training.draws * len(problem.data) * max(capacities)))
    parts = [capacities[k : k + members] for k in range(0, len(capacities), members)]
    return [model for part in parts for model in train(problem.data, part, training, seed)]


def steps_of(n: int, count: int) -> list[int]:
    """n/count, 2 n/count, ... n."""
    return sorted({max(1, round(n * k / count)) for k in range(1, count + 1)})


def measure_model(model: Learned, capacity: int, problem: Problem, times: Sequence[float], draws: int) -> Row:
    """Samples, learned means and losses of one trained model."""
    samples = integrate(model, problem.noise, grid())
    losses = [
        [monte_carlo(model, points, t, draws, problem.seed + k).mean for k, t in enumerate(times)]
        for points in (problem.data, problem.fresh)
    ]
    means = count_means(model.means, problem.true_means, problem.data)
    spread = spread_ratio(samples, problem.reference)
    return Row(capacity, tally(copied(samples, problem.data)), model.var, means, spread, *losses)


def sweep_capacities(
    problems: Sequence[Problem], trainer: Trainer, measurement: Measurement, times: Sequence[float]
) -> CapacitySweep:
    """All capacities n/count ... n, then about ``refine`` more inside the transition, on every seed."""
    sweep = CapacitySweep(list(problems), list(times))
    _add(sweep, steps_of(sweep.n, measurement.capacities), trainer, measurement.loss_draws, 0)
    if measurement.refine and (more := refined(sweep.capacities, sweep.pooled(), measurement.refine)):
        _add(sweep, more, trainer, measurement.loss_draws, 1)
    return sweep


def _add(sweep: CapacitySweep, capacities: list[int], trainer: Trainer, draws: int, part: int) -> None:
    order = np.argsort(sweep.capacities + capacities)
    for problem, rows, models in zip(sweep.problems, sweep.rows, sweep.models):
        more = trainer(problem, capacities, problem.seed * 2 + part)
        measured = [measure_model(model, m, problem, sweep.times, draws) for model, m in zip(more, capacities)]
        rows[:] = [[*rows, *measured][k] for k in order]
        models[:] = [[*models, *more][k] for k in order]
    sweep.capacities = sorted(sweep.capacities + capacities)
