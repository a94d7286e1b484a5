"""A laboratory's findings as files: ``results.json``, ``report.html``, and every figure as PNG and CSV."""

from __future__ import annotations

import json
from pathlib import Path

from cdmem.report.build import write
from cdmem.report.html import esc, figure, table
from cdmem.report.style import page
from cdmem.theory.frame import Figure, Outcome, Section, Table, plain

RECONSTRUCTION = (
    "Reconstruction: no paper or code gives these definitions in full; they were rebuilt from fragments and checked "
    "against those."
)


def render(outcome: Outcome, command: str) -> str:
    """The page, one self-contained HTML document."""
    links = "".join(f'<a href="#part{k}">{esc(s.title)}</a>' for k, s in enumerate(outcome.sections))
    lead = "".join(f'<p class="lead">{esc(line)}</p>' for line in outcome.lead)
    parts = [f"<h1>{esc(outcome.title)}</h1>", lead, f"<nav>{links}</nav>"]
    parts += [_section(k, s) for k, s in enumerate(outcome.sections)]
    parts.append(f"<h2>Made by</h2><pre>{esc(command)}</pre>")
    return page(esc(outcome.title), "\n".join(parts))


def _section(k: int, section: Section) -> str:
    mark = f'<p class="soft"><b>{esc(RECONSTRUCTION)}</b></p>' if section.reconstruction else ""
    text = "".join(f"<p>{esc(line)}</p>" for line in section.text)
    body = "".join(_part(part) for part in section.parts)
    return f'<section id="part{k}"><h2>{esc(section.title)}</h2>{mark}{text}{body}</section>'


def _part(part: Figure | Table) -> str:
    if isinstance(part, Table):
        rows = [[esc(cell) for cell in row] for row in part.rows]
        return table(part.head, rows, caption=part.caption, sortable=False)
    name = esc(part.chart.name)
    links = f' <a href="figures/{name}.png">PNG</a> <a href="figures/{name}.csv">CSV</a>'
    return figure(part.chart.svg(), part.caption, links)


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
    for chart in charts:
        write(folder, f"figures/{chart.name}.png", chart.png())
        write(folder, f"figures/{chart.name}.csv", chart.csv())
    write(folder, "results.json", json.dumps(plain(outcome.results), indent=2, allow_nan=False) + "\n")
    write(folder, "report.html", render(outcome, command))
    return folder / "report.html"
