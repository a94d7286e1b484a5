"""One (N, d, K): train every capacity on one data set, sample, and measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cdmem.theory.edge.bookkeeping import Means, count_means
from cdmem.theory.edge.capacity import Learned, train
from cdmem.theory.edge.denoisers import isotropic
from cdmem.theory.edge.losses import Denoiser, Estimate, monte_carlo, nearest_loss, partly_memorising
from cdmem.theory.edge.mixture import Mixture, on_sphere
from cdmem.theory.edge.optimiser import Schedule
from cdmem.theory.edge.process import grid
from cdmem.theory.edge.sampling import Copies, copies, integrate, pooled, spread_ratio
from cdmem.theory.edge.transition import Transition, refined, transition


class Model(Protocol):
    """A trained model: a denoiser with means and a variance."""

    @property
    def means(self) -> Tensor:
        """(M, ...)."""

    @property
    def var(self) -> float:
        """Shared variance s^2."""

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Posterior means of points at a time."""


SIDE_BY_SIDE = 400_000  # weights of a step; beyond, the padding costs more than the calls
Trainer = Callable[[Tensor, Sequence[int], int], Sequence[Model]]  # data, capacities, seed


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


@dataclass(frozen=True)
class References:
    """Losses of the denoisers that are not trained, of one seed.

    Attributes:
        times: of the losses.
        capacities: M of the partly memorising denoisers, ascending, the last is N.
        gen: on the training points, per time.
        gen_fresh: on fresh points.
        mem: on the training points.
        mem_fresh: on fresh points.
        pmem: (M, times) on the training points.
        pmem_fresh: (M, times) on fresh points.
        pmem_mean: (M, times) on the training points, the mean over all choices of M samples: what one choice differs
            from it by where there is little noise is known exactly and taken off.
    """

    times: list[float]
    capacities: list[int]
    gen: list[Estimate]
    gen_fresh: list[Estimate]
    mem: list[Estimate]
    mem_fresh: list[Estimate]
    pmem: np.ndarray
    pmem_fresh: np.ndarray
    pmem_mean: np.ndarray


@dataclass
class Study:
    """A sweep over capacities: rows[seed][k] belongs to capacities[k]."""

    problems: list[Problem]
    capacities: list[int] = field(default_factory=list)
    rows: list[list[Row]] = field(default_factory=list)
    models: list[list[Model]] = field(default_factory=list)

    def pooled(self) -> list[Copies]:
        """Memorisation ratio per capacity, all seeds together."""
        return [pooled([row[k].copies for row in self.rows]) for k in range(len(self.capacities))]

    def transition(self) -> Transition:
        """Of the pooled ratios."""
        return transition(self.capacities, self.pooled())

    def each(self) -> list[Transition]:
        """Of each seed alone."""
        return [transition(self.capacities, [r.copies for r in row]) for row in self.rows]


def gaussian_problem(n: int, d: int, k: int, variance: float, fresh: int, samples: int, seed: int) -> Problem:
    """A mixture with means on the sphere, and its data."""
    rng = np.random.default_rng(seed)
    mixture: Mixture = on_sphere(d, k, rng, variance)

    def true(x: Tensor, t: float) -> Tensor:
        return isotropic(x, t, mixture.means, mixture.variance)

    data, held = mixture.sample(n, rng), mixture.sample(fresh, rng)
    noise = torch.from_numpy(rng.standard_normal((samples, d)))
    return Problem(data, held, mixture.means, true, noise, mixture.sample(4096, rng), seed)


def gaussian_trainer(schedule: Schedule, draws: int, tick: Callable[[], None] = lambda: None) -> Trainer:
    """Trains M means and a variance, as many models side by side as pay."""

    def run(data: Tensor, capacities: Sequence[int], seed: int) -> list[Learned]:
        members = max(1, SIDE_BY_SIDE // (draws * len(data) * max(capacities)))
        parts = [capacities[k : k + members] for k in range(0, len(capacities), members)]
        return [model for part in parts for model in train(data, part, schedule, draws, seed, tick)]

    return run


def steps_of(n: int, count: int) -> list[int]:
    """n/count, 2 n/count, ... n."""
    return sorted({max(1, round(n * k / count)) for k in range(1, count + 1)})


def measure(model: Model, capacity: int, problem: Problem, times: Sequence[float], draws: int) -> Row:
    """Samples, bookkeeping and losses of one trained model."""
    samples = integrate(model, problem.noise, grid())
    losses = [
        [monte_carlo(model, points, t, draws, problem.seed + k).mean for k, t in enumerate(times)]
        for points in (problem.data, problem.fresh)
    ]
    book = count_means(model.means, problem.true_means, problem.data)
    return Row(
        capacity, copies(samples, problem.data), model.var, book, spread_ratio(samples, problem.reference), *losses
    )


def study(
    problems: Sequence[Problem], trainer: Trainer, count: int, extra: int, times: Sequence[float], draws: int
) -> Study:
    """All capacities n/count ... n, then about ``extra`` more inside the transition, on every seed."""
    found = Study(list(problems))
    n = len(problems[0].data)
    _add(found, steps_of(n, count), trainer, times, draws, 0)
    if extra:
        more = refined(found.capacities, found.pooled(), extra)
        if more:
            _add(found, more, trainer, times, draws, 1)
    return found


def _add(found: Study, capacities: list[int], trainer: Trainer, times: Sequence[float], draws: int, part: int) -> None:
    order = np.argsort(found.capacities + capacities, kind="stable")
    for s, problem in enumerate(found.problems):
        models = list(trainer(problem.data, capacities, problem.seed * 2 + part))
        rows = [measure(model, m, problem, times, draws) for model, m in zip(models, capacities)]
        if len(found.rows) <= s:
            found.rows.append([])
            found.models.append([])
        together, both = found.rows[s] + rows, found.models[s] + models
        found.rows[s] = [together[k] for k in order]
        found.models[s] = [both[k] for k in order]
    found.capacities = sorted(found.capacities + capacities)


def references(problem: Problem, times: Sequence[float], count: int, draws: int) -> References:
    """Losses of the generalising, the memorising and the partly memorising denoisers.

    The memorised samples are nested: a random order of the data, of which the first M are taken.
    """
    data, seed = problem.data, problem.seed
    order = torch.from_numpy(np.random.default_rng(seed + 7919).permutation(len(data)))
    capacities = steps_of(len(data), count)

    def of(denoise: Denoiser, points: Tensor) -> list[Estimate]:
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
    return References([float(t) for t in times], capacities, gen, gen_fresh, mem, mem_fresh, pmem, pmem_fresh, mean)
