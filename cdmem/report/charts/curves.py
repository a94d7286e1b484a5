"""Charts of numbers against numbers: curves with intervals, paths along training, distributions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from cdmem.report.charts.base import (
    HEIGHT,
    INK,
    PAPER,
    Chart,
    Look,
    clean,
    empty,
    floats,
    format_axis,
    looks,
    new_figure,
    number,
    spread,
    stem,
    styled,
    value,
)

DENSE = 30  # from here on only some points get a marker
TARGETS = 60  # points with a hover text, at most
Hover = dict[str, list[str]]


@dataclass(frozen=True)
class Series:
    """Points of one model: ``x``, ``y`` and, if given, the interval ``low``..``high``, each of length n."""

    label: str
    kind: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None

    def arrays(self) -> np.ndarray:
        """(4, n) x, y, low, high of the points that have a place, in the given order; no interval is NaN."""
        n = min(len(self.x), len(self.y))
        rows = np.stack([floats(v, n) for v in (self.x, self.y, self.low, self.high)])
        return rows[:, np.isfinite(rows[0]) & np.isfinite(rows[1])]

    def ascending(self) -> np.ndarray:
        """The same in ascending order of ``x``."""
        points = self.arrays()
        return points[:, np.argsort(points[0], kind="stable")]


def data_rows(series: Sequence[Series], **more: object) -> list[dict[str, object]]:
    """One dict per given point, also of those that cannot be drawn."""
    rows = []
    for s in series:
        n = min(len(s.x), len(s.y))
        low, high = ([*(() if v is None else v), *[None] * n] for v in (s.low, s.high))
        points = (dict(zip(("x", "y", "low", "high"), point)) for point in zip(s.x, s.y, low, high))
        rows += [{**more, "series": s.label, "kind": s.kind, **point} for point in points]
    return rows


def blank(
    name: str, series: Sequence[Series], points: Sequence[np.ndarray], alt: str, height: float = HEIGHT
) -> tuple[Chart, Axes, list[Look]]:
    """A chart of these series with nothing drawn yet, its axes and looks: none where there is nothing to draw."""
    chart = Chart(stem(name), alt, new_figure(height), data_rows(series))
    ax = chart.figure.add_subplot()
    if any(p.shape[1] for p in points):
        return chart, ax, looks(s.kind for s in series)
    empty(ax)
    return chart, ax, []


def log_scale(ax: Axes, which: str, values: np.ndarray) -> None:
    """A log axis with plain labels; linear below the smallest positive value where there are zeros."""
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if not len(positive):
        return
    low, high, axis = float(positive.min()), float(positive.max()), getattr(ax, f"{which}axis")
    if (values <= 0).any():
        getattr(ax, f"set_{which}scale")("symlog", linthresh=low, linscale=0.4)
    else:
        ax.set(**{f"{which}scale": "log"})
        if low == high:
            ax.set(**{f"{which}lim": (low / 3, high * 3)})
        decades = math.log10(high / low)
        subs = (1.0,) if decades > 2.2 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=7))
        if 0 < decades < 0.5:
            axis.set_major_locator(FixedLocator(sorted({low, high})))
    distinct = np.unique(values)
    at = axis.get_transform().transform(distinct)
    # Settings of a sweep are their own ticks, as long as their labels keep apart.
    if which == "x" and 1 < len(distinct) <= 7 and np.diff(at).min() > 0.1 * (at[-1] - at[0]):
        axis.set_major_locator(FixedLocator(distinct))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))


def interval(ax: Axes, points: np.ndarray, look: Look, *, bars: bool = False) -> None:
    """Interval of (4, n) points: a band where every point has one, else bars."""
    x, _, low, high = points
    has = np.isfinite(low) & np.isfinite(high)
    if has.all() and len(x) > 3 and not bars:
        ax.fill_between(x, low, high, color=look.color, alpha=0.2, linewidth=0)
    elif has.any():
        ax.vlines(x[has], low[has], high[has], color=look.color, linewidth=1.3, alpha=0.85)


def hover_text(label: str, point: np.ndarray, *, percent: bool = False, percent_x: bool = False) -> str:
    """What a point says; ``point`` is (4,) x, y, low, high."""
    x, y, low, high = (float(v) for v in point)
    ends = f" [{value(low, percent)}, {value(high, percent)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{clean(label, 80)}: {value(y, percent)}{ends} at {value(x, percent_x)}"


def draw(
    ax: Axes,
    points: np.ndarray,
    look: Look,
    label: str,
    gid: str,
    hover: Hover,
    *,
    percent: bool,
    bars: bool = False,
    dense: int = DENSE,
    shift: float = 1.0,
) -> None:
    """A line with interval, markers and hover texts from (4, n) points; drawn at ``shift`` times their x."""
    x, y = points[0] * shift, points[1]
    if not len(x):
        return
    interval(ax, np.vstack([x, points[1:]]), look, bars=bars)
    ax.plot(x, y, color=look.color, linestyle=look.line, zorder=3)
    face = PAPER if look.hollow else look.color
    dots = {"linestyle": "none", "color": look.color, "marker": look.marker, "markerfacecolor": face, "zorder": 4}
    if len(x) <= dense:
        ax.plot(x, y, gid=gid, **dots)
        shown = np.arange(len(x))
    else:
        ax.plot(x, y, markevery=max(1, len(x) // 7), **dots)
        shown = np.unique(np.linspace(0, len(x) - 1, min(TARGETS, len(x))).round().astype(int))
        clear = {"markerfacecolor": look.color, "markeredgecolor": "none", "markersize": 9}
        ax.plot(x[shown], y[shown], gid=gid, alpha=0, marker="o", linestyle="none", zorder=5, **clear)
    hover[gid] = [hover_text(label, points[:, k], percent=percent) for k in shown]


def keys(ax: Axes, entries: Sequence[tuple[str, Look]], *, width: int = 34) -> None:
    """A legend above the axes, in as many columns as the labels leave room for."""
    if not entries:
        return
    width = width if len(entries) > 1 else 60
    handles = [Line2D([], [], color=k.color, linestyle=k.line, marker=k.marker) for _, k in entries]
    for h, (_, k) in zip(handles, entries):
        h.set_markerfacecolor(PAPER if k.hollow else k.color)
    texts = [clean(label, width) or "unnamed" for label, _ in entries]
    # matplotlib leaves out what begins with an underscore
    texts = [f" {t}" if t.startswith("_") else t for t in texts]
    room, longest = 80, max(map(len, texts))
    beside = 9  # of a label: its line and the space around, in characters
    columns = len(texts) if sum(map(len, texts)) + beside * len(texts) <= room else max(1, room // (longest + beside))
    lines = -(-len(texts) // columns)
    columns = -(-len(texts) // lines)
    # The axes keep their height: the figure grows instead.
    ax.figure.set_figheight(ax.figure.get_figheight() + 0.19 * max(0, lines - 1))
    ax.figure.legend(
        handles, texts, loc="outside upper left", ncols=columns, handlelength=2.4, columnspacing=1.4, borderaxespad=0.2
    )


def name_lines(ax: Axes, entries: Sequence[tuple[str, Look]], points: Sequence[np.ndarray]) -> None:
    """Labels at the line ends where they fit, else a legend above."""
    kept = [(e, p) for e, p in zip(entries, points) if p.shape[1]]
    entries = [e for e, _ in kept]
    to_axes = ax.transScale + ax.transLimits
    ends = [to_axes.transform(p[:2, int(np.argmax(p[0]))]) for _, p in kept]
    fits = 0 < len(kept) <= 6 and all(len(clean(label)) <= 21 for label, _ in entries)
    places = spread([float(e[1]) for e in ends], 0.095, 0.03, 0.97)
    if not fits or any(e[0] < 0.9 or abs(p - e[1]) > 0.3 for p, e in zip(places, ends)):
        keys(ax, entries)
        return
    for (label, look), end, y in zip(entries, ends, places):
        ax.plot(
            [end[0], 1.015, 1.03], [end[1], y, y], color=look.color, linewidth=0.8, transform=ax.transAxes,
            clip_on=False, scalex=False, scaley=False,
        )  # fmt: skip
        ax.text(1.04, y, clean(label) or "unnamed", transform=ax.transAxes, va="center", ha="left", fontsize=10)


def frame(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Name the axes."""
    ax.set_xlabel(clean(xlabel, 64))
    ax.set_ylabel("\n".join(textwrap.wrap(clean(ylabel, 56), 30)))


