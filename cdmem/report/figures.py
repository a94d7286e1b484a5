"""Figures of one run, from what it recorded: curves along training, pairs, distributions, noise levels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cdmem.report.answer import model_label
from cdmem.report.charts import seeds as charts
from cdmem.report.charts.seeds import Chart, Series
from cdmem.report.run_data import RunData, Stage

GRID = np.linspace(0, 1, 101)


def kind_of(m: dict[str, Any], students: list[dict[str, Any]]) -> str:
    """Which colour a model gets."""
    if m["role"] == "teacher":
        return "cheap" if m["method"] == "euler" else "teacher"
    same = [s for s in students if s["name"] == m["name"]]
    rank = next((k for k, s in enumerate(same) if s["nfe"] == m["nfe"]), 0)
    return "student" if rank == 0 else f"student{min(rank + 1, 4)}"


def _suffix(run: RunData, stage: Stage) -> list[tuple[str, str, str]]:
    """(suffix of the keys, label, kind) of every NFE that a stage's record follows."""
    if stage.name == "teacher":
        return [("", "teacher", "teacher")]
    mine = [m for m in run.students if m["name"] == stage.name]
    return [
        ("" if k == 0 else f"_nfe{m['nfe']}", f"{stage.name}, {m['nfe']} NFE", kind_of(m, run.students))
        for k, m in enumerate(mine)
    ]


def _curve(stage: Stage, key: str, label: str, kind: str, band: tuple[str, str] | None = None) -> Series | None:
    x, y = stage.series(key)
    if not x:
        return None
    low = high = None
    if band is not None:
        (lx, low_values), (hx, high_values) = stage.series(band[0]), stage.series(band[1])
        if lx == x and hx == x:
            low, high = low_values, high_values
    return Series(label, kind, x, y, low, high)


def along_training(run: RunData) -> Iterator[tuple[Chart, str]]:
    """f_mem and quality against the step; f_mem against rmse; f_mem against quality."""
    name = run.summary["settings"].get("features", "pixels")
    fd = "fid" if name == "inception" else f"fd_{name}"
    for stage in run.stages:
        marks = [(stage.mark(k), k) for k in ("tau_gen", "tau_mem") if stage.mark(k)]
        f_mem, quality = [], []
        for suffix, label, kind in _suffix(run, stage):
            band = (f"memorization/f_mem_low{suffix}", f"memorization/f_mem_high{suffix}")
            f_mem.append(_curve(stage, f"memorization/f_mem{suffix}", label, kind, band))
            quality.append(_curve(stage, f"quality/{fd}{suffix}", label, kind))
        for what, series, ylabel, percent in (
            ("f_mem", f_mem, "memorised fraction", True),
            ("quality", quality, f"{fd} to held-out images", False),
        ):
            found = [s for s in series if s is not None]
            if found:
                alt = f"{ylabel} of {stage.name} against training step"
                chart = charts.curves(
                    f"{what}_{_stem(stage.name)}",
                    found,
                    "optimizer step",
                    ylabel,
                    percent=percent,
                    marks=marks,
                    alt=alt,
                )
                yield chart, f"{stage.name}: {ylabel} along training" + (" (95 % band)." if percent else ".")
    yield from _against(run, "distillation/rmse_to_teacher", "rmse to the teacher's endpoints", "rmse")
    yield from _against(run, f"quality/{fd}", f"{fd} to held-out images", "tradeoff")


def _stem(name: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in name.lower())[:40] or "model"


def _against(run: RunData, key: str, xlabel: str, stem: str) -> Iterator[tuple[Chart, str]]:
    """f_mem against another logged number, one line a model, from the first evaluation (hollow) to the last."""
    series = []
    for stage in run.stages:
        for suffix, label, kind in _suffix(run, stage):
            rows = [
                (r[f"{key}{suffix}"], r[f"memorization/f_mem{suffix}"])
                for r in stage.records
                if isinstance(r.get(f"{key}{suffix}"), int | float)
                and isinstance(r.get(f"memorization/f_mem{suffix}"), int | float)
            ]
            if len(rows) > 1:
                series.append(Series(label, kind, [float(a) for a, _ in rows], [float(b) for _, b in rows]))
    if series:
        alt = f"memorised fraction against {xlabel}, along training"
        chart = charts.path(f"f_mem_against_{stem}", series, xlabel, "memorised fraction", percent_y=True, alt=alt)
        more = ""
        if stem == "rmse":
            more = " A curve that still climbs to the left would bring copies back with more distillation."
        yield chart, f"f_mem against {xlabel}: from the first evaluation (hollow) to the last (filled).{more}"


