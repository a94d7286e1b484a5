"""Charts that only this laboratory draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from cdmem.report.charts.base import INK, LOOKS, Chart, format_axis, new_figure, number, stem, styled
from cdmem.report.charts.curves import Series, data_rows, draw, frame, hover_text, keys, log_scale
from cdmem.report.charts.curves import looks as looks_of

DENSE = 40


@styled
def lines(
    name: str,
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    *,
    levels: Sequence[tuple[float, str]] = (),
    log_y: bool = False,
    alt: str,
) -> Chart:
    """Lines with intervals against a linear x; ``levels`` are dashed and named at the right."""
    name, figure, hover = stem(name), new_figure(), {}
    ax = figure.add_subplot()
    points, look = [s.arrays() for s in series], looks_of(s.kind for s in series)
    if log_y:
        log_scale(ax, "y", np.concatenate([p[1] for p in points] + [np.array([v for v, _ in levels])]))
    for k, (s, p) in enumerate(zip(series, points)):
        draw(ax, p, look[k], s.label, f"points{k}", hover, percent=False, dense=DENSE)
    for value, text in levels:
        ax.axhline(value, color=INK, linewidth=1, linestyle=(0, (2, 2)), alpha=0.6)
        ax.annotate(text, (1, value), (4, 0), ("axes fraction", "data"), textcoords="offset points", va="center")
    ax.margins(x=0.02)
    format_axis(ax, "x")
    if not log_y:
        format_axis(ax, "y")
    frame(ax, xlabel, ylabel)
    if len(series) > 1:
        keys(ax, [(s.label, k) for s, k in zip(series, look)])
    rows = data_rows(series) + [{"series": text, "kind": "level", "x": None, "y": value} for value, text in levels]
    return Chart(name, alt, figure, rows, hover)


@styled
def against(
    name: str,
    groups: Sequence[Series],
    slope: float,
    xlabel: str,
    ylabel: str,
    *,
    label: str,
    origin: bool = True,
    alt: str,
) -> Chart:
    """Points of several groups, side by side where they share an x, and the line y = slope x."""
    name, figure, hover = stem(name), new_figure(), {}
    ax = figure.add_subplot()
    look = [replace(k, line="none") for k in looks_of(s.kind for s in groups)]
    points = [s.arrays() for s in groups]
    x = np.concatenate([p[0] for p in points])
    room = 0.1 * float(np.ptp(x)) + 1e-3
    low, high = (0.0, 1.06 * float(x.max())) if origin else (float(x.min()) - room, float(x.max()) + room)
    gap = 0.016 * (high - low) if origin else 0.0
    for k, (s, p) in enumerate(zip(groups, points)):
        at = p[0] + gap * (k - (len(groups) - 1) / 2)
        has = np.isfinite(p[2]) & np.isfinite(p[3])
        ax.vlines(at[has], p[2][has], p[3][has], color=look[k].color, linewidth=1.1, alpha=0.7)
        ax.plot(at, p[1], color=look[k].color, marker=look[k].marker, linestyle="none", gid=f"points{k}", zorder=4)
        hover[f"points{k}"] = [hover_text(s.label, p[:, j]) for j in range(p.shape[1])]
    ax.plot([low, high], [slope * low, slope * high], color=INK, linewidth=1.1, linestyle=(0, (4, 2)), alpha=0.8)
    ax.text(0.97, 0.05, f"dashed: {label}", transform=ax.transAxes, ha="right", va="bottom")
    ax.set_xlim(low, high)
    if origin:
        ax.set_ylim(0, None)
    format_axis(ax, "x")
    format_axis(ax, "y")
    frame(ax, xlabel, ylabel)
    keys(ax, [(s.label, k) for s, k in zip(groups, look)])
    return Chart(name, alt, figure, data_rows(groups), hover)


@styled
def picture_rows(name: str, rows: Sequence[tuple[str, Tensor, Sequence[bool]]], alt: str) -> Chart:
    """Rows of small colour pictures (n, 3, side, side) with a label each; framed where marked."""
    count = max(len(pictures) for _, pictures, _ in rows)
    name, figure = stem(name), new_figure(0.62 * len(rows) + 0.1)
    axes = figure.subplots(len(rows), count, squeeze=False)
    data = []
    for line, (label, pictures, marked) in zip(axes, rows):
        for ax in line:
            ax.set_axis_off()
        line[0].text(-0.25, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=10)
        for k, (ax, picture, mark) in enumerate(zip(line, pictures, marked)):
            shown = (picture.permute(1, 2, 0) / 5 + 0.5).clamp(0, 1).numpy()  # 2.5 deviations to each side
            ax.imshow(shown, interpolation="nearest")
            if mark:
                ax.set_axis_on()
                ax.set(xticks=[], yticks=[])
                ax.grid(False)
                for spine in ax.spines.values():
                    spine.set(visible=True, color=LOOKS["student"].color, linewidth=2)
            data.append({"row": label, "picture": k, "framed": bool(mark)})
    return Chart(name, alt, figure, data)


def share(value: float | None) -> str:
    """A share M/N for a table; a dash where there is none."""
    return "-" if value is None else number(round(value, 3))
