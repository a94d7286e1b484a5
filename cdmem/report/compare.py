"""Several studies on one page: what differs between them, and f_mem and quality against it, over seeds."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from cdmem.errors import InputError
from cdmem.io.paths import usable_path
from cdmem.metrics.statistics import mean_interval
from cdmem.report.answer import headline, model_label
from cdmem.report.build import figures, section, write
from cdmem.report.charts import seeds as charts
from cdmem.report.charts.seeds import Chart, Series
from cdmem.report.figures import kind_of
from cdmem.report.html import esc, number, percent, spread, table
from cdmem.report.run_data import SUMMARY, RunData, as_recorded, read_run
from cdmem.report.style import page

SEED = "seed"
SILENT = ("run_dir", "threads", "wandb", "audit")


def studies_below(path: str | Path) -> list[Path]:
    """The study at ``path``, or all finished studies below it, sorted by name (a natural order of numbers).

    Raises:
        InputError: no such folder.
    """
    folder = usable_path("runs", path)
    if not folder.is_dir():
        raise InputError("runs", path, "no such folder", "give the folder of a study or of a sweep")
    if (folder / SUMMARY).is_file():
        return [folder]
    found = [p.parent.parent for p in folder.glob("*/" + SUMMARY)] + [
        p.parent.parent for p in folder.glob("*/*/" + SUMMARY)
    ]
    found += [p.parent.parent for p in folder.glob("*/*/*/" + SUMMARY)]
    return sorted(set(found), key=lambda p: [_natural(part) for part in p.parts])


def _natural(text: str) -> list[tuple[int, float, str]]:
    parts, digits = [], ""
    for c in text + "\0":
        if c.isdigit():
            digits += c
            continue
        if digits:
            parts.append((0, float(digits), ""))
            digits = ""
        parts.append((1, 0.0, c))
    return parts


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in _flat(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


def settings(run: RunData) -> dict[str, Any]:
    """The study's own settings and its stages' that could differ, flattened."""
    found = {k: v for k, v in _flat(run.config).items() if k.split(".")[0] not in SILENT}
    for stage in run.stages:
        for key, value in _flat(stage.config).items():
            if key.startswith(("data.", "model.", "trainer.max_steps")):
                found[f"{stage.name}.{key}"] = value
    found["data.n"] = run.summary["training_set"].get("n")
    return found


def differing(runs: Sequence[RunData]) -> list[str]:
    """Keys that differ between the runs, the study's own first; consequences of the seed are left out."""
    all_settings = [settings(r) for r in runs]
    keys = list(dict.fromkeys(k for s in all_settings for k in s))
    derived = (
        "training_seed",
        "sampling_seed",
        "subset_seed",
        "order_seed",
        "teacher.config",
        ".model.init_args.teacher",
    )
    found = [k for k in keys if len({repr(s.get(k)) for s in all_settings}) > 1]
    found = [k for k in found if not k.endswith(derived)]
    # A key of the study that reaches the stages would be listed once per stage.
    own = [k for k in found if any(k in _flat(r.config) for r in runs) or k == "data.n"]
    tails = {k.split(".")[-1] for k in own}
    return own + [k for k in found if k not in own and k.split(".")[-1] not in tails]


def over_seeds(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean over runs with Student's 95 % interval, the run as unit; no interval for one run."""
    mean, low, high = mean_interval(np.asarray(values, dtype=float))
    return (mean, low, high) if len(values) > 1 else (mean, None, None)


def _series(runs: Sequence[RunData], x_key: str, value: str) -> list[Series]:
    """One line per model and NFE: mean over seeds of a number against a numeric setting."""
    points: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        x = settings(run).get(x_key)
        for m in run.models:
            y = m["f_mem"]["value"] if value == "f_mem" else (m.get("quality") or {}).get(value)
            if isinstance(x, int | float) and isinstance(y, int | float) and m["method"] != "euler":
                points[model_label(m), kind_of(m, run.students)][float(x)].append(float(y))
    series = []
    for (label, kind), by_x in points.items():
        x = sorted(by_x)
        rows = [over_seeds(by_x[k]) for k in x]
        low, high = ([r[k] if r[k] is not None else math.nan for r in rows] for k in (1, 2))
        series.append(Series(label, kind, x, [r[0] for r in rows], low, high))
    return series


def render(runs: Sequence[RunData], root: Path) -> tuple[str, list[Chart]]:
    """The comparison page and its charts; ``root`` is the folder that it will lie in."""
    kept: list[Chart] = []
    keys = differing(runs)
    swept = [k for k in keys if k != SEED]
    name = runs[0].summary["settings"].get("features", "pixels")
    fd = "fid" if name == "inception" else f"fd_{name}"
    parts = [
        f"<h1>{len(runs)} studies side by side</h1>",
        f'<p class="lead">{esc(_sentence(runs, keys))}</p>',
    ]
    for key in swept:
        values = [settings(r).get(key) for r in runs]
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) and len(set(values)) > 1:
            found = []
            for value, ylabel, is_share in (
                ("f_mem", "memorised fraction", True),
                (fd, f"{fd} to held-out images", False),
            ):
                series = _series(runs, key, value)
                if series:
                    log_x = min(values) > 0 and max(values) >= 4 * min(values)
                    chart = charts.curves(
                        f"{value}_against_{''.join(c if c.isalnum() else '_' for c in key)}".lower(),
                        series,
                        key,
                        ylabel,
                        log_x=log_x,
                        percent=is_share,
                        alt=f"{ylabel} against {key}, mean over seeds",
                    )
                    found.append(
                        (chart, f"{ylabel} against {key}: mean over seeds, 95 % interval with the run as unit.")
                    )
            parts.append(section(f"by_{key}", f"Against {key}", figures(found, kept)))
    parts.append(section("means", "Over seeds", _means(runs, swept, fd)))
    parts.append(section("studies", "Every study", _studies(runs, keys, fd, root)))
    title = f"{len(runs)} studies: {', '.join(esc(k) for k in keys) or 'repeated'}"
    return page(title, "\n".join(p for p in parts if p)), kept


