"""What the laboratories share: how they tell of their progress, and what they hand over to be written."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from cdmem.report.page import Figure, Table

T = TypeVar("T")


class Progress:
    """Lines and bars on stderr; silent if told so."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.began = time.monotonic()

    def __call__(self, message: str) -> None:
        """One line with the seconds since the beginning."""
        if not self.quiet:
            print(f"[{time.monotonic() - self.began:6.1f} s] {message}", file=sys.stderr, flush=True)

    def bar(self, items: Iterable[T], what: str) -> Iterable[T]:
        """The same items, with a bar."""
        return tqdm(items, desc=what, disable=self.quiet, leave=False, file=sys.stderr)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: heading.
        text: paragraphs of plain text.
        parts: figures and tables, in order.
        reconstruction: not published anywhere; the page marks it so.
    """

    title: str
    text: Sequence[str] = ()
    parts: Sequence[Figure | Table] = ()
    reconstruction: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a laboratory found.

    Attributes:
        title: of the page.
        lead: sentences with the main numbers, made from the results.
        results: goes to ``results.json``; nested dicts, lists, numbers and text.
        sections: of the page.
    """

    title: str
    lead: Sequence[str]
    results: Mapping[str, Any]
    sections: Sequence[Section] = field(default_factory=list)


def plain(value: Any) -> Any:
    """The same value out of JSON's own types: arrays become lists, what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):  # a tensor
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
