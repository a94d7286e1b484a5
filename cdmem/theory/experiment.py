"""What the laboratories share: progress, parts of an outcome, and the outcome as files (``results.json``,
``report.html``, every figure as PNG and CSV)."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from cdmem.errors import InputError
from cdmem.io.paths import possible_path
from cdmem.report.page import Figure, Page, Table, Text, write
from cdmem.report.page import Section as PageSection

T = TypeVar("T")
FILES = ("results.json", "report.html", "figures")
KINDS = ("teacher", "student", "control", "student2", "student3", "student4", "copycat")  # looks of series, in order
RECONSTRUCTION = (
    "Reconstruction: no paper or code gives these definitions in full; they were rebuilt from fragments and checked "
    "against those."
)


class Progress:
    """Lines and bars on stderr; none if ``quiet``."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.began = time.monotonic()

    def __call__(self, message: str) -> None:
        """One line with the seconds since the beginning."""
        if not self.quiet:
            print(f"[{time.monotonic() - self.began:6.1f} s] {message}", file=sys.stderr, flush=True)

    def bar(self, items: Iterable[T], what: str) -> Iterable[T]:
        """The same items, with a bar on a terminal; a log has the lines."""
        return tqdm(items, desc=what, disable=self.quiet or not sys.stderr.isatty(), leave=False, file=sys.stderr)


@dataclass(frozen=True)
class Section:
    """A section of the page.

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
    """Results of a laboratory, or of one of its parts.

    Attributes:
        lead: sentences with the main numbers, made from the results.
        results: goes to ``results.json``; nested dicts, lists, numbers and text.
        sections: of the page.
        title: of the page; a part needs none.
    """

    lead: Sequence[str]
    results: Mapping[str, Any]
    sections: Sequence[Section] = ()
    title: str = ""


def combine(title: str, parts: Sequence[Outcome]) -> Outcome:
    """The parts of a laboratory as one outcome; their ``status`` entries are joined."""
    results: dict[str, Any] = {"status": {}}
    for part in parts:
        status = results["status"] | part.results.get("status", {})
        results |= {**part.results, "status": status}
    lead = [line for part in parts for line in part.lead]
    return Outcome(lead, results, [section for part in parts for section in part.sections], title)


def plain(value: Any) -> Any:
    """The same value out of JSON's own types: arrays become lists, what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):  # an array or a tensor
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def span(entry: Mapping[str, Any] | None, form: str = "+.3f") -> str:
    """Mean (or value) and interval of an entry of the results; a dash for None."""
    if entry is None:
        return "-"
    middle = entry["mean"] if "mean" in entry else entry["value"]
    return f"{middle:{form}} [{entry['low']:{form}}, {entry['high']:{form}}]"


def render(outcome: Outcome, command: str) -> Page:
    """The page, with how it was made at its end."""
    sections = []
    for k, s in enumerate(outcome.sections):
        text = [Text(RECONSTRUCTION, "soft")] * s.reconstruction + [Text(line) for line in s.text]
        sections.append(PageSection(f"part{k}", s.title, [*text, *s.parts]))
    made = PageSection("made", "Made by", [Text(command, "code")])
    return Page(outcome.title, outcome.lead, [*sections, made], figures="figures")


def output_folder(given: str, overwrite: bool) -> Path:
    """The folder for the results, checked before anything is computed.

    Raises:
        InputError: it holds results already, is a file, or cannot be written.
    """
    out = possible_path("out", given)
    if out.exists() and not out.is_dir():
        raise InputError("out", out, "is a file", "give a folder")
    present = [name for name in FILES if os.path.lexists(out / name)]
    if present and not overwrite:
        raise InputError("out", out, f"holds {', '.join(present)} already", "give another --out, or --overwrite")
    return out


def write_outcome(outcome: Outcome, folder: Path, command: str) -> Path:
    """Write everything into a folder.

    Args:
        outcome: of a laboratory.
        folder: exists already or not; files of the same names are replaced, others stay.
        command: how the page was made, for its last line.

    Returns:
        The page.

    Raises:
        InputError: a file of that name leads out of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    charts = [part.chart for s in outcome.sections for part in s.parts if isinstance(part, Figure)]
    names = [chart.name for chart in charts]
    if len(set(names)) != len(names):
        raise ValueError(f"two figures share a name: {sorted(names)}")
    results = json.dumps(plain(outcome.results), indent=2, allow_nan=False) + "\n"
    for name, content in {"results.json": results, **render(outcome, command).files("report.html")}.items():
        write(folder, name, content)
    return folder / "report.html"