def _means(runs: Sequence[RunData], swept: Sequence[str], fd: str) -> str:
    """Mean over repetitions of every setting, with the run as unit; nothing without repetitions."""
    groups: dict[tuple[str, ...], list[RunData]] = defaultdict(list)
    for run in runs:
        mine = settings(run)
        groups[tuple(str(mine.get(k)) for k in swept)].append(run)
    if max(map(len, groups.values())) < 2:
        return ""
    rows = []
    for values, members in groups.items():
        by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for run in members:
            for m in run.models:
                by_model[model_label(m)].append(m)
        for label, found in by_model.items():
            quality = [(m.get("quality") or {}).get(fd) for m in found]
            against = [m["paired"]["difference"]["value"] for m in found if m.get("paired")]
            cells = [
                _interval([100 * m["f_mem"]["value"] for m in found], 1),
                _interval([100 * d for d in against], 1),
                _interval([q for q in quality if isinstance(q, int | float)], 3),
            ]
            rows.append([*map(esc, values), esc(label), str(len(found)), *cells])
    head = [*swept, "model", "runs", "f_mem (%)", "against teacher (points)", f"{fd} to H"]
    return table(head, rows, caption="Mean over runs with Student's 95 % interval: the run is the unit.")


def _interval(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    mean, low, high = over_seeds(values)
    beside = "" if low is None else f' <span class="ci">[{low:.{digits}f}, {high:.{digits}f}]</span>'
    return f"<b>{mean:.{digits}f}</b>{beside}"


def _sentence(runs: Sequence[RunData], keys: Sequence[str]) -> str:
    what = ", ".join(keys) if keys else "nothing but chance"
    answers = defaultdict(int)
    for r in runs:
        answers[headline(r)] += 1
    said = " ".join(f"{n} of {len(runs)}: {text}" for text, n in sorted(answers.items(), key=lambda a: -a[1]))
    return f"They differ in {what}. {said}"


def _studies(runs: Sequence[RunData], keys: Sequence[str], fd: str, root: Path) -> str:
    rows = []
    for run in runs:
        mine = settings(run)
        # Quoted, a folder called "javascript:..." is a folder.
        link = quote(os.path.relpath(run.path / "report.html", root), safe="/=")
        name = os.path.relpath(run.path, root)
        cells = [f'<a href="{esc(link)}">{esc(name)}</a>', *(esc(mine.get(k)) for k in keys)]
        first = True
        for m in [m for m in run.models if m["method"] != "euler"]:
            claim = (m.get("verdict") or {}).get("claim", "")
            difference = ((m.get("paired") or {}).get("difference")) or None
            row = [
                esc(model_label(m)),
                percent(m["f_mem"]),
                spread(difference),
                number((m.get("quality") or {}).get(fd)),
            ]
            rows.append([*cells, *row, number(m.get("variance_ratio")), esc(str(claim).replace("_", " "))])
            first = False
        if first:
            rows.append([*cells, *[""] * 6])
    head = [
        "study",
        *keys,
        "model",
        "f_mem [95 %]",
        "against teacher (points)",
        f"{fd} to H",
        "variance ratio",
        "verdict",
    ]
    return table(head, rows, caption="Click a heading to sort. Intervals within a study are over seeds of samples.")


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write the comparison page, its figures and data beside it; raises what :func:`prepare_comparison` does."""
    return prepare_comparison(folders, path)()


def prepare_comparison(folders: Sequence[Path], path: Path) -> Callable[[], Path]:
    """Draw the comparison; the result, called, writes the page, its figures and data.

    Raises:
        InputError: a folder without a finished study; a page that is no .html file.
    """
    if path.suffix != ".html":
        raise InputError("out", path, "must end in .html", "e.g. --out comparison.html")
    with as_recorded(*folders):
        html, kept = render([read_run(f) for f in folders], path.parent)

    def keep() -> Path:
        for chart in kept:
            write(path.parent, f"report/{chart.name}.png", chart.png())
            write(path.parent, f"report/{chart.name}.csv", chart.csv())
        write(path.parent, path.name, html)
        return path

    return keep
