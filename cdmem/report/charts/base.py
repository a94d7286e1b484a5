"""What every chart shares: its type, its look, and how its figure becomes SVG, PNG and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from cdmem.report.charts.svg import inline

P = ParamSpec("P")

WIDTH, HEIGHT = 6.2, 3.4  # inches
DPI = 160
# Text and axes; nearly black, so that a PNG needs no recolouring. In SVG it becomes currentColor.
INK = "#010203"
# Inside of hollow markers; nearly white. In SVG it becomes the page's background.
PAPER = "#fdfefc"

_OWN = ("axes", "errorbar", "figure", "font", "grid", "hatch", "legend", "lines", "markers", "mathtext", "patch")
_OWN += ("path", "savefig", "scatter", "svg", "text", "xtick", "ytick")
STYLE: dict[str, object] = {
    # A reader's own matplotlibrc must not change the report, so every drawing setting is given.
    **{k: v for k, v in matplotlib.rcParamsDefault.items() if k.split(".")[0] in _OWN},
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.9,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line style of a kind of model; ``hollow`` leaves the marker empty."""

    color: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]
    hollow: bool = False


# After Okabe and Ito, shifted to reach 3:1 on white and on #14161a; markers and dashes carry the same distinction.
LOOKS = {
    "teacher": Look("#1a6fb8", "o", "-"),
    "student": Look("#c85000", "s", "-"),
    "student2": Look("#be8000", "D", (0, (6, 1.6))),
    "student3": Look("#b8639a", "^", (0, (5, 1.4, 1.2, 1.4))),
    "student4": Look("#8c7a00", "v", (0, (1.4, 1.2))),
    "control": Look("#4f8f72", "P", (0, (3, 1.4))),
    "copycat": Look("#828282", "X", (0, (3, 1, 1, 1, 1, 1))),
    "cheap": Look("#4a98c9", "o", (0, (4, 1.8)), hollow=True),
}
_SPARE = ("o", "s", "D", "^", "v", "P", "X", "<", ">")
_DASHES = ("-", (0, (5, 1.6)), (0, (1.4, 1.3)), (0, (5, 1.4, 1.2, 1.4)))


def looks(kinds: Iterable[str]) -> list[Look]:
    """One look per series: a kind that comes back takes a free student colour or else another marker and dash."""
    used: list[str] = []
    chosen = []
    for raw in kinds:
        kind = raw if raw in LOOKS else "copycat"
        times = used.count(kind)
        free = [k for k in ("student", "student2", "student3", "student4") if k not in used]
        if times and kind.startswith("student") and free:
            kind, times = free[0], 0
        base = LOOKS[kind]
        if times:
            at = (_SPARE.index(base.marker) + 2 * times) % len(_SPARE)
            base = Look(base.color, _SPARE[at], _DASHES[times % len(_DASHES)], base.hollow)
        used.append(kind)
        chosen.append(base)
    return chosen


@dataclass(frozen=True)
class Chart:
    """A figure with its description and its data.

    Attributes:
        name: file stem, ``[a-z0-9_]``.
        alt: one sentence for people who cannot see it.
        figure: the drawing, transparent.
        rows: data for CSV, one dict per point.
        hover: id of a group in the drawing -> text of each of its points, in drawing order.
    """

    name: str
    alt: str
    figure: Figure
    rows: list[dict[str, object]] = field(default_factory=list)
    hover: dict[str, list[str]] = field(default_factory=dict)

    def svg(self) -> str:
        """Inline ``<svg>``: follows the page's colours, ids begin with the name, points say their values."""
        out = io.BytesIO()
        with _drawing({"svg.hashsalt": self.name}):
            FigureCanvasSVG(self.figure).print_figure(out, format="svg", dpi=DPI, metadata={"Date": None})
        colors = {INK: "currentColor", PAPER: "var(--bg, #fff)"}
        return inline(out.getvalue(), self.name, clean(self.alt, 2000), colors, self.hover)

    def png(self) -> bytes:
        """160 dpi, black on white."""
        out = io.BytesIO()
        about = {"facecolor": "white", "metadata": {"Software": None}}
        with _drawing({}):
            FigureCanvasAgg(self.figure).print_figure(out, format="png", dpi=DPI, **about)
        return out.getvalue()

    def csv(self) -> str:
        """The rows under one header; text that a spreadsheet would run as a formula gets an apostrophe."""
        keys = list(dict.fromkeys(k for row in self.rows for k in row))
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        if keys:
            writer.writerow([_cell(k) for k in keys])
        writer.writerows([_cell(row.get(k)) for k in keys] for row in self.rows)
        return out.getvalue()