def y_limits(ax: Axes, points: Sequence[np.ndarray], *, percent: bool = False, room: float = 0.07) -> None:
    """Limits that hold every interval; fractions begin at 0."""
    values = np.concatenate([p[1:].ravel() for p in points]) if points else np.array([])
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    if percent and low >= 0:
        high = max(high, 0.01)
        ax.set_ylim(-0.02 * high, min(high * (1 + room), 1.02) if high <= 1 else high * (1 + room))
        return
    span = (high - low) or abs(high) * 0.2 or 1.0
    ax.set_ylim(low - room * span, high + room * span)


def _marks(ax: Axes, marks: Sequence[tuple[float, str]]) -> None:
    """Vertical lines with labels above the axes; labels too near to the one before go a line higher."""
    finite = sorted((float(floats([x])[0]), text) for x, text in marks)
    finite = [(x, text) for x, text in finite if math.isfinite(x) and (x > 0 or ax.get_xscale() != "log")]
    for x, _ in finite:
        ax.axvline(x, color=INK, linewidth=1, linestyle=(0, (2, 2)), alpha=0.6, zorder=2)
    ends = [-1.0, -1.0, -1.0]
    for x, text in finite:
        text = clean(text.replace("tau_", "τ_"), 24)
        at = float((ax.transScale + ax.transLimits).transform((x, ax.get_ylim()[0]))[0])
        half = 0.0095 * len(text) + 0.01
        row = next((r for r in range(3) if at - half > ends[r]), 2)
        ends[row] = at + half
        ax.annotate(
            text, (at, 1), xycoords="axes fraction", xytext=(0, 3 + 13 * row), textcoords="offset points", ha="center",
            va="bottom", fontsize=10,
        )  # fmt: skip


