"""What a page consists of, and how it becomes one HTML file: the template escapes every text that it is given."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import jinja2
import numpy as np
from PIL import Image

from cdmem.io.atomic import keep_inside, replacing
from cdmem.report.charts import Chart
from cdmem.report.rows import Cell


@dataclass(frozen=True)
class Text:
    """A paragraph; by ``kind`` a ``soft`` one, a ``heading`` or ``code``; with a ``summary`` it is folded."""

    text: str
    kind: str = "paragraph"
    summary: str = ""


@dataclass(frozen=True)
class Link:
    """A cell that leads to another page."""

    text: str
    href: str


@dataclass(frozen=True)
class Table:
    """Rows of text, estimates, links, or yes and no; the first column names the row; ``sortable`` by its headings."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Cell | Link | bool]]
    caption: str = ""
    sortable: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart and the words below it."""

    kind: ClassVar[str] = "figure"
    chart: Chart
    caption: str


@dataclass(frozen=True)
class Picture:
    """A small image as base64 of its PNG, magnified to ``width`` x ``height``; ``framed`` where it is memorised."""

    png: str
    alt: str
    width: int
    height: int
    framed: bool = False


@dataclass(frozen=True)
class Wall:
    """Tiles side by side; each is words and rows of pictures, one below the other."""

    kind: ClassVar[str] = "wall"
    tiles: Sequence[Sequence[str | Sequence[Picture]]]


Part = Text | Table | Figure | Wall


@dataclass(frozen=True)
class Section:
    """Parts below a heading, to which the page's top leads; left out where there are none."""

    anchor: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Verdict:
    """A box at the top: ``claim`` chooses its colour; ``beside`` compares at equal NFE."""

    claim: str
    title: str
    text: str
    beside: str = ""


@dataclass(frozen=True)
class Page:
    """One document: title, sentences (``lead``), verdicts, a table, sections.

    Attributes:
        figures: folder of the figures' files, beside the page.
    """

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    verdicts: Sequence[Verdict] = ()
    table: Table | None = None
    figures: str = "report"

    def html(self) -> str:
        """The document: no font, script or image is fetched."""
        return _template().render(page=self)

    def files(self, name: str) -> dict[str, str | bytes]:
        """Content by file name: every figure as PNG and CSV, then the page under its own name."""
        charts = [part.chart for s in self.sections for part in s.parts if isinstance(part, Figure)]
        pictures = {f"{self.figures}/{chart.name}.png": chart.png() for chart in charts}
        return pictures | {f"{self.figures}/{chart.name}.csv": chart.csv() for chart in charts} | {name: self.html()}


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2")


def picture(image: np.ndarray, alt: str, scale: int, *, framed: bool = False) -> Picture:
    """An uint8 image (H, W, C), to be magnified ``scale`` times without smoothing.

    Raises:
        ValueError: other numbers than uint8, or a form that is no image's.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
        raise ValueError(f"a picture of {image.dtype} with shape {list(image.shape)}")
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, format="PNG")
    height, width = image.shape[:2]
    return Picture(base64.b64encode(stream.getvalue()).decode(), alt, width * scale, height * scale, framed)


def write(root: Path, name: str, content: str | bytes) -> None:
    """A file below a folder; a crash leaves the old page or the new one, and no link out of the folder is followed."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    keep_inside(root, path)
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
