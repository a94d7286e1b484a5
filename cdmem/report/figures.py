"""Figures of one run, from what it recorded: curves along training, pairs, distributions, noise levels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cdmem.metrics.memorization.ratio import ratios
from cdmem.report import charts
from cdmem.report.charts import Series
from cdmem.report.page import Figure
from cdmem.report.rows import model_label
from cdmem.report.run_data import RunData, Stage

GRID = np.linspace(0, 1, 101).tolist()
NAME = 40  # characters of a stage's name in the name of a file


def kind_of(m: dict[str, Any], students: list[dict[str, Any]]) -> str:
    """Which colour a model gets."""
    if m["role"] == "teacher":
        return "cheap" if m["method"] == "euler" else "teacher"
    same = [s for s in students if s["name"] == m["name"]]
    rank = next((k for k, s in enumerate(same) if s["nfe"] == m["nfe"]), 0)
    return "student" if rank == 0 else f"student{min(rank + 1, 4)}"


def _followed(run: RunData, stage: Stage) -> list[tuple[str, str, str]]:
    """(suffix of the keys, label, kind) of every NFE that a stage's record follows."""
    if stage.name == "teacher":
        return [("", "teacher", "teacher")]
    mine = [m for m in run.students if m["name"] == stage.name]
    return [
        ("" if k == 0 else f"_nfe{m['nfe']}", f"{stage.name}, {m['nfe']} NFE", kind_of(m, run.students))
        for k, m in enumerate(mine)
    ]


def along_training(run: RunData) -> Iterator[Figure]:
    """f_mem, tolerant copies and quality against the step; f_mem against rmse; f_mem against quality."""
    for stage in run.stages:
        yield from _against_step(run, stage, "f_mem", "memorization/f_mem", "memorised fraction", percent=True)
        tolerant = "memorization/tolerant_copies"
        yield from _against_step(run, stage, "tolerant", tolerant, "fraction of tolerant copies", percent=True)
        distance = f"quality/{run.distance}"
        yield from _against_step(run, stage, "quality", distance, f"{run.distance} to held-out images")
    more = " A curve that still climbs to the left would bring copies back with more distillation."
    yield from _against(run, "rmse", "distillation/rmse_to_teacher", "rmse to the teacher's endpoints", more)
    yield from _against(run, "tradeoff", f"quality/{run.distance}", f"{run.distance} to held-out images")
    yield from _learning_rates(run)


def _learning_rates(run: RunData) -> Iterator[Figure]:
    """The rate of every stage; settings that changed on the way are marked."""
    for stage in run.stages:
        x, y = stage.series("train/lr")
        if x:
            kind = "teacher" if stage.name == "teacher" else "student"
            marks = [(float(step), "changed") for step in dict.fromkeys(c["step"] for c in stage.changes)]
            label, name = f"{stage.name}: learning rate", f"learning_rate_{stage.name[:NAME]}"
            series = [Series(stage.name, kind, x, y)]
            chart = charts.curves(name, series, "optimizer step", "learning rate", marks=marks, alt=label)
            yield Figure(chart, f"{label} along training.")


def _against_step(
    run: RunData, stage: Stage, name: str, key: str, ylabel: str, *, percent: bool = False
) -> Iterator[Figure]:
    """A logged number of one stage against the optimizer step, with its interval where that was logged, too."""
    series = []
    for suffix, label, kind in _followed(run, stage):
        x, y = stage.series(key + suffix)
        (low_x, low), (high_x, high) = stage.series(f"{key}_low{suffix}"), stage.series(f"{key}_high{suffix}")
        if x:
            series.append(Series(label, kind, x, y, *((low, high) if low_x == high_x == x else ())))
    if series:
        marks = [(stage.mark(k), k) for k in ("tau_gen", "tau_mem") if stage.mark(k)]
        alt = f"{ylabel} of {stage.name} against training step"
        file = f"{name}_{stage.name[:NAME]}"
        chart = charts.curves(file, series, "optimizer step", ylabel, percent=percent, marks=marks, alt=alt)
        yield Figure(chart, f"{stage.name}: {ylabel} along training{' (95 % band)' * percent}.")


def _against(run: RunData, name: str, key: str, xlabel: str, more: str = "") -> Iterator[Figure]:
    """f_mem against another logged number, one line a model, from the first evaluation (hollow) to the last."""
    series = []
    for stage in run.stages:
        for suffix, label, kind in _followed(run, stage):
            rows = [(r.get(key + suffix), r.get(f"memorization/f_mem{suffix}")) for r in stage.records]
            rows = [(float(a), float(b)) for a, b in rows if isinstance(a, int | float) and isinstance(b, int | float)]
            if len(rows) > 1:
                series.append(Series(label, kind, *zip(*rows)))
    if series:
        alt = f"memorised fraction against {xlabel}, along training"
        chart = charts.path(f"f_mem_against_{name}", series, xlabel, "memorised fraction", percent_y=True, alt=alt)
        yield Figure(chart, f"f_mem against {xlabel}: from the first evaluation (hollow) to the last (filled).{more}")


