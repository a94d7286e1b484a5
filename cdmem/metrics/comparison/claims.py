"""Now x limit: which claim two intervals of a paired difference allow."""

from __future__ import annotations

from typing import Literal

State = Literal["equivalent", "below", "above", "unclear"]
MARGIN = 0.03  # now
LIMIT_MARGIN = 0.05


def state(ci90: tuple[float, float], ci95: tuple[float, float], margin: float) -> State:
    """Equivalence first: more seeds must not take a claim away."""
    if -margin <= ci90[0] and ci90[1] <= margin:
        return "equivalent"
    if ci95[1] < 0:
        return "below"
    return "above" if ci95[0] > 0 else "unclear"


def claim(now: State, limit: State) -> tuple[str, str]:
    table = {
        ("below", "below"): "reduced",
        ("below", "equivalent"): "transient",
        ("equivalent", "equivalent"): "unchanged",
        ("above", "above"): "amplified",
    }
    if (now, limit) in table:
        return table[now, limit], ""
    return "undecided", f"now {now}, limit {limit}"
