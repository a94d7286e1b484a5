"""The isotropic experiment at one (N, d, K): losses and crossover of the untrained denoisers, and a trained model at
every capacity, sampled and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cdmem.theory.edge.denoisers import isotropic
from cdmem.theory.edge.losses import (
    Denoiser,
    Estimate,
    constant,
    generalising,
    monte_carlo,
    nearest_loss,
    partly_memorising,
    predicted,
    weighted,
)
from cdmem.theory.edge.mixture import Mixture, grid, on_sphere
from cdmem.theory.edge.sampling import Copies, copies, integrate, pooled, spread_ratio
from cdmem.theory.edge.training import Learned, Schedule, train
from cdmem.theory.edge.transition import Means, Transition, count_means, refined, transition


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


def shares(found: Transition, n: int) -> dict[str, float | None]:
    """A transition as shares M/N: start, end, M_pt and its interval."""
    values = {"start": found.start, "end": found.end, "M_pt": found.middle, "low": found.low, "high": found.high}
    return {key: None if value is None else value / n for key, value in values.items()}


def averages(found: Study, key: str) -> list[Any]:
    """A field of the rows, averaged over seeds, per capacity."""
    table = np.array([[getattr(row, key) for row in rows] for rows in found.rows], dtype=float)
    return table.mean(0).tolist()


def mean_book(found: Study, key: str) -> list[Any]:
    """A field of the bookkeeping of means, averaged over seeds, per capacity."""
    table = np.array([[getattr(row.means, key) for row in rows] for rows in found.rows], dtype=float)
    return table.mean(0).tolist()


def study_numbers(found: Study, times: list[float]) -> dict[str, Any]:
    """Everything measured on the trained models."""
    n = len(found.problems[0].data)
    both = found.pooled()
    book = ("near_true", "near_sample", "to_true", "to_sample", "to_true_percentiles", "to_sample_percentiles")
    return {
        "capacity": found.capacities,
        "ratio": [c.ratio for c in both],
        "ratio_low": [c.low for c in both],
        "ratio_high": [c.high for c in both],
        "samples": both[0].samples,
        "seeds": len(found.problems),
        "ratio_of_each_seed": [[row.copies.ratio for row in rows] for rows in found.rows],
        "transition": asdict(found.transition()),
        "transition_over_n": shares(found.transition(), n),
        "M_pt_over_n_of_each_seed": [None if t.middle is None else t.middle / n for t in found.each()],
        "variance": averages(found, "var"),
        "variance_ratio": averages(found, "spread"),
        "means": {key: mean_book(found, key) for key in book},
        "t": times,
        "train_loss": averages(found, "train"),
        "test_loss": averages(found, "fresh"),
    }


def reference_numbers(found: References) -> dict[str, Any]:
    """Losses of generalising, memorising and partly memorising denoisers of one seed, with intervals."""
    single = {
        key: {"mean": [e.mean for e in value], "low": [e.low for e in value], "high": [e.high for e in value]}
        for key, value in (
            ("gen", found.gen),
            ("gen_test", found.gen_fresh),
            ("mem", found.mem),
            ("mem_test", found.mem_fresh),
        )
    }
    return {
        "t": found.times,
        **single,
        "capacity": found.capacities,
        "pmem": found.pmem,
        "pmem_test": found.pmem_fresh,
    }