@styled
def curves(
    name: str,
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    *,
    log_x: bool = False,
    percent: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    beside: bool = False,
    alt: str,
) -> Chart:
    """Lines with interval bands (bars where few points have one) and labelled vertical marks.

    With ``beside``, on a log axis, all have bars, a little to the side of each other so that none hides another.
    """
    order = [s.ascending() for s in series]
    chart, ax, look = blank(name, series, order, alt)
    if not look:
        return chart
    x = np.concatenate([p[0] for p in order])
    if log_x:
        log_scale(ax, "x", x)
    gap = 0.006 * max(float(np.ptp(np.log(x[x > 0]))) if (x > 0).any() else 0.0, 1.0) if beside else 0.0
    shifts = [math.exp(gap * (k - (len(order) - 1) / 2)) for k in range(len(order))]
    # All bands or all bars: a mixture looks like a difference between the models.
    mixed = any(p.shape[1] and s.low is not None and not np.isfinite(p[2:]).all() for s, p in zip(series, order))
    options = {"percent": percent, "bars": beside or mixed}
    for k, (s, p) in enumerate(zip(series, order)):
        draw(ax, p, look[k], s.label, f"points{k}", chart.hover, **options, shift=shifts[k])
    ax.margins(x=0.03 if beside else 0.02)
    if ax.get_xscale() == "linear":
        format_axis(ax, "x")
    format_axis(ax, "y", percent=percent)
    y_limits(ax, order, percent=percent)
    if beside and ax.get_ylim()[0] < 0 < ax.get_ylim()[1]:
        ax.axhline(0, color=INK, linewidth=0.9, alpha=0.6, zorder=1.5)
    _marks(ax, marks)
    frame(ax, xlabel, ylabel)
    shown = [np.vstack([p[:1] * shift, p[1:]]) for p, shift in zip(order, shifts)]
    name_lines(ax, [(s.label, k) for s, k in zip(series, look)], shown)
    return chart


