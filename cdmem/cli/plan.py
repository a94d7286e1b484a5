"""``python -m cdmem plan --config FILE``: what a stage or a study will cost, before anything is trained.

FILE is a config of ``fit`` or of ``study``; overrides are theirs. No data, no GPU and no teacher's checkpoint are
needed, and nothing is written. Hours are those of some real training steps on this machine, scaled, or of --tflops::

    python -m cdmem plan --config configs/cifar10.yaml --devices 8
    python -m cdmem plan --config configs/cifar10/student_cd.yaml --teacher_config configs/cifar10/teacher.yaml

  --tflops X             TFLOP/s that one device sustains; else measured here, in about a minute
  --devices N            devices in all; else those of the config, where auto counts as one
  --teacher_config FILE  of a lone student whose teacher does not exist yet
  --sweep KEY=V,V ...    of a study: what every cell costs, and all of them
  --json                 every number, for programs
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdmem.errors import InputError
from cdmem.io.text import parse_yaml, read_text
from cdmem.study.sweep import cells_of, parse_grid

if TYPE_CHECKING:
    from cdmem.study.plan import PlanSettings

SCHEMA = 2
UNITS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
TOTALS = ("flops", "hours", "device_hours")


def positive(text: str) -> float:
    """A positive number; ValueError for any other text."""
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


def count(text: str) -> int:
    """A whole number from 1 on; ValueError for any other text."""
    if int(text) < 1:
        raise ValueError
    return int(text)


class OwnOptions(argparse.ArgumentParser):
    """argparse whose complaints are :class:`InputError`."""

    def error(self, message: str) -> None:
        raise InputError("arguments", self.prog, message, "see --help")


def parser() -> OwnOptions:
    """The options of ``plan`` itself; others are those of ``fit`` and ``study``."""
    p = OwnOptions(prog="python -m cdmem plan", add_help=False, allow_abbrev=False)
    p.add_argument("-c", "--config", action="append", default=[])
    p.add_argument("--tflops", type=positive)
    p.add_argument("--devices", type=count)
    p.add_argument("--teacher_config")
    p.add_argument("--sweep", nargs="+")
    p.add_argument("--json", action="store_true")
    return p


def is_study(files: Sequence[str]) -> bool:
    """Whether the last config is that of a study, and not of a stage.

    Raises:
        InputError: no file, no YAML mapping, or a mapping of another kind.
    """
    if not files:
        raise InputError("config", None, "a plan needs a file", "python -m cdmem plan --config configs/quickstart.yaml")
    try:
        content = parse_yaml(read_text(Path(files[-1])))
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({type(error).__name__ if isinstance(error, OSError) else error})"
        raise InputError("config", files[-1], problem, "give a config of fit or study") from None
    keys = set(content) if isinstance(content, dict) else set()
    if not keys & {"teacher", "students", "model"}:
        hint = "give a config of a stage (model: ...) or of a study (teacher: ..., students: ...)"
        raise InputError("config", files[-1], f"has keys {sorted(map(str, keys))[:6]}, so it is neither", hint)
    return bool(keys & {"teacher", "students"})


def run_plan(args: Sequence[str]) -> int:
    """``python -m cdmem plan``."""
    if not args or {"-h", "--help"} & set(args):
        print(__doc__)
        return 0
    options, rest = parser().parse_known_args(args)
    study, rest = is_study(options.config), [f"--config={file}" for file in options.config] + rest
    if options.sweep and not study:
        raise InputError("sweep", " ".join(options.sweep), "a sweep is one of studies", "give the config of a study")
    if study and options.teacher_config is not None:
        hint = "use --teacher.config FILE, or leave it out"
        raise InputError("teacher_config", options.teacher_config, "a study names its teacher itself", hint)
    from cdmem.study.plan import PlanSettings

    settings = PlanSettings(options.devices, options.tflops)
    if options.sweep:
        whole, printed = _sweep(rest, options.sweep, settings)
    else:
        plans, audit = _study(rest, settings) if study else (_lone(rest, options.teacher_config, settings), None)
        whole, printed = record(plans, audit), text(plans, audit)
    print(json.dumps(whole, indent=2, allow_nan=False) if options.json else printed)
    return 0


def _study(args: Sequence[str], settings: PlanSettings) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from cdmem.study.config import read_study
    from cdmem.study.plan import plan_study

    # The audit's device need not be in this machine.
    return plan_study(read_study([*args, "--audit.device", "auto"]), settings)


def _lone(args: list[str], teacher_config: str | None, settings: PlanSettings) -> list[dict[str, Any]]:
    """One stage; a student's teacher is what ``model.teacher`` names, or assembled from its own config."""
    from cdmem.study.plan import build_stage, plan_stage
    from cdmem.training.teacher import DiffusionTeacher

    teacher = None
    if teacher_config is not None:
        stage = build_stage(["--config", teacher_config])
        teacher = stage.model
        if not isinstance(teacher, DiffusionTeacher):
            problem = f"describes a {type(teacher).__name__}"
            raise InputError("teacher_config", teacher_config, problem, "give the config of a teacher")
        teacher.prepare(stage.datamodule.training_set)
        args = [*args, "--model.teacher", teacher_config]
    try:
        stage = build_stage(args)
    except InputError as error:
        if error.key != "model.teacher" or error.value is not None:
            raise
        hint = "add --teacher_config FILE, the teacher's config, or --model.teacher with its checkpoint"
        raise InputError("model.teacher", None, "the teacher's network is part of the cost", hint) from None
    return [plan_stage(stage.model.role, stage, settings, teacher if stage.model.role == "student" else None)]


