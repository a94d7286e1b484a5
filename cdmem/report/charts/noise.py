"""Charts over copies of a training image and over noise levels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from cdmem.report.charts.base import HEIGHT, INK, PAPER, Chart, clean, floats, number, styled
from cdmem.report.charts.curves import Series, blank, curves, draw, frame, hover_text, keys, log_scale


@styled
def hits_by_multiplicity(
    name: str, series: Sequence[Series], slopes: dict[str, tuple[float | None, ...] | None], alt: str
) -> Chart:
    """Mean hits per sample against copies, log-log, with a guide of slope 1 and the fitted slopes as labels.

    Points without a hit have no logarithm: they lie hollow on the lower edge.
    """
    order = [p[:, p[0] > 0] for p in (s.ascending() for s in series)]
    chart, ax, look = blank(name, series, order, alt, HEIGHT + 0.3)
    if not look:
        return chart
    hover = chart.hover
    ys = np.concatenate([p[1] for p in order])
    positive = ys[ys > 0]
    floor = float(positive.min()) / 3 if len(positive) else 1e-3
    log_scale(ax, "x", np.concatenate([p[0] for p in order]))
    log_scale(ax, "y", np.append(positive, [floor, floor * 10]) if (ys <= 0).any() else positive)
    for k, (s, p) in enumerate(zip(series, order)):
        hit = p[1] > 0
        lifted = p[:, hit].copy()
        lifted[2] = np.where(np.isfinite(lifted[2]), np.maximum(lifted[2], floor), np.nan)
        draw(ax, lifted, look[k], s.label, f"points{k}", hover, percent=False, bars=True)
        if hit.sum() == len(hover.get(f"points{k}", ())):  # the interval as given, not cut at the floor
            hover[f"points{k}"] = [hover_text(s.label, q, percent=False) for q in p[:, hit].T]
        if (~hit).any():
            at = {"markerfacecolor": PAPER, "linestyle": "none", "clip_on": False, "zorder": 4, "gid": f"zeros{k}"}
            ax.plot(p[0, ~hit], np.full((~hit).sum(), floor), color=look[k].color, marker="v", **at)
            hover[f"zeros{k}"] = [hover_text(s.label, q) for q in p[:, ~hit].T]
    if len(positive):
        _guide(ax, order)
    if (ys <= 0).any():
        ax.set_ylim(bottom=floor * 0.8)
        ax.annotate("▿ none", (1, floor), (4, 0), ("axes fraction", "data"), "offset points", fontsize=10, va="center")
    frame(ax, "copies of the training image", "hits per sample")
    drawn = [(s.label, k) for s, k, p in zip(series, look, order) if p.shape[1]]
    keys(ax, [(f"{clean(label, 30)}{_slope(slopes.get(label))}", k) for label, k in drawn], width=62)
    for row in chart.rows:
        slope = slopes.get(str(row["series"])) or ()
        row |= {f"slope{end}": slope[k] if k < len(slope) else None for k, end in enumerate(("", "_low", "_high"))}
    return chart


def _slope(fit: tuple[float | None, ...] | None) -> str:
    """`: slope 0.93 [0.81, 1.05]`; `: slope ≥ 1.2` where it is unbounded; nothing without a fit."""
    known = np.isfinite(floats(fit, 3)).tolist()
    value, low, high = (number(round(end, 2)) if ok else "" for end, ok in zip(floats(fit, 3), known))
    if known[0]:
        return f": slope {value}" + (f" [{low}, {high}]" if all(known) else "")
    return f": slope ≥ {low}" if known[1] else f": slope ≤ {high}" if known[2] else ""


def _guide(ax: Axes, order: Sequence[np.ndarray]) -> None:
    """A line of slope 1 through the middle of the points."""
    x, y = np.concatenate([p[:2, p[1] > 0] for p in order], axis=1)
    middle = np.exp(np.log(y).mean() - np.log(x).mean())
    ends = np.array([x.min(), x.max()])
    if ends[0] == ends[1]:
        return
    limits = ax.get_ylim()
    ax.plot(ends, middle * ends, color=INK, alpha=0.55, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
    ax.set_ylim(min(limits[0], middle * ends[0] * 0.8), max(limits[1], middle * ends[1] * 1.25))
    ax.annotate(
        "slope 1", (ends[1], middle * ends[1]), (5, 0), textcoords="offset points", va="center", fontsize=10, alpha=0.8
    )


def by_noise(name: str, series: Sequence[Series], ylabel: str, alt: str) -> Chart:
    """A value with its interval against the noise level sigma."""
    return curves(name, series, "noise level σ", ylabel, log_x=True, beside=True, alt=alt)
