"""Charts of this laboratory: the spectrum with its bulks, pairs of losses on logarithmic axes, a power law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from cdmem.report.charts.base import INK, LOOKS, Chart, format_axis, looks, new_figure, number, stem, styled
from cdmem.report.charts.curves import Series, data_rows, draw, frame, keys, log_scale
from cdmem.theory.curves import PowerLaw
from cdmem.theory.random_features.model import Constants
from cdmem.theory.random_features.spectrum import Shape, Spectrum, Theory, density

PER_DECADE = 11  # bars of a histogram
POINTS = 500
ORDER = ("teacher", "student", "control", "student3", "student2", "student4", "copycat")


@dataclass(frozen=True)
class Band:
    """A shaded interval with its name above."""

    low: float
    high: float
    text: str
    kind: str


def _bands(limit: Theory, psi_p: float) -> list[Band]:
    """Gen, the largest of the other bulks as Mem, and what lies below that one; none where no gap separates Gen."""
    bulks, split = limit.bulks, limit.memorising
    if split is None:
        return []
    main = max(range(split), key=lambda k: bulks[k].mass)
    bands = [Band(*limit.rho_2, "Gen", "teacher"), Band(bulks[main].low, bulks[split - 1].high, "Mem", "student")]
    if main:
        share = sum(b.mass for b in bulks[:main]) * psi_p
        text = "d slowest" if abs(share - 1) < 0.02 else f"{share:.2g} d slowest"
        bands.append(Band(bulks[0].low, bulks[main - 1].high, text, "student2"))
    return bands


def _heights(values: np.ndarray, edges: np.ndarray, total: int) -> np.ndarray:
    """Share of ``total`` per unit of ln lambda in each bin."""
    return np.histogram(values, edges)[0] / total / np.diff(np.log(edges))


@styled
def spectrum_chart(spectrum: Spectrum, limit: Theory, c: Constants, s: Shape) -> Chart:
    """Share of eigenvalues per unit of ln lambda: of U pooled over seeds (bars), of its Gaussian equivalent without the
    atom (outline) and of the limit (line), with its intervals shaded and the edges of rho_1 by eq. (2.10) dotted."""
    figure = new_figure(3.9, 7.4)
    ax = figure.add_subplot()
    around = np.geomspace(0.3 * c.s2, limit.bulks[-1].high * 1.05, POINTS)
    x = np.sort(np.concatenate([around, *(np.linspace(b.low, b.high, 120) for b in limit.bulks)]))
    x = x[x > c.s2 * (1 + 1e-6)]
    theory = x * density(x, c, s)
    top = 1.35 * float(theory.max())
    eigenvalues, equivalent = spectrum.exact.ravel(), spectrum.equivalent[spectrum.equivalent > c.s2 * (1 + 1e-9)]
    low, high = 0.45 * c.s2, 1.5 * max(float(x[-1]), float(eigenvalues.max()))
    bins = np.geomspace(low, high, max(int(math.log10(high / low) * PER_DECADE), 8))
    bands = _bands(limit, s.psi_p)
    for band in bands:
        ax.axvspan(band.low, band.high, color=LOOKS[band.kind].color, alpha=0.10, linewidth=0, zorder=0)
    bars = _heights(eigenvalues, bins, len(eigenvalues))
    outline = _heights(equivalent, bins, len(eigenvalues))
    ax.bar(bins[:-1], np.minimum(bars, 2 * top), np.diff(bins), align="edge", color=LOOKS["copycat"].color, alpha=0.55)
    ax.stairs(np.minimum(outline, 2 * top), bins, color=LOOKS["control"].color, linewidth=1.4)
    ax.plot(x, theory, color=INK, linewidth=1.6, zorder=4)
    ax.axvline(c.s2, color=LOOKS["student3"].color, linewidth=2.4, zorder=3)
    for edge in limit.rho_1:
        ax.axvline(edge, color=INK, linewidth=1, linestyle=(0, (1.2, 1.8)), zorder=3)
    ax.set_xlim(low, high)
    ax.set_ylim(0, top)
    log_scale(ax, "x", bins)
    format_axis(ax, "y")
    frame(ax, "eigenvalue λ of U", "share of eigenvalues per unit of ln λ")
    labels = [(math.sqrt(b.low * b.high), b.text) for b in bands]
    atom = max(1 - (1 + s.psi_n) / s.psi_p, 0.0)
    if atom > 0:
        labels.append((c.s2, f"atom {atom:.0%}"))
    _labels(ax, labels)
    control, bar = LOOKS["control"], LOOKS["copycat"]
    label = "U, exact" if spectrum.floor is None else "U, noise draws"
    entries = [(label, bar.color, 6.0, "-"), ("Gaussian equivalent", control.color, 1.4, "-")]
    entries += [("limit (2.9)", INK, 1.6, "-"), ("edges (2.10)", INK, 1.0, ":")]
    handles = [ax.plot([], [], color=color, linewidth=width, linestyle=line)[0] for _, color, width, line in entries]
    figure.legend(handles, [e[0] for e in entries], loc="outside upper left", ncols=4, handlelength=2.0)
    middle = np.sqrt(bins[1:] * bins[:-1])
    rows: list[dict[str, object]] = [
        {"series": series, "x": float(a), "y": float(b)}
        for series, places, values in (("limit", x, theory), ("U", middle, bars), (entries[1][0], middle, outline))
        for a, b in zip(places, values, strict=True)
    ]
    alt = "Eigenvalues of U: an atom, the memorisation bulk and, two decades higher, the generalisation bulk"
    return Chart("spectrum", alt, figure, rows)


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
    mark: tuple[float, str],
    *,
    dashed: Sequence[Series] = (),
    log_y: bool = False,
    limits: tuple[float, float] | None = None,
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
    ax.axvline(mark[0], color=INK, linewidth=1, linestyle=(0, (2, 2)), alpha=0.6)
    _labels(ax, [mark])
    keys(ax, [(s.label, k) for s, k in zip(series, look)])
    rows = data_rows(series, line="solid") + data_rows(dashed, line="dashed")
    return Chart(name, alt, figure, rows, hover)


@styled
def power_chart(series: Series, law: PowerLaw) -> Chart:
    """Least score errors with their ranges and the line of the law, both axes logarithmic."""
    figure = new_figure()
    ax = figure.add_subplot()
    p, look = series.arrays(), LOOKS["teacher"]
    x = np.geomspace(p[0].min() / 1.2, p[0].max() * 1.2, 50)
    log_scale(ax, "x", p[0])
    fitted = law.constant * x**law.exponent
    log_scale(ax, "y", np.concatenate([p[1], fitted]))
    ax.plot(x, fitted, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    has = np.isfinite(p[2])
    ax.vlines(p[0][has], p[2][has], p[3][has], color=look.color, linewidth=1.4)
    ax.plot(p[0], p[1], color=look.color, marker="o", linestyle="none", gid="points0", zorder=4)
    hover = {"points0": [f"{number(float(b))} at {number(float(a))}" for a, b in p[:2].T]}
    frame(ax, "ψ_n", "least score error")
    slope = f"slope {law.exponent:.2f}".replace("-", "−")
    ax.text(0.97, 0.93, slope, transform=ax.transAxes, ha="right", va="top")
    alt = "Least score error against psi_n on logarithmic axes with a fitted line"
    return Chart("score_power", alt, figure, data_rows([series]), hover)
