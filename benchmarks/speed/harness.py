"""Two ways to compute one thing: first that they agree, then who is faster, taking turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timed:
    """What a call returns that measures itself: seconds of what counts in it, and a result."""

    seconds: float
    result: Any


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: is computed.
        peer: who computes it too.
        ours: cdmem's way.
        theirs: the peer's.
        agree: raises AssertionError where the results of both differ by more than they may.
        goal: largest ratio of the times, ours over theirs.
        repeats: turns after the first, which is not counted.
    """

    what: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    agree: Callable[[Any, Any], None]
    goal: float
    repeats: int = 5


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of one call, unless it says itself, and its result."""
    started = time.perf_counter()
    result = work()
    return result.seconds if isinstance(result, Timed) else time.perf_counter() - started, result


def measure(row: Row) -> dict[str, Any]:
    """Medians and ranges of both, and the ratios turn by turn.

    Raises:
        AssertionError: the results differ.
    """
    row.agree(seconds(row.ours)[1], seconds(row.theirs)[1])
    ours, theirs = [], []
    for _ in range(row.repeats):
        ours.append(seconds(row.ours)[0])
        theirs.append(seconds(row.theirs)[0])
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    return {
        "what": row.what,
        "peer": row.peer,
        "ours_s": statistics.median(ours),
        "theirs_s": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "range": [ratios[0], ratios[-1]],
        "goal": row.goal,
    }
