"""The paired difference to the teacher along a distillation: its limit, and what a slow phase at the end changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cdmem.metrics.comparison.convergence import BySeed
from cdmem.metrics.comparison.limit import fit_limit
from cdmem.metrics.statistics import newcombe_paired_difference

SPACING = 3  # half-lives of the average between evaluations: closer ones are hardly news
Flags = tuple[np.ndarray, np.ndarray]  # seeds (m,), copies (m,) bool


def differences(student: BySeed, teacher: Flags) -> tuple[list[int], np.ndarray]:
    """Student minus teacher of the seeds that all evaluations share.

    Args:
        student: step -> (seeds, copies).
        teacher: of the same seeds.

    Returns:
        steps (K,) and differences, int8 (K, m).
    """
    steps = sorted(student)
    shared = sorted(set(teacher[0].tolist()).intersection(*(student[s][0].tolist() for s in steps)))
    rows = [_of_seeds(student[s], shared) - _of_seeds(teacher, shared) for s in steps]
    return steps, np.array(rows, dtype=np.int8).reshape(len(steps), len(shared))


def _of_seeds(flags: Flags, seeds: Sequence[int]) -> np.ndarray:
    """0 or 1 by seed, int8."""
    by_seed = dict(zip(flags[0].tolist(), flags[1].tolist()))
    return np.array([by_seed[s] for s in seeds], dtype=np.int8)


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
        record of `cdmem.metrics.comparison.limit.Limit`, or why there is none, as text.
    """
    if phase is None:
        return "no stretch at a constant learning rate"
    if teacher is None:
        return "the teacher's samples were not kept along the distillation"
    inside = {step: rows for step, rows in student.items() if max(phase[0], 1) <= step <= phase[1]}
    if not inside:
        return "no evaluations at a constant rate"
    steps, values = differences(inside, teacher)
    limit = fit_limit(steps, values, least_spacing=SPACING * half_life)
    return limit if isinstance(limit, str) else limit.record(error)


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
    steps, rows = differences({s: student[s] for s in (max(before), max(after))}, teacher)
    shared = sorted(set(teacher[0].tolist()).intersection(*(student[s][0].tolist() for s in steps)))
    if not shared:
        return None
    reference = _of_seeds(teacher, shared)
    first, last = rows + reference
    return {
        "from_step": steps[0],
        "to_step": steps[1],
        "change": _paired(first, last),
        "after": _paired(reference, last),
    }


def _paired(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Share of the second minus the first's, of 0 and 1 by seed."""
    cells = (int(((second == a) & (first == b)).sum()) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0)))
    return newcombe_paired_difference(*cells).record()
