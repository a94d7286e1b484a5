"""Charts of the report: SVG for inlining, CSV, degenerate data, contrast of the palette."""

from __future__ import annotations

import csv
import io
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cdmem.report import charts
from cdmem.report.charts import Series, noise
from cdmem.report.charts.base import INK, LOOKS, PAPER, clean, looks, number, share, spread

NASTY = 'a <b>&"quoted"</b> \x00 $x^2$ _' + "very long " * 20
NAN = float("nan")


def line(label="teacher", kind="teacher", n=6):
    x = np.arange(1, n + 1) * 1000.0
    y = np.linspace(0, 0.3, n)
    return Series(label, kind, x.tolist(), y.tolist(), (y * 0.8).tolist(), (y * 1.2).tolist())


def every(tag, series, ratios, table, shares=None):
    """One chart of each kind from the same data."""
    threshold, alt = 1 / 3, f"about {NASTY}"
    return [
        charts.curves(f"{tag}_a", series, "step", "f", percent=True, marks=[(2e3, "tau_gen"), (NAN, "no")], alt=alt),
        charts.curves(f"{tag}_b", series, NASTY, NASTY, log_x=True, alt=alt),
        charts.path(f"{tag}_c", series, "rmse", "f", percent_y=True, alt=alt),
        charts.transfer_mosaic(f"{tag}_d", table, alt),
        charts.ratio_scatter(f"{tag}_e", *ratios, threshold, alt),
        charts.cdfs(f"{tag}_f", shares or series, threshold, alt),
        charts.hits_by_multiplicity(f"{tag}_g", series, {NASTY: (1.0, 0.5, None), "teacher": None}, alt),
        charts.by_noise(f"{tag}_h", series, NASTY, alt),
    ]


def test_slopes_in_words():
    words = [noise._slope(fit) for fit in (None, (0.934, 0.81, 1.05), (0.5, None, None), ("inf", 1.234, "inf"))]
    assert words == ["", ": slope 0.93 [0.81, 1.05]", ": slope 0.5", ": slope ≥ 1.23"]
    assert noise._slope(("-inf", "-inf", 0.3)) == ": slope ≤ 0.3" and noise._slope(("inf", "inf", "inf")) == ""


CDF = Series(NASTY, "control", np.linspace(0, 1, 101), np.linspace(0, 1, 101) ** 2)
RATIOS = np.linspace(0, 1, 50), np.linspace(1, 0, 50)
TABLE = {"kept_same": 1012, "kept_other": 85, "lost": 403, "gained": 61, "neither": 3439}
FULL = every("full", [line(), line(NASTY, "student"), line("many", "student", 90)], RATIOS, TABLE, [CDF])
DEGENERATE = {
    "empty": ([], (np.array([]), np.array([])), {}),
    "hollow": ([Series("a", "x", [], [])], (np.array([NAN]), np.array([1.0])), {"lost": None}),
    "single": ([Series("a", "teacher", [5], [0.1], [0], [0.3])], (np.ones(1), np.ones(1)), {"lost": 1}),
    "zeros": ([Series("a", "teacher", [0, 0], [0, 0])], (np.zeros(3), np.zeros(3)), dict.fromkeys(TABLE, 0)),
    "gaps": (
        [Series("a", "cheap", [None, 1, NAN, 3], [1, None, 2, 3], [None] * 4, [NAN, 1, math.inf, 2])],
        (np.array([NAN, 0.1, math.inf]), np.array([0.2, 0.1, 1])),
        {"neither": NAN, "gained": 2},
    ),
    "huge": (
        [Series("a", "teacher", [1, 1e12, 1e300], [1e-12, 1e12, 1e300], [0, 0, 0], [1e13] * 3)],
        (np.array([1e-300, 1e9]), np.array([1e5, 0])),
        {"neither": 10**15, "lost": 1},
    ),
    "negative": ([Series("a", "teacher", [-1, 1, 2], [-0.1, 0, 0.1])], RATIOS, {"neither": -4, "lost": 1}),
}


def ids(svg):
    return re.findall(r'\bid="([^"]+)"', svg)


@pytest.mark.parametrize("chart", FULL, ids=lambda c: c.name)
def test_the_svg_stands_inside_a_page(chart):
    svg = chart.svg()
    root = ET.fromstring(svg)
    assert root.get("class") == "chart" and root.get("role") == "img" and root.get("viewBox")
    assert not {"width", "height"} & set(root.attrib)
    assert root[0].tag.endswith("title") and root[0].text == clean(chart.alt, 2000)
    assert "<?xml" not in svg and "DOCTYPE" not in svg and "metadata" not in svg and "<style" not in svg
    assert "currentColor" in svg and INK not in svg and PAPER not in svg and "DejaVu" not in svg
    assert all(i.startswith(f"{chart.name}-") for i in ids(svg)) and len(ids(svg)) == len(set(ids(svg)))
    targets = re.findall(r'href="#([^"]+)"', svg) + re.findall(r"url\(#([^)]+)\)", svg)
    assert set(targets) <= set(ids(svg))
    assert svg == chart.svg(), "drawn twice"


