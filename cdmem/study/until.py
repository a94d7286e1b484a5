"""When a student's distillation ends that goes on until its claim is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cdmem.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Until:
    """When a student's distillation ends.

    Attributes:
        claim: ``decided``.
        max_steps: budget of optimizer steps; if null the student's trainer.max_steps.
        max_time: budget of training time over all jobs, DD:HH:MM:SS.
    """

    claim: str = "decided"
    max_steps: int | None = None
    max_time: str | None = None

    def check(self, key: str) -> None:
        """Raises InputError for a claim that is none, or an impossible budget."""
        if self.claim != "decided":
            raise InputError(f"{key}.until", self.claim, "is no such end", "use decided")
        if self.max_steps is not None and self.max_steps < 1:
            raise InputError(f"{key}.until.max_steps", self.max_steps, "must be at least 1 step", "e.g. 60000")


def read_until(value: Any, key: str) -> Until:
    """``until`` of a study's student: ``decided``, or a mapping.

    Raises:
        InputError: anything else.
    """
    known = [f.name for f in fields(Until)]
    if isinstance(value, str):
        value = {"claim": value}
    if not isinstance(value, Mapping) or set(value) - set(known):
        raise InputError(f"{key}.until", value, "is no end of a distillation", f"use decided, or {', '.join(known)}")
    until = Until(**value)
    until.check(key)
    return until
