"""The paired difference to the teacher along a distillation: its limit, and what a slow phase at the end changed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np

from cdmem.metrics.comparison.convergence import BySeed
from cdmem.metrics.comparison.limit import Limit, fit_limit, paired_differences, possible
from cdmem.metrics.comparison.looks import TOTAL, error_at_look, steps_missing
from cdmem.metrics.statistics import newcombe_paired_difference

SPACING = 3  # half-lives of the average between evaluations: closer ones are hardly news
Flags = tuple[np.ndarray, np.ndarray]  # seeds (m,), copies (m,) bool


def limit_record(
    student: BySeed, teacher: Flags | None, phase: Sequence[int] | None, half_life: int, error: float
) -> dict[str, Any] | str:
    """The limit of the difference along a constant-rate phase.

    Args:
        student: step -> (seeds, copies) of one NFE.
        teacher: its copies on these seeds, or None if its samples were not kept.
        phase: first and last step at a constant rate, or None.
        half_life: of the evaluated average, in steps; 0 for raw weights.
        error: of the intervals ``ci95`` (two-sided) and ``ci90`` (one-sided); 0.05 as their names say.

    Returns:
        record of `cdmem.metrics.comparison.limit.Limit` with ``law`` in words, and where it is one of several looks
        ``missing`` (steps until the claim may be decided); or why there is none, as text.
    """
    if phase is None:
        return "no stretch at a constant learning rate"
    if teacher is None:
        return "the teacher's samples were not kept along the distillation"
    inside = {step: rows for step, rows in student.items() if max(phase[0], 1) <= step <= phase[1]}
    if not inside:
        return "no evaluations at a constant rate"
    pairs = paired_differences(teacher, inside)
    if isinstance(pairs, str):
        return pairs
    copied = np.isin(teacher[0], next(iter(inside.values()))[0]) & teacher[1]
    bounds = possible(int(copied.sum()), pairs[1].shape[1])
    limit = fit_limit(*pairs, least_spacing=SPACING * half_life, bounds=bounds)
    if isinstance(limit, str):
        return limit
    intervals = {"ci95": limit.interval(1 - error), "ci90": limit.interval(1 - 2 * error)}
    record = limit.record() | {name: list(interval) for name, interval in intervals.items()}
    record["law"] = _words(limit)
    if error < TOTAL:  # one of several looks
        look = next(k for k in count(1) if error_at_look(k) <= error * (1 + 1e-9))
        record["missing"] = steps_missing(limit, look + 1)
    return record


def slow_phase_record(student: BySeed, teacher: Flags | None, phase: Sequence[int] | None) -> dict[str, Any] | None:
    """What became of the difference in the phase at a lower rate that follows the constant one.

    Returns:
        ``from_step``, ``to_step``, ``change`` of f_mem and ``after`` (difference to the teacher at the end), each with
        ``value`` and ``ci95``; None without evaluations at both ends.
    """
    if phase is None or teacher is None:
        return None
    before, after = [s for s in student if 1 <= s <= phase[1]], [s for s in student if s > phase[1]]
    if not before or not after:
        return None
    pairs = paired_differences(teacher, {s: student[s] for s in (max(before), max(after))})
    if isinstance(pairs, str):
        return None
    steps, rows = pairs
    by_seed = dict(zip(*(column.tolist() for column in teacher)))
    reference = np.array([by_seed[s] for s in sorted(student[int(steps[0])][0].tolist())], dtype=np.int8)
    first, last = rows.astype(np.int8) + reference
    return {
        "from_step": int(steps[0]),
        "to_step": int(steps[1]),
        "change": _paired(first, last),
        "after": _paired(reference, last),
    }


def _words(limit: Limit) -> str:
    """The law for people; empty where there is no change to follow one."""
    if limit.shrinks is None:
        return ""
    return f"what is left of the way there halves with {limit.shrinks:.1f} times the distillation"


def _paired(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Share of the second minus the first's, of 0 and 1 by seed."""
    cells = (int(((second == a) & (first == b)).sum()) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0)))
    return newcombe_paired_difference(*cells).record()
