"""A plan as aligned text and as plain types for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cdmem.plan.hours import Rates, hours, rates
from cdmem.plan.stage import StagePlan
from cdmem.plan.study import AuditPlan
from cdmem.plan.work import Work

SCHEMA = 1
UNITS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
WIDTH = 20


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


def stage_record(plan: StagePlan, tflops: float | None) -> dict[str, Any]:
    """All numbers of a stage."""
    at = rates(plan.machine, tflops)
    work, devices = plan.work(), plan.machine.devices
    wall = hours(work, plan.machine, at)
    shown = asdict(plan) | {"evaluation_flops": plan.evaluation, "step": _works(plan.step, devices)}
    del shown["evaluation"]
    return shown | {
        "parameters_total": sum(plan.parameters.values()),
        "extra": _works(plan.extra, devices),
        "step_flops": sum(w.total(devices) for w in plan.step),
        "images_seen": plan.batch * plan.steps,
        "memory_total": sum(plan.memory.values()),
        "flops": sum(w.total(devices) for w in work),
        "rates": asdict(at),
        "hours": wall,
        "device_hours": wall * devices,
    }


def audit_record(plan: AuditPlan, tflops: float | None) -> dict[str, Any]:
    """All numbers of an audit."""
    at = rates(plan.machine, tflops)
    flops = sum(w.flops for w in plan.work)
    wall = hours(plan.work, plan.machine, at)
    shown = asdict(plan) | {"work": _works(plan.work, 1), "flops": flops, "rates": asdict(at)}
    return shown | {"hours": wall, "device_hours": wall}


def _works(work: Sequence[Work], devices: int) -> list[dict[str, Any]]:
    return [asdict(w) | {"flops_all_devices": w.total(devices)} for w in work]


def record(stages: Sequence[StagePlan], audit: AuditPlan | None, tflops: float | None) -> dict[str, Any]:
    """The whole plan in JSON types; schema 1, later versions add keys and rename none."""
    parts = [stage_record(s, tflops) for s in stages]
    checked = None if audit is None else audit_record(audit, tflops)
    everything = [*parts, *([] if checked is None else [checked])]
    total = {key: sum(part[key] for part in everything) for key in ("flops", "hours", "device_hours")}
    return {"schema": SCHEMA, "stages": parts, "audit": checked, "total": total}


def _line(key: str, value: str) -> str:
    return f"  {key:<{WIDTH}} {value}"


def stage_text(plan: StagePlan, tflops: float | None) -> list[str]:
    """The lines of a stage."""
    r, i, devices = stage_record(plan, tflops), plan.images, plan.machine.devices
    shape = "x".join(map(str, i.shape))
    rows = "" if i.rows == i.n else f" in {i.rows:,} rows"
    lines = [f"{plan.name}: images {shape}, n = {i.n:,}{rows}, held out {i.held_out:,}"]
    parts = ", ".join(f"{name} {si(v, '')}" for name, v in plan.parameters.items() if name != "network" and v)
    trained = si(plan.parameters["network"], "")
    lines.append(_line("parameters", f"{trained} trainable; {si(r['parameters_total'], '')} with {parts}"))
    lines.append(_line("one evaluation", f"{si(plan.evaluation, 'FLOP')} an image"))
    lines.append(_line("one step", f"{si(r['step_flops'], 'FLOP')} for {plan.batch:,} images"))
    if len(plan.step) > 1:
        lines += [_line("", f"{si(w.flops, 'FLOP'):>12}  {w.name}") for w in plan.step]
    seen = r["images_seen"]
    lines.append(_line("length", f"{plan.steps:,} steps, {seen:,} images, {seen / i.rows:,.0f} times through T"))
    who = f"{devices} device{'s' if devices > 1 else ''}, {plan.micro_batch:,} images at once on each"
    pieces = plan.batch // (plan.micro_batch * devices)
    lines.append(_line("on", who + (f", {pieces} times a step" if pieces > 1 else "")))
    e = plan.evaluations
    if e.moments:
        evaluated = sum(w.total(devices) for w in plan.extra)
        counted = e.model + e.teacher + devices * (e.model_everywhere + e.teacher_everywhere + e.products)
        lines.append(_line("evaluations", f"{e.moments} moments, {si(counted, '')} network evaluations"))
        lines += [_line("", f"{si(w.total(devices), 'FLOP'):>12}  {w.name}") for w in plan.extra]
        lines.append(_line("", f"{100 * evaluated / r['flops']:.1f} % of all FLOPs"))
    kept = ", ".join(f"{name} {gib(v)}" for name, v in plan.memory.items() if v)
    lines.append(_line("memory per device", f"{gib(r['memory_total'])}: {kept}"))
    lines.append(_line("in all", si(r["flops"], "FLOP")))
    lines.append(_line("time", _time(r, rates(plan.machine, tflops), plan)))
    return lines + [_line("note", note) for note in plan.notes]


def _time(r: dict[str, Any], at: Rates, plan: StagePlan | AuditPlan) -> str:
    several = f" on {plan.machine.devices} devices ({r['device_hours']:.1f} device-hours)"
    return duration(r["hours"]) + (several if plan.machine.devices > 1 else "") + f" {at.words(plan.machine)}"


def audit_text(plan: AuditPlan, tflops: float | None) -> list[str]:
    """The lines of an audit."""
    r = audit_record(plan, tflops)
    what = f"{plan.samples:,} samples a model, {si(plan.evaluations, '')} network passes"
    lines = [f"audit: {what}, on one device"]
    lines += [_line("", f"{si(w.flops, 'FLOP'):>12}  {w.name}") for w in plan.work]
    return [*lines, _line("in all", si(r["flops"], "FLOP")), _line("time", _time(r, rates(plan.machine, tflops), plan))]


def text(stages: Sequence[StagePlan], audit: AuditPlan | None, tflops: float | None) -> str:
    """The whole plan for people."""
    parts = [stage_text(s, tflops) for s in stages]
    if audit is not None:
        parts.append(audit_text(audit, tflops))
        total = record(stages, audit, tflops)["total"]
        hours_text = f"{duration(total['hours'])}, {total['device_hours']:.1f} device-hours"
        parts.append([f"total: {si(total['flops'], 'FLOP')}, {hours_text}, at the rates above"])
    parts.append(["Counted: networks only; no metrics, data, optimizer or averages. See docs/plan.md."])
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def sweep_record(cells: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Totals of every cell of a sweep, (folder, record), and of all."""
    totals = [{"cell": folder, **plan["total"]} for folder, plan in cells]
    total = {key: sum(row[key] for row in totals) for key in ("flops", "hours", "device_hours")}
    return {"schema": SCHEMA, "cells": totals, "total": total}


def sweep_text(cells: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """One line a cell, and the sum of all."""
    found = sweep_record(cells)
    rows = [*found["cells"], {"cell": f"all {len(cells)}, one after the other", **found["total"]}]
    width = max(len(row["cell"]) for row in rows)
    lines = [
        f"{row['cell']:<{width}}  {si(row['flops'], 'FLOP'):>12}  {row['device_hours']:>10.1f} device-hours  "
        f"{duration(row['hours'])}"
        for row in rows
    ]
    given = cells[0][1]["stages"][0]["rates"]["given"]
    how = "stated" if given else "assumed"
    return "\n".join([*lines, "", f"Times at {how} rates, not measured: plan one cell alone to see them.", ""])