@pytest.mark.parametrize("chart", FULL, ids=lambda c: c.name)
def test_every_point_says_its_value(chart):
    root = ET.fromstring(chart.svg())
    points = [g for g in root.iter() if g.get("class") == "pt"]
    said = [g[0].text for g in points]
    assert all(g[0].tag.endswith("title") and len(g) == 2 for g in points)
    assert sorted(said) == sorted(t for texts in chart.hover.values() for t in texts) and said


def test_ids_of_two_charts_differ():
    names = [i for c in FULL for i in ids(c.svg())]
    assert len(names) == len(set(names))


def test_the_same_data_gives_the_same_bytes():
    again = [charts.cdfs("same", [line(), line("b", "student")], 0.3, "a") for _ in range(2)]
    assert again[0].svg() == again[1].svg() and again[0].png() == again[1].png() and again[0].csv() == again[1].csv()


def test_a_point_says_value_interval_and_place():
    chart = charts.curves("one", [line()], "step", "f", percent=True, alt="a")
    assert chart.hover["points0"][-1] == "teacher: 30 % [24 %, 36 %] at 6,000"
    assert "30 % [24 %, 36 %]" in chart.svg()


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_data_are_drawn(case):
    for chart in every(case, *DEGENERATE[case]):
        ET.fromstring(chart.svg())
        chart.csv()
    assert chart.png().startswith(b"\x89PNG")


def test_csv_round_trip_and_formula_guard():
    series = [Series("=1+1", "teacher", [1, 2], [-0.5, None]), Series('a,"b"\n', "student", [3], [1e-9])]
    rows = list(csv.DictReader(io.StringIO(charts.curves("c", series, "x", "y", alt="a").csv())))
    assert [r["series"] for r in rows] == ["'=1+1", "'=1+1", 'a,"b"\n']
    assert [r["y"] for r in rows] == ["-0.5", "", "1e-09"] and [float(r["x"]) for r in rows] == [1, 2, 3]


def test_counts_of_the_scatter_and_the_mosaic():
    t, s = np.array([0.1, 0.1, 0.9, 0.9, NAN]), np.array([0.1, 0.9, 0.1, 0.9, 0.1])
    svg = charts.ratio_scatter("r", t, s, 0.5, "a").svg()
    assert svg.count("1 (25 %)") == 4 and "1 not finite" in svg
    chart = charts.transfer_mosaic("m", TABLE, "a")
    assert [r["count"] for r in chart.rows] == list(TABLE.values())
    assert all(f"{n:,} (" in chart.svg() for n in TABLE.values())
    with pytest.raises(ValueError, match="same seeds"):
        charts.ratio_scatter("r", t, s[:2], 0.5, "a")


def test_many_points_become_a_picture():
    x = np.random.default_rng(0).uniform(size=(2, 60000))
    chart = charts.ratio_scatter("r", *x, 0.3, "a")
    assert "data:image/png" in chart.svg() and len(chart.svg()) < 500_000 and len(chart.rows) <= 50_000


def luminance(color):
    c = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    return float(
        np.dot([0.2126, 0.7152, 0.0722], [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in c])
    )


@pytest.mark.parametrize("background", ["#ffffff", "#14161a"])
@pytest.mark.parametrize("kind", LOOKS)
def test_contrast(kind, background):
    low, high = sorted((luminance(LOOKS[kind].color), luminance(background)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_looks_differ_by_more_than_colour():
    chosen = looks([*LOOKS, "student", "teacher", "unheard of"])
    assert len({(k.marker, k.line, k.hollow) for k in chosen[: len(LOOKS)]}) == len(LOOKS)
    assert len(set(chosen)) == len(chosen)


def test_words():
    assert [number(v) for v in (0, 1234567, 0.5, -2, 1e9, NAN)] == ["0", "1,234,567", "0.5", "−2", "10⁹", "n/a"]
    assert share(0.3) == "30 %" and share(-0.082) == "−8.2 %" and share(1e-6) == "<0.01 %"
    assert clean("a\x00b\n c") == "a b c" and len(clean("x" * 99, 20)) == 20
    assert spread([0.5, 0.5, 1.0], 0.1) == pytest.approx([0.5, 0.6, 1.0])


def test_global_settings_stay_as_they_are():
    import matplotlib

    before = dict(matplotlib.rcParams)
    charts.curves("f", [line()], "x", "y", alt="a").svg()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("count", [3, 5, 6, 8])
def test_a_legend_stays_within_the_figure(count):
    names = ["g = 1", "g = 1.5", "g = 2", "g = 3", "g = 5", "g = 7.5", "g = 10", "g = 20"]
    series = [Series(name, kind, [1, 2], [k, 1]) for k, (name, kind) in enumerate(zip(names[:count], LOOKS))]
    figure = charts.curves("legend", series, "x", "y", alt="many lines").figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    assert all(legend.get_window_extent(renderer).x1 <= figure.bbox.x1 + 1 for legend in figure.legends)
    assert figure.legends or count < 6  # few lines are named at their ends
