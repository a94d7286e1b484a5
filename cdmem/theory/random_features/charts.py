"""Charts of this laboratory: the spectrum with its bulks, pairs of losses on logarithmic axes, a power law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from cdmem.report.charts.base import INK, LOOKS, Chart, format_axis, looks, new_figure, number, stem, styled
from cdmem.report.charts.curves import Series, data_rows, draw, frame, keys, log_scale, name_lines
from cdmem.theory.random_features.spectrum import Bulk

PER_DECADE = 11  # bars of a histogram
ORDER = ("teacher", "student", "control", "student3", "student2", "student4", "copycat")


@dataclass(frozen=True)
class Band:
    """A shaded interval with its name above."""

    low: float
    high: float
    text: str
    kind: str


def bands_of(generalisation: Sequence[Bulk], memorisation: Sequence[Bulk], d_share: float) -> list[Band]:
    """Gen, the largest of the other bulks as Mem, and what lies below that one."""
    bands = []
    if generalisation:
        bands.append(Band(generalisation[0].low, generalisation[-1].high, "Gen", "teacher"))
    if memorisation:
        main = max(range(len(memorisation)), key=lambda k: memorisation[k].mass)
        bands.append(Band(memorisation[main].low, memorisation[-1].high, "Mem", "student"))
        if main:
            share = sum(b.mass for b in memorisation[:main]) / d_share
            text = "d slowest" if abs(share - 1) < 0.02 else f"{share:.2g} d slowest"
            bands.append(Band(memorisation[0].low, memorisation[main - 1].high, text, "student2"))
    return bands


def _heights(values: np.ndarray, edges: np.ndarray, total: int) -> np.ndarray:
    """Share of ``total`` per unit of ln lambda in each bin."""
    return np.histogram(values, edges)[0] / total / np.diff(np.log(edges))


@styled
def spectrum_chart(
    name: str,
    eigenvalues: np.ndarray,
    equivalent: np.ndarray,
    x: np.ndarray,
    rho: np.ndarray,
    atom: tuple[float, float],
    bands: Sequence[Band],
    edges: tuple[float, float],
    label: str,
    alt: str,
) -> Chart:
    """Share of eigenvalues per unit of ln lambda.

    Args:
        name: of the chart.
        eigenvalues: of U, pooled over seeds (bars).
        equivalent: of the Gaussian equivalent, without its atom (outline), as shares of as many as ``eigenvalues``.
        x: where the limiting density is known.
        rho: limiting density, share per unit of lambda.
        atom: place and share.
        bands: to shade.
        edges: of rho_1 by eq. (2.10), dotted.
        label: of the bars.
        alt: alternative text.
    """
    name, figure = stem(name), new_figure(3.9, 7.4)
    ax = figure.add_subplot()
    low, high = 0.45 * atom[0], 1.5 * max(float(x[-1]), float(eigenvalues.max()))
    bins = np.geomspace(low, high, max(int(math.log10(high / low) * PER_DECADE), 8))
    theory = x * rho
    top = 1.35 * float(theory.max())
    for band in bands:
        ax.axvspan(band.low, band.high, color=LOOKS[band.kind].color, alpha=0.10, linewidth=0, zorder=0)
    bars = _heights(eigenvalues, bins, len(eigenvalues))
    outline = _heights(equivalent, bins, len(eigenvalues))
    ax.bar(bins[:-1], np.minimum(bars, 2 * top), np.diff(bins), align="edge", color=LOOKS["copycat"].color, alpha=0.55)
    ax.stairs(np.minimum(outline, 2 * top), bins, color=LOOKS["control"].color, linewidth=1.4)
    ax.plot(x, theory, color=INK, linewidth=1.6, zorder=4)
    ax.axvline(atom[0], color=LOOKS["student3"].color, linewidth=2.4, zorder=3)
    for edge in edges:
        ax.axvline(edge, color=INK, linewidth=1, linestyle=(0, (1.2, 1.8)), zorder=3)
    ax.set_xlim(low, high)
    ax.set_ylim(0, top)
    log_scale(ax, "x", bins)
    format_axis(ax, "y")
    frame(ax, "eigenvalue λ of U", "share of eigenvalues per unit of ln λ")
    labels = [(math.sqrt(b.low * b.high), b.text) for b in bands]
    if atom[1] > 0:
        labels.append((atom[0], f"atom {atom[1]:.0%}"))
    _labels(ax, labels)
    control, bar = LOOKS["control"], LOOKS["copycat"]
    entries = [(label, bar.color, 6.0, "-"), ("Gaussian equivalent", control.color, 1.4, "-")]
    entries += [("limit (2.9)", INK, 1.6, "-"), ("edges (2.10)", INK, 1.0, ":")]
    handles = [ax.plot([], [], color=color, linewidth=width, linestyle=line)[0] for _, color, width, line in entries]
    figure.legend(handles, [e[0] for e in entries], loc="outside upper left", ncols=4, handlelength=2.0)
    rows: list[dict[str, object]] = [
        {"series": "limit", "x": float(a), "y": float(b)} for a, b in zip(x, theory, strict=True)
    ]
    middle = np.sqrt(bins[1:] * bins[:-1])
    for series, values in (("U", bars), ("Gaussian equivalent", outline)):
        rows += [{"series": series, "x": float(a), "y": float(b)} for a, b in zip(middle, values, strict=True)]
    return Chart(name, alt, figure, rows)


def _labels(ax: Axes, labels: Sequence[tuple[float, str]]) -> None:
    """Names above the axes; those that would touch go a line higher."""
    right = [-1.0, -1.0]
    for at, text in sorted(labels):
        place = float((ax.transScale + ax.transLimits).transform((at, 0))[0])
        half = 0.0085 * len(text)
        row = 0 if place - half > right[0] else 1
        right[row] = place + half
        ax.annotate(text, (place, 1), xycoords="axes fraction", xytext=(0, 3 + 13 * row), textcoords="offset points",
                    ha="center", va="bottom")  # fmt: skip


@styled
def paths(
    name: str,
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    *,
    dashed: Sequence[Series] = (),
    log_y: bool = False,
    limits: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
    alt: str,
) -> Chart:
    """Lines against a logarithmic x; each of ``dashed`` takes the colour of the series at its place."""
    name, figure, hover = stem(name), new_figure(), {}
    ax = figure.add_subplot()
    look = looks(s.kind for s in series)
    if dashed:  # dashes have another meaning then
        look = [replace(k, line="-") for k in look]
    points = [s.arrays() for s in series]
    log_scale(ax, "x", np.concatenate([p[0] for p in points]))
    for k, s in enumerate(dashed):
        x, y = s.arrays()[:2]
        ax.plot(x, y, color=look[k].color, linewidth=1.4, linestyle=(0, (4, 2)), zorder=2)
    if log_y:
        log_scale(ax, "y", np.concatenate([p[1] for p in points]))
    for k, (s, p) in enumerate(zip(series, points)):
        draw(ax, p, look[k], s.label, f"points{k}", hover, percent=False)
    ax.margins(x=0.02)
    if limits:
        ax.set_ylim(*limits)
    if not log_y:
        format_axis(ax, "y")
    frame(ax, xlabel, ylabel)
    if mark:
        ax.axvline(mark[0], color=INK, linewidth=1, linestyle=(0, (2, 2)), alpha=0.6)
        _labels(ax, [mark])
    entries = [(s.label, k) for s, k in zip(series, look)]
    if dashed or mark or limits:
        keys(ax, entries)
    else:
        name_lines(ax, entries, points)
    rows = data_rows(series, line="solid") + data_rows(dashed, line="dashed")
    return Chart(name, alt, figure, rows, hover)


@styled
def power_chart(name: str, series: Series, law: tuple[float, float], xlabel: str, ylabel: str, alt: str) -> Chart:
    """Points with intervals and the line of ``law`` = (constant, exponent), both axes logarithmic."""
    name, figure, hover = stem(name), new_figure(), {}
    ax = figure.add_subplot()
    p, look = series.arrays(), LOOKS["teacher"]
    x = np.geomspace(p[0].min() / 1.2, p[0].max() * 1.2, 50)
    log_scale(ax, "x", p[0])
    log_scale(ax, "y", np.concatenate([p[1], law[0] * x ** law[1]]))
    ax.plot(x, law[0] * x ** law[1], color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    has = np.isfinite(p[2])
    ax.vlines(p[0][has], p[2][has], p[3][has], color=look.color, linewidth=1.4)
    ax.plot(p[0], p[1], color=look.color, marker="o", linestyle="none", gid="points0", zorder=4)
    hover["points0"] = [f"{number(float(b))} at {number(float(a))}" for a, b in p[:2].T]
    frame(ax, xlabel, ylabel)
    ax.text(0.97, 0.93, f"slope {law[1]:.2f}".replace("-", "−"), transform=ax.transAxes, ha="right", va="top")
    return Chart(name, alt, figure, data_rows([series]), hover)
