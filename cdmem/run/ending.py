"""How a stage ended: the content of ``finished.json``, which studies, audits and pages read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

How = Literal["max_steps", "stopped", "out_of_time", "interrupted"]
WORDS = {
    "max_steps": "reached max_steps",
    "stopped": "stopped on purpose",
    "out_of_time": "ran out of time",
    "interrupted": "was interrupted",
}


@dataclass(frozen=True)
class Ending:
    """How training ended.

    Attributes:
        step: optimizer steps taken.
        ended: ``max_steps``; ``stopped`` by a callback on purpose; ``out_of_time``; or ``interrupted`` by a signal or
            an error.
        by: the callback or signal.
        why: its reason, where it has one.
        seconds: of the last part of the run.
    """

    step: int
    ended: How
    by: str | None = None
    why: str | None = None
    seconds: float | None = None

    @property
    def complete(self) -> bool:
        """Whether the run came to the end that was meant for it, at its last step or by a callback."""
        return self.ended in ("max_steps", "stopped")

    def plain(self) -> dict[str, Any]:
        """As ``finished.json`` holds it."""
        return asdict(self)

    def __str__(self) -> str:
        by = f" by {self.by}" if self.by else ""
        return f"{WORDS[self.ended]}{by} at step {self.step}{f': {self.why}' if self.why else ''}"


def read_ending(record: Mapping[str, Any]) -> Ending:
    """An ending from ``finished.json``; earlier versions wrote one for complete runs only.

    Raises:
        TypeError, ValueError, KeyError: no such record.
    """
    why = record.get("why", record.get("stopped"))
    ended = record.get("ended", "max_steps" if why is None else "stopped")
    if type(record["step"]) is not int or ended not in get_args(How):
        raise ValueError("names no step, or no known end")
    by, seconds = record.get("by"), record.get("seconds")
    by, why = (None if text is None else str(text) for text in (by, why))
    return Ending(record["step"], ended, by, why, float(seconds) if isinstance(seconds, int | float) else None)
