"""``python -m cdmem plan --config FILE``: what a stage or a study will cost, before anything is trained.

FILE is a config of ``fit`` or of ``study``; overrides are theirs. No data, no GPU and no teacher's checkpoint are
needed, and nothing is written. Hours are those of some real training steps on this machine, scaled, or of --tflops::

    python -m cdmem plan --config configs/cifar10.yaml --devices 8
    python -m cdmem plan --config configs/cifar10/student_cd.yaml --teacher_config configs/cifar10/teacher.yaml
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from cdmem.cli.arguments import parse
from cdmem.errors import InputError
from cdmem.io.paths import usable_path
from cdmem.io.text import read_yaml
from cdmem.study.config import read_study
from cdmem.study.parsing import help_text, options, words
from cdmem.study.plan import PlanSettings, build_stage, plan_stage, plan_study
from cdmem.study.sweep import cells_of, parse_grid
from cdmem.training.teacher import DiffusionTeacher

SCHEMA = 2
UNITS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
TOTALS = ("flops", "hours", "device_hours")


@dataclass(frozen=True, kw_only=True)
class PlanCommand(PlanSettings):
    """Options of plan itself; others are those of fit and study.

    Attributes:
        config: of a stage or of a study.
        teacher_config: of a lone student whose teacher does not exist yet.
        sweep: KEY=VALUE,VALUE ... of a study; what every combination costs, and all of them.
        json: print every number, for programs.
        allow_code: files may name code to run: configs in run folders, checkpoints.
    """

    config: str
    teacher_config: str | None = None
    sweep: list[str] | None = None
    json: bool = False
    allow_code: bool = False


def is_study(file: str) -> bool:
    """Whether a config is that of a study, and not of a stage.

    Raises:
        InputError: no file, no YAML mapping, or a mapping of another kind.
    """
    keys = set(read_yaml(usable_path("config", file), "config", "give a config of fit or study"))
    if not keys & {"teacher", "students", "model"}:
        hint = "give a config of a stage (model: ...) or of a study (teacher: ..., students: ...)"
        raise InputError("config", file, f"has keys {sorted(map(str, keys))[:6]}, so it is neither", hint)
    return bool(keys & {"teacher", "students"})


def run_plan(args: Sequence[str]) -> int:
    """``python -m cdmem plan``."""
    if not args or {"-h", "--help"} & set(args):
        print(help_text(PlanCommand, "plan", __doc__ or ""), end="")
        return 0
    given, own = options(args), [f.name for f in fields(PlanCommand)]
    command = parse(PlanCommand, words([pair for pair in given if pair[0] in own]), "plan")
    rest = words([pair for pair in given if pair[0] not in own or pair[0] == "config"])
    study = is_study(command.config)
    if command.sweep and not study:
        raise InputError("sweep", " ".join(command.sweep), "a sweep is one of studies", "give the config of a study")
    if study and command.teacher_config is not None:
        hint = "use --teacher.config FILE, or leave it out"
        raise InputError("teacher_config", command.teacher_config, "a study names its teacher itself", hint)
    if command.sweep:
        whole, printed = _sweep(rest, command)
    else:
        plans, audit = _study(rest, command) if study else (_lone(rest, command), None)
        whole, printed = record(plans, audit), text(plans, audit)
    print(json.dumps(whole, indent=2, allow_nan=False) if command.json else printed)
    return 0


def _study(args: Sequence[str], settings: PlanSettings) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    # The audit's device need not be in this machine.
    return plan_study(read_study([*args, "--audit.device", "auto"]), settings)


def _lone(args: list[str], command: PlanCommand) -> list[dict[str, Any]]:
    """One stage; a student's teacher is what ``model.teacher`` names, or assembled from its own config."""
    teacher, file = None, command.teacher_config
    if file is not None:
        stage = build_stage(["--config", file])
        teacher = stage.model
        if not isinstance(teacher, DiffusionTeacher):
            problem = f"describes a {type(teacher).__name__}"
            raise InputError("teacher_config", file, problem, "give the config of a teacher")
        teacher.prepare(stage.datamodule.training_set)
        args = [*args, "--model.teacher", file]
    try:
        stage = build_stage(args)
        return [plan_stage(stage.model.role, stage, command, teacher if stage.model.role == "student" else None)]
    except InputError as error:
        if error.key != "model.teacher" or teacher is not None:
            raise
        hint = f"{error.hint}, or add --teacher_config FILE: the teacher's network is part of the cost"
        raise InputError(error.key, error.value, error.problem, hint) from None


def _sweep(args: list[str], command: PlanCommand) -> tuple[dict[str, Any], str]:
    """Totals of every cell and of all, in JSON types and as lines."""
    cells, rows = cells_of(parse_grid(command.sweep)), []
    share = replace(command, seconds=command.seconds / len(cells))
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
