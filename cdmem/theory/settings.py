"""Settings of a laboratory: each range stands beside its default, and one check serves all."""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Sequence
from contextlib import redirect_stderr
from itertools import pairwise
from typing import Any, get_args, get_type_hints

from cdmem.errors import InputError
from cdmem.io.paths import usable_path
from cdmem.io.text import parse_yaml, read_text


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
    """Check every number of a settings dataclass, also in its groups.

    Raises:
        InputError: one lies outside its range, is not finite, is missing, or repeats in a list of different ones.
    """
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        key, value, allowed = f"{group}{field.name}", getattr(settings, field.name), field.metadata.get("range")
        if dataclasses.is_dataclass(value):
            check_settings(value, f"{key}.")
            continue
        several = isinstance(value, list | tuple)
        for item in value if several else [value]:
            if item is None and (several or type(None) not in get_args(hints[field.name])):
                raise InputError(key, None, "is no value", "leave it out for the default")
            if isinstance(item, int) and item.bit_length() > 63:  # Python refuses to print the longest ones
                size = f"about {'-' * (item < 0)}2^{item.bit_length()}"
                raise InputError(key, size, "is beyond the 64 bits of a whole number", "give a smaller one")
            if isinstance(item, float) and not math.isfinite(item):
                raise InputError(key, item, "is no finite number", "give one")
            if allowed and item is not None and not allowed.holds(item):
                raise InputError(key, item, "is out of range", f"give {allowed}")
        if allowed and several and len(set(value)) < len(value):
            raise InputError(key, value, "holds a number twice", "give different numbers")
        if allowed and several and not (value or allowed.optional):
            raise InputError(key, value, "is empty", f"give one number or more: {allowed}")


def parse_settings(kind: type, args: Sequence[str], laboratory: str) -> tuple[Any, dict[str, Any]]:
    """Settings of a laboratory from the command line, checked, and the command's own options.

    Args:
        kind: the settings dataclass; a field that is a dataclass itself is a group, ``--group.field`` here.
        args: words after the laboratory's name.
        laboratory: its name.

    Raises:
        InputError: an unknown key, a value of another type or outside its range, or a config that cannot be read.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(prog=f"python -m cdmem theory {laboratory}", exit_on_error=False, default_env=False)
    parser.add_argument("--config", action="config", help="YAML of these settings")
    parser.add_argument("--out", type=str, default=f"runs/theory/{laboratory}", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier call there")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_class_arguments(kind, None)
    _check_files(args, {name for name, hint in get_type_hints(kind).items() if dataclasses.is_dataclass(hint)})
    try:
        with redirect_stderr(io.StringIO()):
            values = vars(parser.parse_args(args))
    except (ArgumentError, ValueError, TypeError, OSError, ArithmeticError, RecursionError) as error:
        lines = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        names = ", ".join(field.name for field in dataclasses.fields(kind))
        raise InputError(
            "theory", laboratory, lines[:240] or type(error).__name__, f"its settings are {names}"
        ) from None
    settings = _build(kind, values, "")
    check_settings(settings)
    return settings, {name: values[name] for name in ("out", "overwrite", "quiet")}


def _build(kind: type, values: dict[str, Any], group: str) -> Any:
    """A settings dataclass from parsed values, its groups from theirs."""
    hints, made = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        value = values[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            if not hasattr(value, "__dict__"):
                raise InputError(f"{group}{field.name}", value, "is no group of settings", "give its settings by name")
            value = _build(hints[field.name], vars(value), f"{group}{field.name}.")
        made[field.name] = value
    return kind(**made)


def _check_files(args: Sequence[str], groups: set[str]) -> None:
    """Raises InputError for a config, or the file of a group, that is no plain YAML of usual size: the parser would
    write its aliases out."""
    for word, following in pairwise([*args, ""]):
        name, equals, value = word.partition("=")
        value, name = value if equals else following, name.removeprefix("--")
        if name == "config" or (name in groups and os.path.isfile(value)):
            file = usable_path(name, value)
            try:
                parse_yaml(read_text(file))
            except OSError as error:
                raise InputError(name, file, f"cannot be read ({error.strerror})", "give a YAML file") from None
            except ValueError as error:
                raise InputError(name, file, str(error), "give a YAML file of settings") from None
