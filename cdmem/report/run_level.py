"""The verdict over runs of one setting: from the summaries of a sweep's studies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cdmem.metrics.comparison.runs import RunLevel, run_level
from cdmem.report.rows import model_label

Groups = Mapping[tuple[str, ...], Sequence[Any]]


def verdicts_over_runs(groups: Groups) -> list[tuple[tuple[str, ...], str, RunLevel | str]]:
    """One verdict a setting and student.

    Args:
        groups: setting -> its runs, each with ``models``.

    Returns:
        setting, student with its NFE, and the verdict over its runs or why there is none.
    """
    rows = []
    for setting, members in groups.items():
        students: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for m in (m for run in members for m in run.models if m["role"] == "student" and m.get("paired")):
            students[model_label(m)].append(m)
        for label, models in students.items():
            differences = [m["paired"]["difference"]["value"] for m in models]
            limits = [_limit(m) for m in models]
            steps = [m.get("step") or 0 for m in models]
            rows.append((setting, label, run_level(differences, limits, steps)))
    return rows


def _limit(m: Mapping[str, Any]) -> float | None:
    """A student's limit, if it has one."""
    limit = (m.get("verdict") or {}).get("limit") or {}
    value = limit.get("value")
    return value if isinstance(value, int | float) else None