@contextmanager
def _drawing(more: Mapping[str, object]) -> Iterator[None]:
    with matplotlib.rc_context({**STYLE, **more}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs of names in scripts that the layout font lacks
        yield


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, str):
        risky = value.lstrip().startswith(("=", "+", "-", "@")) or value.startswith(("\t", "\r"))
        return f"'{value}" if risky else value
    return value.item() if isinstance(value, np.generic) else value


def styled(build: Callable[P, Chart]) -> Callable[P, Chart]:
    """Run a builder under STYLE, which artists read when they are made, and lay its figure out for good."""

    @wraps(build)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Chart:
        with _drawing({}):
            chart = build(*args, **kwargs)
            # Every draw would move the axes a little; two suffice, and then each output shows the same layout.
            for _ in range(2):
                chart.figure.draw_without_rendering()
            chart.figure.set_layout_engine("none")
            return chart

    return inner


def stem(name: str) -> str:
    """A name as file stem and id prefix."""
    text = re.sub(r"[^a-z0-9_]+", "_", name.lower()) or "chart"
    return text if text[0].isalpha() else f"c{text}"


def new_figure(height: float = HEIGHT, width: float = WIDTH) -> Figure:
    """A transparent figure, laid out so that nothing is clipped; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    return figure


def clean(text: object, width: int = 60) -> str:
    """One line of printable text, cut in the middle with an ellipsis; controls would make the XML invalid."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    if len(line) <= width:
        return line
    tail = (width - 1) // 3
    return f"{line[: width - 1 - tail].rstrip()}…{line[-tail:].lstrip()}"


def floats(values: Sequence[float | None] | np.ndarray | None, n: int | None = None) -> np.ndarray:
    """Numbers as (n,) float64; None, text and anything beyond 1e100 become NaN, missing ones are NaN."""
    out = []
    for v in [] if values is None else values:
        try:
            f = float(v)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            f = math.nan
        out.append(f if math.isfinite(f) and abs(f) < 1e100 else math.nan)
    array = np.array(out, dtype=float)
    if n is None or len(array) == n:
        return array
    return np.concatenate([array, np.full(max(0, n - len(array)), np.nan)])[:n]


_UP = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(v: float) -> str:
    """Thousands separated; four digits; powers of ten from 10⁷ and below 10⁻⁴."""
    if not math.isfinite(v):
        return "n/a"
    a = abs(v)
    if a == 0:
        return "0"
    if a >= 1e7 or a < 1e-4:
        digits, power = f"{a:.2e}".split("e")
        digits = digits.rstrip("0").rstrip(".")
        text = f"{'' if digits == '1' else digits + '·'}10{str(int(power)).translate(_UP)}"
    else:
        text = f"{a:,.0f}" if a >= 1000 else f"{a:.4g}"
    return f"−{text}" if v < 0 else text


def share(v: float) -> str:
    """A fraction as per cent."""
    if not math.isfinite(v):
        return "n/a"
    if abs(v) > 10:
        return f"{number(100 * v)} %"
    if 0 < abs(v) < 5e-5:
        return "<0.01 %" if v > 0 else "−0.00 %"
    text = f"{100 * v:.2f}".rstrip("0").rstrip(".")
    return f"{text} %".replace("-", "−")


def value(v: float, percent: bool = False) -> str:
    """A number, or a share as a percentage."""
    return share(v) if percent else number(v)


def format_axis(ax: Axes, which: str, *, percent: bool = False, bins: int = 5) -> None:
    """Few ticks with plain labels on a linear axis (``x`` or ``y``)."""
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda v, _: value(float(v), percent)))
    axis.set_minor_formatter(NullFormatter())


def empty(ax: Axes, text: str = "no data") -> None:
    """Say that there is nothing to draw."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", alpha=0.75)


def spread(at: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Positions moved as little as needed to lie ``gap`` apart within [low, high], in the same order."""
    order = sorted(range(len(at)), key=lambda k: at[k])
    out = [0.0] * len(at)
    floor = low
    for k in order:
        out[k] = floor = max(at[k], floor)
        floor += gap
    ceiling = high
    for k in reversed(order):
        out[k] = min(out[k], ceiling)
        ceiling = out[k] - gap
    return out
