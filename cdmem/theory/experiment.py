"""What the laboratories share: progress, parts of an outcome, and the outcome as files (``results.json``,
``report.html``, every figure as PNG and CSV)."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cdmem.audit.result import plain
from cdmem.errors import InputError
from cdmem.io.paths import possible_path
from cdmem.io.progress import progress
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

    def bar(self, items: Collection[T], what: str) -> Iterator[T]:
        """The same items, each counted when the next one is asked for."""
        with progress(len(items), what, self.quiet) as shown:
            for item in items:
                yield item
                shown.update()


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