@styled
def path(name: str, series: Sequence[Series], xlabel: str, ylabel: str, *, percent_y: bool, alt: str) -> Chart:
    """Two numbers along training: markers grow with time, the first is hollow; points stay in the given order."""
    order = [s.arrays() for s in series]
    chart, ax, look = blank(name, series, order, alt, HEIGHT + 0.3)
    if not look:
        return chart
    for k, (s, p) in enumerate(zip(series, order)):
        n = p.shape[1]
        if not n:
            continue
        ax.plot(p[0], p[1], color=look[k].color, linestyle=look[k].line, linewidth=1.4, alpha=0.8, zorder=3)
        faces = [PAPER if j == 0 and n > 1 else look[k].color for j in range(n)]
        sizes = np.linspace(12, 60, n) if n > 1 else np.array([60.0])
        sizes[0] = max(sizes[0], 34)  # else its hole cannot be seen
        ax.scatter(
            p[0], p[1], s=sizes, c=faces, edgecolors=look[k].color, linewidths=1.3, marker=look[k].marker,
            gid=f"points{k}", zorder=4,
        )  # fmt: skip
        texts = [f"{hover_text(s.label, p[:, j], percent=percent_y)} ({j + 1} of {n})" for j in range(n)]
        chart.hover[f"points{k}"] = texts
        _arrow(ax, p, look[k])
    ax.margins(x=0.06)
    format_axis(ax, "x")
    format_axis(ax, "y", percent=percent_y)
    y_limits(ax, order, percent=percent_y, room=0.09)
    frame(ax, xlabel, ylabel)
    keys(ax, [(s.label, k) for s, k, p in zip(series, look, order) if p.shape[1]])
    return chart


def _arrow(ax: Axes, points: np.ndarray, look: Look) -> None:
    """An arrow head in the middle of the longest step of (4, n) points."""
    if points.shape[1] < 2:
        return
    x, y = points[:2]
    dx, dy = np.diff(x) / (np.ptp(x) or 1), np.diff(y) / (np.ptp(y) or 1)
    k = int(np.argmax(np.hypot(dx, dy)))
    if x[k] == x[k + 1] and y[k] == y[k + 1]:
        return
    start, end = ((x[k] + f * (x[k + 1] - x[k]), y[k] + f * (y[k + 1] - y[k])) for f in (0.45, 0.62))
    arrow = {"arrowstyle": "-|>", "color": look.color, "mutation_scale": 13, "shrinkA": 0, "shrinkB": 0, "lw": 1.2}
    ax.annotate("", end, start, arrowprops=arrow, zorder=3.5)


@styled
def cdfs(name: str, series: Sequence[Series], threshold: float, alt: str) -> Chart:
    """Cumulative shares (y) of d1/d2 (x in [0, 1]); the threshold is marked."""
    order = [s.ascending() for s in series]
    chart, ax, look = blank(name, series, order, alt)
    if not look:
        return chart
    for k, (s, p) in enumerate(zip(series, order)):
        draw(ax, p, look[k], s.label, f"points{k}", chart.hover, percent=True)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.01)
    format_axis(ax, "x")
    format_axis(ax, "y", percent=True)
    _marks(ax, [(threshold, f"threshold {threshold:.3g}")])
    frame(ax, "d1/d2", "share of samples below")
    keys(ax, [(s.label, k) for s, k, p in zip(series, look, order) if p.shape[1]])
    return chart
