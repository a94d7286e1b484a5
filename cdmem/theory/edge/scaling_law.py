"""M_pt over (N, d, K): the sweep, the law in N, and the fitted weight lambda~."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from cdmem.theory.edge.capacity_sweep import Trainer, crossovers, gaussian_problem, references, study
from cdmem.theory.edge.losses import Case, Fit, fit
from cdmem.theory.edge.transition import Transition


@dataclass(frozen=True)
class Tuple:
    """One (N, d, K): the transition in capacities and the crossover of uniform weights."""

    n: int
    d: int
    k: int
    transition: Transition
    capacities: list[int]
    ratios: list[float]
    uniform: float | None
    case: Case | None

    def numbers(self) -> dict[str, object]:
        """For results.json."""
        found = {"N": self.n, "d": self.d, "K": self.k, "capacity": self.capacities, "ratio": self.ratios}
        middle = self.transition.middle
        return {
            **found,
            "transition": asdict(self.transition),
            "M_pt_over_n": None if middle is None else middle / self.n,
            "crossover_uniform": self.uniform,
        }


@dataclass(frozen=True)
class Law:
    """M_pt = slope N (least squares through the origin), with the spread of M_pt / N."""

    slope: float
    low: float
    high: float
    smallest: float
    largest: float
    tuples: int


def tuples_of(n: Sequence[int], d: Sequence[int], k: Sequence[int]) -> list[tuple[int, int, int]]:
    """All combinations, N slowest."""
    return list(itertools.product(n, d, k))


def one(
    n: int,
    d: int,
    k: int,
    variance: float,
    trainer: Trainer,
    counts: tuple[int, int, int, int],
    draws: int,
    times: Sequence[float],
    seeds: Sequence[int],
) -> Tuple:
    """Train and measure a tuple.

    Args:
        n, d, k: the tuple.
        variance: s*^2.
        trainer: of the models.
        counts: capacities, further ones in the transition, samples, and capacities of L_pmem.
        draws: noises of the losses.
        times: at which the untrained losses are taken.
        seeds: of the data sets, whose samples are pooled; the losses are of the first.
    """
    problems = [gaussian_problem(n, d, k, variance, 2, counts[2], seed) for seed in seeds]
    found = study(problems, trainer, counts[0], counts[1], [], draws)
    ref = references(problems[0], times, counts[3], draws)
    middle = found.transition().middle
    gap = ref.pmem_mean - np.array([e.mean for e in ref.gen])
    case = None if middle is None else Case(n, d, k, np.array(ref.capacities), gap, middle / n)
    uniform = crossovers(ref, problems[0].data, d, variance).uniform
    return Tuple(n, d, k, found.transition(), found.capacities, [c.ratio for c in found.pooled()], uniform, case)


def law(found: Sequence[Tuple], seed: int) -> Law | None:
    """The proportionality of M_pt and N with a bootstrap interval over tuples; None for fewer than two."""
    points = np.array([(t.n, t.transition.middle) for t in found if t.transition.middle is not None], dtype=float)
    if len(points) < 2:
        return None
    rng = np.random.default_rng(seed)

    def slope(rows: np.ndarray) -> float:
        return float((rows[:, 0] * rows[:, 1]).sum() / (rows[:, 0] ** 2).sum())

    drawn = [slope(points[rng.integers(len(points), size=len(points))]) for _ in range(1000)]
    share = points[:, 1] / points[:, 0]
    ends = np.quantile(drawn, [0.025, 0.975])
    return Law(slope(points), float(ends[0]), float(ends[1]), float(share.min()), float(share.max()), len(points))


def weights(
    found: Sequence[Tuple], seed: int, tick: Callable[[], None] = lambda: None
) -> tuple[Fit, list[bool]] | None:
    """lambda~ fitted on a random half of the tuples, tested on the other; None for fewer than four tuples."""
    cases = [t.case for t in found if t.case is not None]
    if len(cases) < 4:
        return None
    order = np.random.default_rng(seed).permutation(len(cases))
    fitted = [bool(k in order[: (len(cases) + 1) // 2]) for k in range(len(cases))]
    made = fit(cases, fitted)
    tick()
    return made, fitted