def pairs(run: RunData) -> Iterator[tuple[Chart, str]]:
    """Transfer mosaics and paired ratios of every student against the teacher."""
    teacher = run.teacher
    rows_t = run.arrays("audit", teacher) if teacher else {}
    for m in run.students:
        paired = m.get("paired")
        if not paired:
            continue
        stem, label = _stem(f"{m['name']}_{m['nfe']}"), model_label(m)
        alt = f"fate of every seed from teacher to {label}: " + ", ".join(
            f"{k} {v}" for k, v in paired["transfer"].items()
        )
        caption = f"{label}: what became of every seed. Left: seeds on which the teacher memorises; right: the others."
        yield charts.transfer_mosaic(f"transfer_{stem}", paired["transfer"], alt), caption
        rows_s = run.arrays("audit", m)
        if rows_t and rows_s and np.array_equal(rows_t["seeds"], rows_s["seeds"]):
            ratio = [np.sqrt(r["squared1"] / np.maximum(r["squared2"].astype(float), 1e-300)) for r in (rows_t, rows_s)]
            threshold = float(run.summary["settings"]["threshold"])
            chart = charts.ratio_scatter(
                f"ratios_{stem}", *ratio, threshold, f"d1/d2 of teacher and {label}, seed by seed"
            )
            yield chart, f"{label}: d1/d2 of the same seed under both models; below the lines means memorised."


def distributions(run: RunData) -> Iterator[tuple[Chart, str]]:
    """Ratio CDFs with the held-out control, hits by multiplicity, and what the models themselves give away."""
    series = [
        Series(model_label(m), kind_of(m, run.students), GRID.tolist(), m["ratio_cdf"])
        for m in run.models
        if m.get("ratio_cdf") and m["method"] != "euler"
    ]
    held = (run.summary.get("control") or {}).get("heldout_f_mem") or {}
    if held.get("ratio_cdf"):
        series.append(Series("held-out images", "control", GRID.tolist(), held["ratio_cdf"]))
    if series:
        chart = charts.cdfs(
            "ratio_cdf", series, float(run.summary["settings"]["threshold"]), "cumulative share of d1/d2"
        )
        yield chart, "Share of samples with d1/d2 below the abscissa: the answer at every threshold at once."
    yield from _multiplicity(run)
    yield from _noise(run)


def _multiplicity(run: RunData) -> Iterator[tuple[Chart, str]]:
    series, slopes = [], {}
    for m in [run.teacher, *run.students]:
        record = ((m or {}).get("metrics") or {}).get("coverage") or {}
        rows = (record.get("detail") or {}).get("by_multiplicity") or []
        if len(rows) > 1:
            label = model_label(m)
            x, y = ([float(r[k]) for r in rows] for k in ("copies", "hits_per_sample"))
            series.append(Series(label, kind_of(m, run.students), x, y))
            slope = record.get("duplication_slope")
            low, high = record.get("duplication_slope_low"), record.get("duplication_slope_high")
            slopes[label] = None if slope is None else (slope, low, high)
    if series:
        alt = "memorised samples per training image against how often it is repeated"
        chart = charts.hits_by_multiplicity("hits_by_multiplicity", series, slopes, alt)
        yield (
            chart,
            "Memorised samples per training image against its multiplicity. Slope 1: in proportion to the copies.",
        )


def _noise(run: RunData) -> Iterator[tuple[Chart, str]]:
    wanted = (
        ("loss_gap", ("loss_gap", "loss_gap_f"), "loss on H minus loss on T", "Denoising-loss gap by noise level."),
        (
            "endpoint_gap",
            ("endpoint",),
            "gap to the teacher's endpoint",
            "Student against the teacher's ODE endpoint: H minus T.",
        ),
    )
    for stem, keys, ylabel, caption in wanted:
        series = []
        for m in run.models:
            inner = m.get("inside") or {}
            rows = next((inner[k] for k in keys if inner.get(k)), None)
            if rows:
                x = [float(r["sigma"]) for r in rows]
                values = [r["gap"] for r in rows]
                low, high = ([float(v["ci95"][k]) for v in values] for k in (0, 1))
                y = [float(v["value"]) for v in values]
                series.append(Series(m["name"], kind_of(m, run.students), x, y, low, high))
        if series:
            yield charts.by_noise(stem, series, ylabel, f"{ylabel} by noise level"), f"{caption} Bars: 95 %."
    series = []
    for m in run.models:
        inner = m.get("inside") or {}
        table = inner.get("optimum") or inner.get("optimum_f") or {}
        for side, text in (("train", "on T"), ("held_out", "on H")):
            rows = [r for r in table.get(side, []) if r.get("ratio") is not None]
            if rows:
                x, y = [float(r["sigma"]) for r in rows], [float(r["ratio"]) for r in rows]
                kind = kind_of(m, run.students) if side == "train" else "control" if m["role"] == "teacher" else "cheap"
                series.append(Series(f"{m['name']} {text}", kind, x, y))
    if series:
        chart = charts.by_noise(
            "optimum", series, "distance to the empirical optimum", "relative distance by noise level"
        )
        yield (
            chart,
            "Squared distance to the denoiser that copies, relative to the clean image's: 0 memorises.",
        )
