r"""Had the student stopped changing when distillation ended?

A student that has not finished training looks like one that forgot. Two paired questions on the same seeds, between the
first evaluation of the last third of the distillation and its end:

f_mem, by Newcombe's paired interval of the change
    ``rising`` / ``falling``: the interval lies above / below 0; ``stopped``: it lies within +-:data:`MARGIN`;
    ``undetermined``: the samples are too few to tell.

rmse to the teacher's endpoints, by Student's interval of the change of the seeds' squared errors, as a relative change
of rmse
    ``stopped``: within +-:data:`RMSE_MARGIN`; otherwise ``rising`` / ``falling`` where 0 is excluded, else
    ``undetermined``.

Power: with a share q of seeds changing sides, the change has a standard error of sqrt(q / m). "Stopped" needs 1.96 of
them to fit into the margin: for q = 10 % that takes 430 seeds, for q = 30 % 1,290. Seeds are the only randomness
counted: a common shock of the last training steps moves all of them, so evaluate EMA weights. A learning rate annealed
to 0 stops any curve.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from cdmem.metrics.statistics import mean_interval, newcombe_paired_difference

MARGIN = 0.03
RMSE_MARGIN = 0.05
Trend = Literal["rising", "falling", "stopped", "undetermined"]
BySeed = dict[int, tuple[np.ndarray, np.ndarray]]  # step -> (seeds (m,), values (m,))


@dataclass(frozen=True)
class Convergence:
    """Change of f_mem, or relative change of rmse, over the last third of the distillation.

    Attributes:
        trend: see the module.
        change: value at the end minus the value before.
        low: lower 95 % bound of the change.
        high: upper 95 % bound.
        from_step: first evaluation in the last third.
        to_step: last evaluation.
        samples: seeds present at both.
    """

    trend: Trend
    change: float
    low: float
    high: float
    from_step: int
    to_step: int
    samples: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


def classify(low: float, high: float, margin: float = MARGIN) -> Trend:
    """The trend that a 95 % interval of the change stands for; a significant change smaller than the margin counts
    as a change, not as standing still."""
    if low > 0:
        return "rising"
    if high < 0:
        return "falling"
    return "stopped" if -margin <= low and high <= margin else "undetermined"


def _ends(by_step: BySeed) -> tuple[int, int, np.ndarray, np.ndarray] | None:
    """First and last step of the last third, and the values of the seeds that both have."""
    steps = sorted(by_step)
    late = [s for s in steps if s >= 2 / 3 * steps[-1]] if steps else []
    if len(late) < 2:
        return None
    before = dict(zip(*(a.tolist() for a in by_step[late[0]])))
    after = dict(zip(*(a.tolist() for a in by_step[late[-1]])))
    shared = sorted(set(before) & set(after))
    if not shared:
        return None
    return late[0], late[-1], np.array([before[s] for s in shared]), np.array([after[s] for s in shared])


def convergence(flags_by_step: BySeed) -> Convergence | None:
    """Judge the f_mem curve of one student at one NFE.

    Args:
        flags_by_step: step -> (seeds (m,), memorised (m,) bool).

    Returns:
        None with fewer than two evaluations in the last third, or when these share no seeds.
    """
    ends = _ends(flags_by_step)
    if ends is None:
        return None
    start, stop, b, a = ends[0], ends[1], ends[2].astype(bool), ends[3].astype(bool)
    counts = (int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))
    change, low, high = newcombe_paired_difference(*counts)
    return Convergence(classify(low, high), change, low, high, start, stop, len(a))


def rmse_convergence(errors_by_step: BySeed) -> Convergence | None:
    """Judge the rmse curve, as a relative change of rmse.

    Args:
        errors_by_step: step -> (seeds (m,), mean squared error per pixel (m,)).

    Returns:
        None as in :func:`convergence`, with a single seed (no interval), or when the error before was 0.
    """
    ends = _ends(errors_by_step)
    if ends is None or len(ends[2]) < 2 or float(ends[2].mean()) == 0:
        return None
    start, stop, before, after = ends
    base = float(before.mean())
    change, low, high = (float(np.sqrt(max(1 + x / base, 0.0))) - 1 for x in mean_interval(after - before))
    inside = low >= -RMSE_MARGIN and high <= RMSE_MARGIN
    return Convergence(
        "stopped" if inside else classify(low, high, RMSE_MARGIN), change, low, high, start, stop, len(before)
    )


def extrapolate(flags: BySeed, errors: BySeed, draws: int = 400, seed: int = 0) -> dict[str, Any] | None:
    """f_mem at rmse -> 0, by a straight line through the evaluations of the last two thirds: an *extrapolation*.

    The interval redraws seeds (the same for all evaluations); it does not cover that the curve may bend.

    Args:
        flags: step -> (seeds, memorised), see :func:`convergence`.
        errors: step -> (seeds, mean squared error per pixel).

    Returns:
        ``f_mem`` and ``ci95`` clipped to [0, 1], ``slope`` (per unit rmse), ``rmse`` range, ``reach`` (distance to
        rmse 0 in units of that range: far above 1 the line is a guess) and ``evaluations``; None
        with fewer than three evaluations or without any change of rmse.
    """
    steps = [s for s in sorted(set(flags) & set(errors)) if s >= max(flags) / 3]
    if len(steps) < 3:
        return None
    shared = sorted(set.intersection(*(set(flags[s][0].tolist()) & set(errors[s][0].tolist()) for s in steps)))
    if len(shared) < 2:
        return None

    def columns(by_step: BySeed) -> np.ndarray:
        tables = (dict(zip(*(a.tolist() for a in by_step[s]))) for s in steps)
        return np.array([[float(t[k]) for k in shared] for t in tables])

    hit, squared = columns(flags), columns(errors)
    rmse = np.sqrt(squared.mean(1))
    if np.ptp(rmse) < 1e-3 * rmse.mean() or not rmse.all():
        return None
    rng, lines = np.random.default_rng(seed), []
    for k in range(draws + 1):
        chosen = np.arange(len(shared)) if k == 0 else rng.integers(len(shared), size=len(shared))
        x, y = np.sqrt(squared[:, chosen].mean(1)), hit[:, chosen].mean(1)
        slope = np.cov(x, y)[0, 1] / max(x.var(ddof=1), 1e-300)
        lines.append((y.mean() - slope * x.mean(), slope))
    values = np.clip([line[0] for line in lines], 0, 1)
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {
        "f_mem": float(values[0]),
        "ci95": [float(low), float(high)],
        "slope": float(lines[0][1]),
        "rmse": [float(rmse.min()), float(rmse.max())],
        "reach": float(rmse.min() / np.ptp(rmse)),
        "evaluations": len(steps),
    }
