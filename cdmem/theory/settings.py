"""Settings of a laboratory: each range stands beside its default, and one check serves all."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args, get_type_hints

from cdmem.errors import InputError


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from low to high; the ends themselves are excluded if ``open``; a list may be empty if ``optional``."""

    low: float
    high: float
    open: bool = False
    optional: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range."""
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    def __str__(self) -> str:
        if self.open:
            return f"a number above {self.low:g}" + ("" if math.isinf(self.high) else f" and below {self.high:g}")
        return f"{self.low:g} or more" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"


def number(default: float | None, low: float, high: float = math.inf, *, open: bool = False) -> Any:
    """A field of a settings dataclass that holds one number; None only where its type allows it."""
    return dataclasses.field(default=default, metadata={"range": Range(low, high, open)})


def each(low: float, high: float = math.inf, *, open: bool = False, optional: bool = False) -> dict[str, Range]:
    """Metadata of a field that holds a list of different numbers; ``optional`` allows an empty one."""
    return {"range": Range(low, high, open, optional)}


def seed() -> Any:
    """The field for the seed of everything."""
    return number(0, 0, 2**32 - 1)


def check_settings(settings: Any, group: str = "") -> None:
    """Check the ranges of a settings dataclass and of its groups.

    Raises:
        InputError: a value is missing, a number lies outside its range, or a list of different ones is empty or
            repeats one.
    """
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        key, value, allowed = f"{group}{field.name}", getattr(settings, field.name), field.metadata.get("range")
        if dataclasses.is_dataclass(value):
            check_settings(value, f"{key}.")
        if value is None and type(None) not in get_args(hints[field.name]):
            raise InputError(key, None, "is no value", "leave it out for the default")
        if allowed is None or value is None:
            continue
        several = isinstance(value, list | tuple)
        for item in value if several else [value]:
            if not allowed.holds(item):
                raise InputError(key, item, "is out of range", f"give {allowed}")
        if several and len(set(value)) < len(value):
            raise InputError(key, value, "holds a number twice", "give different numbers")
        if several and not (value or allowed.optional):
            raise InputError(key, value, "is empty", f"give one number or more: {allowed}")
