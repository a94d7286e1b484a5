"""Several studies on one page: what differs between them, and f_mem and quality against it, over seeds."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from cdmem.errors import InputError
from cdmem.io.paths import usable_path
from cdmem.metrics.comparison.runs import LEAST_RUNS
from cdmem.metrics.statistics import mean_interval
from cdmem.report import charts
from cdmem.report.build import headline
from cdmem.report.charts import Series
from cdmem.report.figures import kind_of
from cdmem.report.page import Figure, Link, Page, Section, Table, write
from cdmem.report.rows import NOTHING, Cell, Estimate, model_label, number, percent, points
from cdmem.report.run_data import SUMMARY, RunData, as_recorded, read_run
from cdmem.report.run_level import verdicts_over_runs

SEED = "seed"
SILENT = ("run_dir", "threads", "wandb", "audit")
# They follow from the study's seed and from its folder.
DERIVED = (
    "training_seed",  # names of the first format
    "sampling_seed",
    "seeds.training",
    "seeds.sampling",
    "subset_seed",
    "order_seed",
    "teacher.config",
    ".model.init_args.teacher",
)


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
    studies = {p.parent.parent for depth in (1, 2, 3) for p in folder.glob("*/" * depth + SUMMARY)}
    return sorted(studies, key=lambda p: [_natural(part) for part in p.parts])


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Sorts text with its numbers as numbers."""
    parts = re.findall(r"(\d+)|(\D)", text)
    return [(0, float(digits), "") if digits else (1, 0.0, other) for digits, other in parts]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in _flat(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


def settings(run: RunData) -> dict[str, Any]:
    """The study's own settings and its stages' that could differ, flattened."""
    values = {k: v for k, v in _flat(run.config).items() if k.split(".")[0] not in SILENT}
    for stage in run.stages:
        for key, value in _flat(stage.config).items():
            if key.startswith(("data.", "model.", "trainer.max_steps")):
                values[f"{stage.name}.{key}"] = value
    return values | {"data.n": run.summary["training_set"].get("n")}


def differing(runs: Sequence[RunData]) -> list[str]:
    """Keys that differ between the runs, the study's own first; consequences of the seed are left out."""
    all_settings = [settings(r) for r in runs]
    keys = dict.fromkeys(k for s in all_settings for k in s if not k.endswith(DERIVED))
    keys = [k for k in keys if len({repr(s.get(k)) for s in all_settings}) > 1]
    # A key of the study that reaches the stages would be listed once per stage.
    own = [k for k in keys if any(k in _flat(r.config) for r in runs) or k == "data.n"]
    tails = {k.split(".")[-1] for k in own}
    return own + [k for k in keys if k not in own and k.split(".")[-1] not in tails]


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over runs with Student's 95 % interval, the run as unit; its ends are NaN for one run."""
    mean, low, high = mean_interval(np.asarray(values, dtype=float))
    return (mean, low, high) if len(values) > 1 else (mean, math.nan, math.nan)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(m: dict[str, Any], key: str) -> Any:
    """f_mem, or a distance of a model; None where it was not measured."""
    return m["f_mem"]["value"] if key == "f_mem" else (m.get("quality") or {}).get(key)


def _series(runs: Sequence[RunData], x_key: str, key: str) -> list[Series]:
    """One line per model and NFE: mean over seeds of a number against a numeric setting."""
    values: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        x = settings(run).get(x_key)
        for m in run.main_models:
            y = _value(m, key)
            if _is_number(y):
                values[model_label(m), kind_of(m, run.students)][float(x)].append(float(y))
    series = []
    for (label, kind), by_x in values.items():
        x = sorted(by_x)
        series.append(Series(label, kind, x, *zip(*(over_seeds(by_x[k]) for k in x))))
    return series


def render(runs: Sequence[RunData], root: Path) -> Page:
    """The comparison page; ``root`` is the folder that it will lie in."""
    keys, distance = differing(runs), runs[0].distance
    swept = [k for k in keys if k != SEED]
    answers = Counter(headline(r) for r in runs)
    lead = [f"They differ in {', '.join(keys) or 'nothing but chance'}."]
    lead += [f"{count} of {len(runs)}: {text}" for text, count in answers.most_common()]
    return Page(
        title=f"{len(runs)} studies side by side",
        lead=[" ".join(lead)],
        sections=[
            *(Section(f"by{k}", f"Against {key}", list(_against(runs, key, distance))) for k, key in enumerate(swept)),
            Section("runs", "Over runs", _over_runs(runs, swept)),
            Section("means", "Over seeds", _means(runs, swept, distance)),
            Section("studies", "Every study", [_studies(runs, keys, distance, root)]),
        ],
    )


def _against(runs: Sequence[RunData], key: str, distance: str) -> Iterator[Figure]:
    """f_mem and quality against a setting that is a number in every run."""
    values = [settings(r).get(key) for r in runs]
    if not all(map(_is_number, values)) or len(set(values)) < 2:
        return
    log_x = min(values) > 0 and max(values) >= 4 * min(values)
    for y_key, ylabel in (("f_mem", "memorised fraction"), (distance, f"{distance} to held-out images")):
        series = _series(runs, key, y_key)
        if series:
            name, alt = f"{y_key}_against_{key}", f"{ylabel} against {key}, mean over seeds"
            chart = charts.curves(name, series, key, ylabel, log_x=log_x, percent=y_key == "f_mem", alt=alt)
            yield Figure(chart, f"{ylabel} against {key}: mean over seeds, 95 % interval with the run as unit.")


def by_setting(runs: Sequence[RunData], swept: Sequence[str]) -> dict[tuple[str, ...], list[RunData]]:
    """Runs that differ in their seed alone, by the values of the swept keys."""
    groups: dict[tuple[str, ...], list[RunData]] = defaultdict(list)
    for run in runs:
        groups[tuple(str(settings(run).get(k)) for k in swept)].append(run)
    return groups


def _over_runs(runs: Sequence[RunData], swept: Sequence[str]) -> list[Table]:
    """The verdict over the runs of every setting; nothing without repetitions."""
    groups = by_setting(runs, swept)
    if max(map(len, groups.values())) < LEAST_RUNS:
        return []
    rows: list[list[Cell]] = []
    for setting, label, verdict in verdicts_over_runs(groups):
        said = verdict if isinstance(verdict, str) else verdict.sentence(label)
        rows.append([*setting, label, "-" if isinstance(verdict, str) else verdict.claim.replace("_", " "), said])
    return [Table([*swept, "model", "verdict", "in words"], rows, "Verdicts with the run as unit: docs/verdict.md.")]


def _means(runs: Sequence[RunData], swept: Sequence[str], distance: str) -> list[Table]:
    """Mean over repetitions of every setting, with the run as unit; nothing without repetitions."""
    groups = by_setting(runs, swept)
    if max(map(len, groups.values())) < 2:
        return []
    rows: list[list[Cell]] = []
    for setting, members in groups.items():
        by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for m in (m for run in members for m in run.models):
            by_model[model_label(m)].append(m)
        for label, models in by_model.items():
            differences = [100 * m["paired"]["difference"]["value"] for m in models if m.get("paired")]
            cells = [
                _mean([100 * _value(m, "f_mem") for m in models], 1),
                _mean(differences, 1),
                _mean([y for y in (_value(m, distance) for m in models) if _is_number(y)], 3),
            ]
            rows.append([*setting, label, str(len(models)), *cells])
    head = [*swept, "model", "runs", "f_mem (%)", "against teacher (points)", f"{distance} to H"]
    text = "Mean over runs with Student's 95 % interval: the run is the unit."
    return [Table(head, rows, text, sortable=True)]


def _mean(values: Sequence[float], digits: int) -> Cell:
    if not values:
        return NOTHING
    mean, low, high = over_seeds(values)
    return Estimate(f"{mean:.{digits}f}", f"[{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) else "")


def _studies(runs: Sequence[RunData], keys: Sequence[str], distance: str, root: Path) -> Table:
    """The main models of every study, with a link to its page."""
    rows = []
    for run in runs:
        # Quoted, a folder called "javascript:..." is a folder.
        page = quote(os.path.relpath(run.path / "report.html", root), safe="/=")
        study = [Link(os.path.relpath(run.path, root), page), *(str(settings(run).get(k)) for k in keys)]
        for m in run.main_models:
            claim = str((m.get("verdict") or {}).get("claim", "")).replace("_", " ")
            cells = [percent(m["f_mem"]), points((m.get("paired") or {}).get("difference"))]
            cells += [number(_value(m, distance)), number(m.get("variance_ratio")), claim]
            rows.append([*study, model_label(m), *cells])
    head = ["study", *keys, "model", "f_mem [95 %]", "against teacher (points)", f"{distance} to H"]
    text = "Click a heading to sort. Intervals within a study are over seeds of samples."
    return Table([*head, "variance ratio", "verdict"], rows, text, sortable=True)


def write_run_level(folders: Sequence[Path], path: Path) -> list[str]:
    """Write the verdicts over runs as JSON, one a setting and student; sentences for people, none without repetitions.

    Args:
        folders: of finished studies.
        path: of the file.
    """
    with as_recorded(*folders):
        runs = [read_run(f) for f in folders]
        swept = [key for key in differing(runs) if key != SEED]
        groups = by_setting(runs, swept)
        if max(map(len, groups.values()), default=0) < 2:
            return []
        verdicts = verdicts_over_runs(groups)
    records, said = [], []
    for setting, label, verdict in verdicts:
        about = {"setting": dict(zip(swept, setting)), "model": label}
        records.append(about | ({"unavailable": verdict} if isinstance(verdict, str) else verdict.record()))
        words = verdict if isinstance(verdict, str) else verdict.sentence(label)
        where = ", ".join(f"{key}={value}" for key, value in zip(swept, setting))
        said.append(f"{where}: {words}" if where else words)
    write(path.parent, path.name, json.dumps(records, indent=2) + "\n")
    return said


def prepare_comparison(folders: Sequence[Path], path: Path) -> Callable[[], Path]:
    """Draw the comparison; the result, called, writes the page, its figures and data.

    Raises:
        InputError: a folder without a finished study; a page that is no .html file.
    """
    if path.suffix != ".html":
        raise InputError("out", path, "must end in .html", "e.g. --out comparison.html")
    with as_recorded(*folders):
        files = render([read_run(f) for f in folders], path.parent).files(path.name)

    def keep() -> Path:
        for name, content in files.items():
            write(path.parent, name, content)
        return path

    return keep