def _sweep(args: list[str], items: Sequence[str], settings: PlanSettings) -> tuple[dict[str, Any], str]:
    """Totals of every cell and of all, in JSON types and as lines."""
    cells, rows = cells_of(parse_grid(items)), []
    share = replace(settings, seconds=settings.seconds / len(cells))
    for cell in cells:
        plans, audit = _study([*args, *(f"--{key}={value}" for key, value in cell.settings.items())], share)
        rows.append({"cell": cell.folder} | record(plans, audit)["total"])
    total = {key: sum(row[key] for row in rows) for key in TOTALS}
    lines = [*rows, {"cell": f"all {len(rows)}, one after the other", **total}]
    width = max(len(row["cell"]) for row in lines)
    printed = [
        f"{row['cell']:<{width}}  {si(row['flops'], 'FLOP'):>12}  {row['device_hours']:>10.1f} device-hours  "
        f"{duration(row['hours'])}"
        for row in lines
    ]
    source = f"\nTimes at rates {plans[0]['rates']['source']}; plan one cell alone to see them."
    return {"schema": SCHEMA, "cells": rows, "total": total}, "\n".join([*printed, source])


def record(plans: Sequence[dict[str, Any]], audit: dict[str, Any] | None) -> dict[str, Any]:
    """The whole plan in JSON types; later versions of a schema add keys and rename none."""
    total = {key: sum(part[key] for part in [*plans, *([audit] if audit else [])]) for key in TOTALS}
    return {"schema": SCHEMA, "stages": list(plans), "audit": audit, "total": total}


def si(value: float, unit: str) -> str:
    """Three digits and a decimal prefix: 12434276352 FLOP is ``12.4 GFLOP``."""
    k = 0
    while k < len(UNITS) - 1 and value >= 999.5:
        value, k = value / 1000, k + 1
    number = f"{value:.0f}" if value >= 99.95 or k == 0 else f"{value:.3g}"
    return f"{number} {UNITS[k]}{unit}".rstrip()


def gib(size: int) -> str:
    """Bytes in GiB, or in MiB below a tenth."""
    return f"{size / 2**30:.2f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:.2f} MiB"


def duration(h: float) -> str:
    """Hours, in a unit that fits."""
    if h < 1 / 60:
        return f"{h * 3600:.1f} s"
    if h < 1:
        return f"{h * 60:.1f} min"
    return f"{h:.1f} h" if h < 100 else f"{h:.0f} h ({h / 24:.0f} days)"


def _table(head: str, lines: dict[str, str]) -> str:
    return "\n".join([head, *(f"  {key:<20} {value}" for key, value in lines.items())])


def stage_text(r: dict[str, Any]) -> str:
    """The lines of a stage."""
    i, devices, rates, evaluations = r["images"], r["machine"]["devices"], r["rates"], r["evaluations"]
    held = ", ".join(f"{name} {si(v, '')}" for name, v in r["parameters"].items() if name != "network" and v)
    kept = ", ".join(f"{name} {gib(v)}" for name, v in r["memory"].items() if v)
    pieces = r["batch"] // (r["micro_batch"] * devices)
    share = 100 * sum(evaluations["flops"].values()) / r["flops"]
    lines = {
        "parameters": f"{si(r['parameters']['network'], '')} trainable; {si(r['parameters_total'], '')} with {held}",
        "one evaluation": f"{si(r['evaluation_flops'], 'FLOP')} an image",
        "one step": f"{si(r['step_flops'], 'FLOP')} for {r['batch']:,} images",
        "length": f"{r['steps']:,} steps, {r['images_seen']:,} images, "
        f"{r['images_seen'] / i['rows']:,.0f} times through T",
        "on": f"{devices} device{'s' * (devices > 1)}, {r['micro_batch']:,} images at once on each"
        + f", {pieces} times a step" * (pieces > 1),
        "evaluations": f"{evaluations['moments']} moments, {si(evaluations['count'], '')} network evaluations, "
        f"{share:.1f} % of all FLOPs",
        **{f"  {purpose}": si(flops, "FLOP") for purpose, flops in evaluations["flops"].items()},
        "memory per device": f"{gib(r['memory_total'])}: {kept}",
        "in all": si(r["flops"], "FLOP"),
        "time": duration(r["hours"])
        + f" on {devices} devices ({r['device_hours']:.1f} device-hours)" * (devices > 1)
        + f" at {rates['training']:.3g} TFLOP/s in steps, {rates['evaluation']:.3g} in evaluations",
        "": rates["source"],
    }
    rows = f" in {i['rows']:,} rows" * (i["rows"] != i["n"])
    shape = "x".join(map(str, i["shape"]))
    return _table(f"{r['name']}: images {shape}, n = {i['n']:,}{rows}, held out {i['held_out']:,}", lines)


def text(plans: Sequence[dict[str, Any]], audit: dict[str, Any] | None) -> str:
    """The whole plan for people."""
    parts = [stage_text(plan) for plan in plans]
    if audit is not None:
        what = f"{audit['samples']:,} samples a model, {si(audit['evaluations'], '')} network evaluations"
        lines = {name: si(flops, "FLOP") for name, flops in audit["work"].items()}
        lines |= {"in all": si(audit["flops"], "FLOP"), "time": duration(audit["hours"])}
        total = record(plans, audit)["total"]
        spent = f"{duration(total['hours'])}, {total['device_hours']:.1f} device-hours"
        parts += [_table(f"audit: {what}, on one device", lines), f"total: {si(total['flops'], 'FLOP')}, {spent}"]
    parts.append("Counted: networks only; no metrics, data, optimizer or averages. See docs/plan.md.")
    return "\n\n".join(parts)