def pairs(run: RunData) -> Iterator[Figure]:
    """Transfer mosaics and paired ratios of every student against the teacher."""
    threshold = run.threshold
    teacher = run.arrays("audit", run.teacher) if run.teacher else {}
    for m in (m for m in run.students if m.get("paired")):
        name, label, transfer = f"{m['name'][:NAME]}_{m['nfe']}", model_label(m), m["paired"]["transfer"]
        fates = ", ".join(f"{k} {v}" for k, v in transfer.items())
        alt = f"fate of every seed from teacher to {label}: {fates}"
        caption = f"{label}: what became of every seed. Left: seeds on which the teacher memorises; right: the others."
        yield Figure(charts.transfer_mosaic(f"transfer_{name}", transfer, alt), caption)
        student = run.arrays("audit", m)
        if teacher and student and np.array_equal(teacher["seeds"], student["seeds"]):
            of = [ratios(np.stack([rows["squared1"], rows["squared2"]], 1)) for rows in (teacher, student)]
            alt = f"d1/d2 of teacher and {label}, seed by seed"
            caption = f"{label}: d1/d2 of the same seed under both models; below the lines means memorised."
            yield Figure(charts.ratio_scatter(f"ratios_{name}", *of, threshold, alt), caption)


def distributions(run: RunData) -> Iterator[Figure]:
    """Ratio CDFs with the held-out control, hits by multiplicity, and what the models themselves give away."""
    series = [
        Series(model_label(m), kind_of(m, run.students), GRID, m["ratio_cdf"])
        for m in run.models
        if m.get("ratio_cdf") and m["method"] != "euler" and m["role"] not in ("ceiling", "teacher_ladder")
    ]
    held = (run.summary.get("control") or {}).get("heldout_f_mem") or {}
    if held.get("ratio_cdf"):
        series.append(Series("held-out images", "control", GRID, held["ratio_cdf"]))
    if series:
        chart = charts.cdfs("ratio_cdf", series, run.threshold, "cumulative share of d1/d2")
        yield Figure(chart, "Share of samples with d1/d2 below the abscissa: the answer at every threshold at once.")
    yield from _multiplicity(run)
    text = "Denoising-loss gap by noise level."
    yield from _gaps(run, "loss_gap", ("loss_gap", "loss_gap_f"), "loss on H minus loss on T", text)
    text = "Student against the teacher's ODE endpoint: H minus T."
    yield from _gaps(run, "endpoint_gap", ("endpoint",), "gap to the teacher's endpoint", text)
    yield from _optimum(run)


def _multiplicity(run: RunData) -> Iterator[Figure]:
    series, slopes = [], {}
    for m in run.main_models:
        record = (m.get("metrics") or {}).get("coverage") or {}
        rows = (record.get("detail") or {}).get("by_multiplicity") or []
        if len(rows) > 1:
            label = model_label(m)
            x, y = ([float(r[k]) for r in rows] for k in ("copies", "hits_per_sample"))
            series.append(Series(label, kind_of(m, run.students), x, y))
            slope, *ends = (record.get(f"duplication_slope{end}") for end in ("", "_low", "_high"))
            slopes[label] = None if slope is None else (slope, *ends)
    if series:
        alt = "memorised samples per training image against how often it is repeated"
        chart = charts.hits_by_multiplicity("hits_by_multiplicity", series, slopes, alt)
        text = "Memorised samples per training image against its multiplicity. Slope 1: in proportion to the copies."
        yield Figure(chart, text)


def _gaps(run: RunData, name: str, keys: tuple[str, ...], ylabel: str, caption: str) -> Iterator[Figure]:
    """Held-out minus training by noise level, of the first of ``keys`` that a model has."""
    series = []
    for m in run.models:
        records = m.get("inside") or {}
        rows = next((records[k] for k in keys if records.get(k)), None)
        if rows:
            gaps = [r["gap"] for r in rows]
            low, high = ([float(g["ci95"][k]) for g in gaps] for k in (0, 1))
            x, y = [float(r["sigma"]) for r in rows], [float(g["value"]) for g in gaps]
            series.append(Series(m["name"], kind_of(m, run.students), x, y, low, high))
    if series:
        yield Figure(charts.by_noise(name, series, ylabel, f"{ylabel} by noise level"), f"{caption} Bars: 95 %.")


def _optimum(run: RunData) -> Iterator[Figure]:
    """Distance to the denoiser that copies, on training and on held-out images."""
    series = []
    for m in run.models:
        records = m.get("inside") or {}
        table = records.get("optimum") or records.get("optimum_f") or {}
        held_out = "control" if m["role"] == "teacher" else "cheap"
        for side, text, kind in (("train", "on T", kind_of(m, run.students)), ("held_out", "on H", held_out)):
            rows = [r for r in table.get(side, []) if r.get("ratio") is not None]
            if rows:
                x, y = [float(r["sigma"]) for r in rows], [float(r["ratio"]) for r in rows]
                series.append(Series(f"{m['name']} {text}", kind, x, y))
    if series:
        ylabel, alt = "distance to the empirical optimum", "relative distance by noise level"
        text = "Squared distance to the denoiser that copies, relative to the clean image's: 0 memorises."
        yield Figure(charts.by_noise("optimum", series, ylabel, alt), text)
