"""Charts of pairs: what became of every seed, and the ratios of both models on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cdmem.report.charts.base import INK, LOOKS, Chart, empty, floats, new_figure, number, share, spread, stem, styled

FATES = {  # key: (side, words, colour)
    "kept_same": (0, "kept, same image", LOOKS["student"].color),
    "kept_other": (0, "kept, another image", LOOKS["student2"].color),
    "lost": (0, "lost", LOOKS["teacher"].color),
    "gained": (1, "gained", LOOKS["student3"].color),
    "neither": (1, "neither", LOOKS["copycat"].color),
}
FLOOR = 1e-3
VECTOR = 2000  # points drawn one by one; more become a picture inside the SVG
DRAWN = 20000
ROWS = 50000
GAP = 0.012
AT_TOP = ("data", "axes fraction")


@styled
def transfer_mosaic(name: str, table: Mapping[str, int], alt: str) -> Chart:
    """Fates of seeds: left column where the teacher memorises, right the others; areas are shares of all seeds."""
    counts = {k: int(max(0.0, np.nan_to_num(floats([table.get(k)])[0]))) for k in FATES}
    total = sum(counts.values())
    rows = [{"fate": k, "count": n, "share": n / total if total else None} for k, n in counts.items()]
    chart = Chart(stem(name), alt, new_figure(), rows)
    ax = chart.figure.add_subplot()
    if not total:
        empty(ax, "no seeds")
        return chart
    ax.set_axis_off()
    ax.grid(False)
    left = sum(n for k, n in counts.items() if FATES[k][0] == 0)
    edge = left / total
    beside: list[list[tuple[float, str]]] = [[], []]
    for side, (start, width) in enumerate(((0.0, edge), (edge, 1 - edge))):
        mine = [k for k in FATES if FATES[k][0] == side]
        base, whole = 0.0, sum(counts[k] for k in mine)
        for k in reversed(mine):
            height = counts[k] / whole if whole else 0.0
            if not height:
                continue
            text = f"{FATES[k][1]}\n{counts[k]:,} ({share(counts[k] / total)})"
            chart.hover[k] = [f"{text.replace(chr(10), ': ')} of {total:,} seeds"]
            inset = min(GAP / 2, width / 4)
            box = (start + inset * side, base + inset), width - inset, max(height - 2 * inset, height / 2)
            ax.add_patch(Rectangle(*box, facecolor=(FATES[k][2], 0.3), edgecolor=FATES[k][2], linewidth=1.2, gid=k))
            if width >= 0.4 and height >= 0.16:
                ax.text(start + width / 2, base + height / 2, text, ha="center", va="center", linespacing=1.3)
            else:
                beside[side].append((base + height / 2, text))
            base += height
    _beside(ax, beside)
    _heads(ax, edge, left, total)
    ax.set_xlim(-0.5 if beside[0] or 0 < edge < 0.4 else -0.01, 1.5 if beside[1] or 0.6 < edge < 1 else 1.01)
    ax.set_ylim(-0.01, 1.2)
    return chart


def _beside(ax: Axes, groups: Sequence[Sequence[tuple[float, str]]]) -> None:
    """Labels of cells too small for theirs, with leaders, left of the left column and right of the right one."""
    for side, group in enumerate(groups):
        edge, near, far = (1.0, 1.02, 1.05) if side else (0.0, -0.02, -0.05)
        for (y, text), at in zip(group, spread([y for y, _ in group], 0.2, 0.08, 0.92)):
            ax.plot([edge, near, far], [y, at, at], color=INK, linewidth=0.7, alpha=0.7)
            ax.text(far + (0.01 if side else -0.01), at, text, ha="left" if side else "right", va="center")


def _heads(ax: Axes, edge: float, left: int, total: int) -> None:
    """Headings of the two columns; that of a thin one hangs outwards."""
    heads = (f"teacher memorises\n{left:,} ({share(edge)})", f"teacher does not\n{total - left:,} ({share(1 - edge)})")
    if left:
        ax.text(0 if edge >= 0.4 else edge, 1.04, heads[0], ha="left" if edge >= 0.4 else "right", va="bottom")
    if left < total:
        thin = edge > 0.6
        ax.text(edge if thin else 1.0, 1.04, heads[1], ha="left" if thin else "right", va="bottom")


@styled
def ratio_scatter(name: str, teacher: np.ndarray, student: np.ndarray, threshold: float, alt: str) -> Chart:
    """d1/d2 of the same seeds under both models, (n,) each; ratios below 0.001 lie on the edge.

    Up to 2,000 points are drawn one by one, more as a picture (at most 20,000 of them); the counts are of all.
    The CSV holds at most 50,000 rows, evenly spaced.
    """
    x, y = (np.asarray(v, dtype=float).ravel() for v in (teacher, student))
    if len(x) != len(y):
        raise ValueError(f"the ratios must be of the same seeds, got {len(x)} and {len(y)}")
    kept = range(0, len(x), max(1, -(-len(x) // ROWS)))
    rows: list[dict[str, object]] = [{"row": k, "teacher": float(x[k]), "student": float(y[k])} for k in kept]
    chart = Chart(stem(name), alt, new_figure(4.0), rows)
    ax, side = chart.figure.subplots(1, 2, width_ratios=(1.45, 1))
    fine = np.isfinite(x) & np.isfinite(y)
    missing, x, y = int((~fine).sum()), x[fine], y[fine]
    side.set_axis_off()
    if not len(x):
        empty(ax)
        return chart
    t, s = x < threshold, y < threshold
    groups = (
        ("both memorise", t & s, "student"),
        ("only the teacher", t & ~s, "teacher"),
        ("only the student", ~t & s, "student3"),
        ("neither", ~t & ~s, "copycat"),
    )
    px, py = (np.clip(v, FLOOR, None) for v in (x, y))
    step = max(1, -(-len(x) // DRAWN))
    for k, (text, mask, kind) in enumerate(groups):
        # The key stands beside the axes, where it covers no point.
        at, look = 0.86 - 0.2 * k, LOOKS[kind]
        side.plot([0.02], [at], marker=look.marker, color=look.color, linestyle="none", markersize=7, clip_on=False)
        side.text(0.11, at, f"{text}\n{int(mask.sum()):,} ({share(mask.mean())})", va="center", linespacing=1.3)
        index = np.flatnonzero(mask)
        index = index[index % step == 0]
        if not len(index):
            continue
        many = len(x) > VECTOR
        ax.plot(
            px[index], py[index], linestyle="none", marker=look.marker, color=look.color, markersize=2 if many else 3.6,
            markeredgewidth=0, alpha=0.45 if many else 0.7, rasterized=many, gid=f"group{k}", zorder=3, clip_on=False,
        )  # fmt: skip
        if len(x) <= 500:
            chart.hover[f"group{k}"] = [f"teacher {number(x[j])}, student {number(y[j])}" for j in index]
    if missing:
        side.text(0.02, 0.05, f"{missing:,} not finite", va="center", alpha=0.8)
    side.set(xlim=(0, 1), ylim=(0, 1))
    top = max(1.0, float(px.max()), float(py.max()))
    if threshold > 0:
        for line in (ax.axvline, ax.axhline):
            line(max(threshold, FLOOR), color=INK, linewidth=1, linestyle=(0, (2, 2)), alpha=0.7)
    _ratio_axes(ax, top)
    if FLOOR < threshold < top:
        ax.annotate(f"threshold {threshold:.3g}", (threshold, 1), (0, 4), AT_TOP, "offset points", ha="center")
    return chart


def _ratio_axes(ax: Axes, top: float) -> None:
    ticks = FixedLocator([FLOOR, 1e-2, 1e-1, 1.0, *(10.0**k for k in range(3, 90, 3) if 10.0**k <= top)])
    ax.set(xscale="log", yscale="log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(ticks)
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"≤{number(v)}" if v <= FLOOR * 1.01 else number(v)))
    ax.set(xlim=(FLOOR, top), ylim=(FLOOR, top), xlabel="d1/d2 of the teacher", ylabel="d1/d2 of the student")
    ax.set_aspect("equal", adjustable="box")
