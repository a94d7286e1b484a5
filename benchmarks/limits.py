"""Does the interval of a limit cover, and how often is a claim decided? Simulated students whose limit is known.

Every student is a curve of f_mem along distillation beside a teacher of .859. A seed is copied where its own latent
value, correlated with the teacher's and kept over the evaluations, lies below a threshold: so seeds switch rarely and
keep their character. The steps have a noise common to all seeds. Fitted and judged by the rule that cdmem uses::

    python benchmarks/limits.py --runs 200
    python benchmarks/limits.py --study        # a long run that was measured: what would have been said of it
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from cdmem.metrics.comparison.claims import LIMIT_MARGIN, MARGIN, claim, state
from cdmem.metrics.comparison.limit import Limit, fit_limit, possible

TEACHER = 0.859
LIKE_TEACHER = 0.6  # correlation of a seed's own latent value with the teacher's
# Latent correlation between evaluations for a share of seeds that switch sides at f_mem = .7.
KEPT = {0.1: 0.93, 0.2: 0.75, 0.3: 0.5}
Curve = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Budget:
    """What is spent on a phase.

    Attributes:
        evaluations: their number.
        seeds: a evaluation.
        span: last step over the first one's.
        even: ``sqrt``: evaluations evenly spaced in the root of the steps; ``steps``.
        noise: standard deviation of a step's noise, common to all seeds.
        switching: share of seeds that switch sides between two evaluations, 0.1, 0.2 or 0.3.
    """

    evaluations: int
    seeds: int
    span: float
    even: str
    noise: float
    switching: float

    def steps(self, last: float = 64_000) -> np.ndarray:
        """Steps of the evaluations, (K,)."""
        power = 2 if self.even == "sqrt" else 1
        return np.linspace((last / self.span) ** (1 / power), last ** (1 / power), self.evaluations) ** power


BUDGETS = {
    "small": Budget(16, 2_000, 16, "steps", 0.0075, 0.2),
    "middle": Budget(24, 2_000, 32, "sqrt", 0.0075, 0.2),
    "stated": Budget(40, 4_000, 100, "sqrt", 0.005, 0.2),
    "restless": Budget(40, 4_000, 100, "sqrt", 0.01, 0.3),
}


def families(first: float, last: float) -> dict[str, tuple[Curve, bool]]:
    """Gaps to the limit by name, and whether they have one; ``first`` and ``last`` steps of the phase."""
    span = last - first

    def power(exponent: float, left: float) -> Curve:
        return lambda t: -left * (t / last) ** -exponent

    return {
        "exponential, tau 1/6": (lambda t: -0.30 * np.exp(-6 * (t - first) / span), True),
        "exponential, tau 1/3": (lambda t: -0.25 * np.exp(-3 * (t - first) / span), True),
        "t^-0.3, 5 left": (power(0.3, 0.05), True),
        "t^-0.5, 4 left": (power(0.5, 0.04), True),
        "t^-0.7, 2 left": (power(0.7, 0.02), True),
        "t^-1, 0.5 left": (power(1.0, 0.005), True),
        "logistic": (lambda t: -0.5 / (1 + np.exp((t - 0.25 * last) / (0.1 * last))), True),
        "two time scales": (
            lambda t: -0.25 * np.exp(-(t - first) / (0.06 * last)) - 0.1 * np.exp(-(t - first) / (0.4 * last)),
            True,
        ),
        "no change": (lambda t: 0 * t, True),
        "straight, 20 points": (lambda t: -0.25 + 0.2 * (t - first) / span, False),
        "straight, 8 points": (lambda t: -0.10 + 0.08 * (t - first) / span, False),
    }


def simulate(rng: np.random.Generator, steps: np.ndarray, gap: np.ndarray, budget: Budget) -> np.ndarray:
    """Paired differences (K, m) of a student whose f_mem lies ``gap`` (K,) from the teacher's, with step noise."""
    count, size = len(steps), budget.seeds
    apart = np.abs(steps[:, None] - steps) / np.diff(steps).min()
    shock = budget.noise * np.linalg.cholesky(8.0**-apart) @ rng.normal(size=count)
    share = np.clip(TEACHER + gap + shock, 0.001, 0.999)
    kept, teacher, own = KEPT[budget.switching], rng.normal(size=size), rng.normal(size=size)
    character = LIKE_TEACHER * teacher + np.sqrt(1 - LIKE_TEACHER**2) * own
    latent = np.sqrt(kept) * character + np.sqrt(1 - kept) * rng.normal(size=(count, size))
    student = latent < stats.norm.ppf(share)[:, None]
    return student.astype(np.float64) - (teacher < stats.norm.ppf(TEACHER))


@dataclass(frozen=True)
class Outcome:
    """One simulated student: the interval of its limit (None: none given) and its claim."""

    ci95: tuple[float, float] | None
    claim: str


