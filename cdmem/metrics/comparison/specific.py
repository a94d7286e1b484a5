"""Is a reduction specific to the distillation, or would another student, or a cheaper teacher, show it too?

Trained controls (students of the same teacher by another method) are compared by their limits: at equal step counts
one would compare speeds of learning. What is not trained along the way (a teacher stopped at the student's quality, a
teacher of few steps) is compared by its value, on the same seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdmem.metrics.comparison.claims import LIMIT_MARGIN, MARGIN, state

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Control:
    """What a student is compared with.

    Attributes:
        name: for people.
        difference: student minus control on the same seeds: ``value``, ``ci90``, ``ci95``.
        limit: record of the control's own limit, or why there is none; None of what is not trained along the way.
        trained: whether it is a student.
    """

    name: str
    difference: Record
    limit: Record | str | None = None
    trained: bool = False


def difference_of_limits(student: Record, control: Record) -> dict[str, Any]:
    """Student minus control, intervals added in squares as of independent fits: shared seeds make them too wide."""
    value = student["value"] - control["value"]
    record: dict[str, Any] = {"value": value}
    for key in ("ci90", "ci95"):
        (low, high), (low2, high2) = student[key], control[key]
        below = math.hypot(student["value"] - low, high2 - control["value"])
        above = math.hypot(high - student["value"], control["value"] - low2)
        record[key] = [value - below, value + above]
    return record


def specific_record(limit: Record | str | None, controls: Sequence[Control]) -> dict[str, Any] | None:
    """Whether a student stays below every control.

    Args:
        limit: record of the student's own limit, or why there is none.
        controls: of the study.

    Returns:
        ``controls`` (``name``, ``trained``, ``difference``, ``state``), ``holds`` (True: below all of them; False: not
        below one of them; None: open) and ``statement``; None without controls.
    """
    if not controls:
        return None
    rows, states = [], []
    for c in controls:
        if not c.trained:
            difference, where = c.difference, state(c.difference["ci90"], c.difference["ci95"], MARGIN)
        elif isinstance(limit, Mapping) and isinstance(c.limit, Mapping):
            difference = difference_of_limits(limit, c.limit)
            where = state(difference["ci90"], difference["ci95"], LIMIT_MARGIN)
        else:
            difference, where = None, "unclear"
        rows.append({"name": c.name, "trained": c.trained, "difference": difference, "state": where})
        states.append(where)
    holds = False if {"equivalent", "above"} & set(states) else None if "unclear" in states else True
    return {"controls": rows, "holds": holds, "statement": _statement(rows, holds)}


def _statement(rows: Sequence[Record], holds: bool | None) -> str:
    """In words."""
    names = {where: ", ".join(r["name"] for r in rows if r["state"] == where) for where in {r["state"] for r in rows}}
    if holds:
        return f"it lies below every control ({names['below']}), so the reduction is specific to the distillation"
    if holds is False:
        same = ", ".join(names[k] for k in ("equivalent", "above") if k in names)
        return f"{same} copies no more, so the reduction is not specific to the distillation"
    return f"whether it is specific to the distillation is open (against {names['unclear']})"
