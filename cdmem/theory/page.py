"""A laboratory's findings as files: ``results.json``, ``report.html``, and every figure as PNG and CSV."""

from __future__ import annotations

import json
from pathlib import Path

from cdmem.report.page import Page, Text, write
from cdmem.report.page import Section as PageSection
from cdmem.theory.frame import Figure, Outcome, plain

RECONSTRUCTION = (
    "Reconstruction: no paper or code gives these definitions in full; they were rebuilt from fragments and checked "
    "against those."
)


def render(outcome: Outcome, command: str) -> Page:
    """The page."""
    sections = []
    for k, s in enumerate(outcome.sections):
        text = [Text(RECONSTRUCTION, "soft")] * s.reconstruction + [Text(line) for line in s.text]
        sections.append(PageSection(f"part{k}", s.title, [*text, *s.parts]))
    made = PageSection("made", "Made by", [Text(command, "code")])
    return Page(outcome.title, outcome.lead, [*sections, made], figures="figures")


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