def judge(steps: np.ndarray, differences: np.ndarray, least_spacing: float) -> Outcome:
    """What cdmem would say."""
    seeds = differences.shape[1]
    limit = fit_limit(steps, differences, least_spacing, possible(round(TEACHER * seeds), seeds))
    last = differences[-1]
    error = float(last.std(ddof=1)) / np.sqrt(len(last))
    halves = {c: error * float(stats.norm.ppf(0.5 + c / 2)) for c in (0.9, 0.95)}
    ends = {c: (float(last.mean()) - h, float(last.mean()) + h) for c, h in halves.items()}
    now = state(ends[0.9], ends[0.95], MARGIN)
    if isinstance(limit, str):
        return Outcome(None, claim(now, None, limit)[0])
    ci95 = limit.interval(0.95)
    where = state(limit.interval(0.9), ci95, LIMIT_MARGIN)
    return Outcome(ci95, claim(now, where, stays=limit.value / (float(last.mean()) or np.inf))[0])


def row(job: tuple[str, float, Budget, int, int]) -> dict[str, object]:
    """One family, limit and budget: coverage, median width, share without a limit, claims."""
    name, limit, budget, runs, seed = job
    steps = budget.steps()
    curve, has_limit = families(steps[0], steps[-1])[name]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), int(limit < 0)])
    spacing = float(np.diff(steps).min())
    outcomes = [judge(steps, simulate(rng, steps, limit + curve(steps), budget), spacing) for _ in range(runs)]
    given = [o.ci95 for o in outcomes if o.ci95 is not None]
    covered = float(np.mean([low <= limit <= high for low, high in given])) if given and has_limit else None
    claims = Counter(o.claim for o in outcomes)
    return {
        "family": name,
        "limit": limit if has_limit else None,
        "coverage": covered,
        "width": float(np.median([high - low for low, high in given])) if given else None,
        "no limit": 1 - len(given) / runs,
        "decided": 1 - claims["undecided"] / runs,
        "claims": {c: n / runs for c, n in claims.most_common()},
    }


def rows(budget: Budget, names: list[str], runs: int, seed: int, workers: int) -> Iterator[dict[str, object]]:
    """The chosen families, with limits at equality and 15 points below."""
    known = families(1.0, 64.0)
    jobs = [(n, x, budget, runs, seed) for n in names for x in ((0.0, -0.15) if known[n][1] else (0.0,))]
    if workers == 1:
        yield from map(row, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(row, jobs)


def line(r: dict[str, object]) -> str:
    """A row as text."""
    numbers = [("limit", 6, 100, ".0f"), ("coverage", 6, 1, ".3f"), ("width", 6, 100, ".1f"), ("no limit", 5, 1, ".2f")]
    cells = ["-".rjust(w) if r[k] is None else f"{r[k] * f:{w}{form}}" for k, w, f, form in numbers]  # type: ignore[operator]
    claims = ", ".join(f"{c} {share:.2f}" for c, share in r["claims"].items())  # type: ignore[attr-defined]
    return f"{r['family']:24s} {' '.join(cells)} {r['decided']:7.2f}  {claims}"


HEADER = f"{'family':24s} {'limit':>6s} {'cover':>6s} {'width':>6s} {'none':>5s} {'decided':>7s}  claims"
MEASURED = {
    "one step": (0.22, 0.49, 0.61, 0.66, 0.70, 0.73, 0.755),
    "two steps": (0.45, 0.65, 0.71, 0.75, 0.79, 0.80, 0.82),
}


def study(seed: int) -> None:
    """A run of 16 digits, 92,000 steps: the seven values known of it, filled up to 23 by interpolation in log log."""
    known = np.array([4, 8, 16, 24, 40, 64, 92]) * 1000.0
    steps = np.arange(4_000, 92_001, 4_000.0)
    budget = Budget(len(steps), 2_000, 23, "steps", 0.0, 0.2)
    for name, values in MEASURED.items():
        gap = -np.exp(np.interp(np.log(steps), np.log(known), np.log(TEACHER - np.array(values))))
        differences = simulate(np.random.default_rng(seed), steps, gap, budget)
        for until in (48_000, 64_000, 92_000):
            seen = steps <= until
            limit = fit_limit(steps[seen], differences[seen], 3_000)
            said = limit if isinstance(limit, str) else json.dumps(limit.record())
            claimed = judge(steps[seen], differences[seen], 3_000).claim
            print(f"{name}, to step {until}: {claimed}; {said}")
            if isinstance(limit, Limit):
                print(f"  misses of the law, points: {np.round(100 * (limit.curve(steps) - gap)[seen], 1).tolist()}")


def main() -> None:
    """Print the tables of the budgets that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="simulated students a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    names = list(families(1.0, 64.0))
    parser.add_argument("--families", nargs="+", choices=names, default=names)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--study", action="store_true", help="only the run that was measured")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    options = parser.parse_args()
    if options.study:
        study(options.seed)
        return
    found: dict[str, list[dict[str, object]]] = {}
    for name in options.budgets:
        print(f"\n{name}: {asdict(BUDGETS[name])}; limit margin {100 * LIMIT_MARGIN:.0f} points, {options.runs} runs")
        print(HEADER, flush=True)
        for r in rows(BUDGETS[name], options.families, options.runs, options.seed, options.workers):
            found.setdefault(name, []).append(r)
            print(line(r), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
