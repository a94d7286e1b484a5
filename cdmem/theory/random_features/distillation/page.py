"""The page of the distillation part: words, tables and figures. Everything in it is a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cdmem.report.charts.curves import Series, curves
from cdmem.theory.experiment import Figure, Section, Table

INTERVAL = "95 % interval: the wider of Student's t over seeds and Wilson's over all samples."
GAINS = (0, 10, 16, 22)  # places in the grid of ridges whose gain is drawn
Results = dict[str, Any]


def percent(row: Results) -> str:
    """Mean and interval of f_mem."""
    return f"{row['mean']:.2%} [{max(row['low'], 0):.2%}, {row['high']:.2%}]"


def lead(leak: Results, f_mem: Results, stopping: Results) -> list[str]:
    """The main numbers, each labelled."""
    star = "none" if leak["gamma_star"] is None else f"{leak['gamma_star']:.3g}"
    full = next(k for k in f_mem if k.startswith("teacher_") and k.removeprefix("teacher_").isdigit())
    teacher = [percent(f_mem[key]) for key in (full, "teacher_1", "teacher_2")]
    student = [percent(f_mem[key]) for key in ("student_1", "student_2")]
    return [
        f"Reconstruction: without a ridge {leak['mem_null'][0]:.0%} of what leaves the generalising directions arrives "
        f"outside them ({leak['mem'][0]:.0%} in Mem); gamma* = {star}.",
        f"Reconstruction: f_mem of the teacher {teacher[0]} at full cost, {teacher[1]} at one evaluation, "
        f"{teacher[2]} at two; of the student {student[0]} and {student[1]} "
        f"(n = {f_mem['n']}, {f_mem['seeds']} seeds, {f_mem['samples']} samples each).",
        "Student that is neither stopped nor regularised: "
        f"{stopping['student_1']} (one step), {stopping['student_2']} (two steps).",
    ]


def sections(leak: Results, f_mem: Results, stopping: Results) -> list[Section]:
    """The page's parts."""
    return [_leakage(leak), _students(f_mem), _stopping(f_mem, stopping)]


def _leakage(leak: Results) -> Section:
    gamma, index, gap = leak["gamma"], leak["index"], leak["gap"]

    def series(name: str, kind: str, entry: Results, key: str) -> Series:
        ends = list(zip(*entry[f"{key}_ci95"]))
        return Series(name, kind, gamma, entry[key], [max(v, 0) for v in ends[0]], [min(v, 1) for v in ends[1]])

    parts = [
        series("Mem + Null", "copycat", index, "mem_null"),
        series("Mem, by index", "student", index, "mem"),
        series("Mem, by gap", "student2", gap, "mem"),
        series("Null", "control", index, "null"),
    ]
    marks = [(leak["gamma_star"], "gamma*")] if leak["gamma_star"] else []
    chart = curves("leak", parts, "ridge gamma", "median share of T v, v in Gen", log_x=True, percent=True, marks=marks,
                   alt="leakage from Gen against the ridge")  # fmt: skip
    equal = [
        Series("ridge", "teacher", gamma[1:], index["mem_null"][1:]),
        Series("gradient flow", "student", gamma[1:], index["flow_mem_null"]),
        Series("ridge, Mem", "cheap", gamma[1:], index["mem"][1:]),
        Series("gradient flow, Mem", "student2", gamma[1:], index["flow_mem"]),
    ]
    label = "gamma, or psi_p / (2 Delta tau)"
    flow = curves("leak_flow", equal, label, "share outside Gen", log_x=True, percent=True, alt="ridge against time")
    gains = leak["gain"]
    kinds = ("copycat", "student", "student2", "teacher")
    shown = _thinned(np.asarray(gains["eigenvalue"]))
    lines = [
        Series(f"gamma = {g:.3g}", kind, np.asarray(gains["eigenvalue"])[shown].tolist(), np.asarray(v)[shown].tolist())
        for kind, g, v in list(zip(kinds, gains["gamma"], gains["values"]))[1:]
    ]
    gain = curves("gain", lines, "eigenvalue of U", "gain |T v|", log_x=True, alt="gain against eigenvalue")
    text = [
        "The student's readout is a regression on the teacher's step, so feature directions are transported by "
        "T = (U + gamma)^-1 C. Gen: the d largest eigenvalues; Mem: the next n, or by the spectral gap what lies "
        "between it and twice the atom; Null: the rest.",
        f"Noise floor (a step of length 0): {leak['noise_floor']:.1e}. With U and C from different draws a weak "
        f"teacher and a short step would seem to leak {leak['independent_draws']:.0%} at gamma = 0.",
    ]
    star = "No ridge up to 10 is sufficient."
    if leak["gamma_star"]:
        star = f"gamma* = {leak['gamma_star']:.3g}: the smallest ridge with at most 5 % outside Gen, or within 10 % of "
        star += "the value at gamma = 10 (our rule)."
    return Section("What one distillation step does to the directions", text, [
        Figure(chart, f"Medians over Gen, mean and 95 % interval over {leak['seeds']} seeds. {star}"),
        Figure(flow, "The same with the student stopped at a time tau instead: the two filters agree for small "
               "eigenvalues at gamma = psi_p / (2 Delta tau)."),
        Figure(gain, "How much of a direction survives, seed 0: large eigenvalues pass, the ridge damps small ones."),
    ], reconstruction=True)  # fmt: skip


def _thinned(eigenvalues: np.ndarray, count: int = 160) -> np.ndarray:
    """Places evenly spread in rank among small and all among the largest eigenvalues."""
    top = np.arange(max(len(eigenvalues) - 60, 0), len(eigenvalues))
    rest = np.linspace(0, max(len(eigenvalues) - 61, 0), min(count, len(eigenvalues))).round().astype(int)
    return np.unique(np.concatenate([rest, top]))


def _students(f_mem: Results) -> Section:
    rows = []
    full = [k for k in f_mem if k.startswith("teacher_") and k.removeprefix("teacher_").isdigit()]
    names = {k: f"teacher, {k.removeprefix('teacher_')} steps" for k in full}
    names |= {
        "empirical": "empirical score, all steps",
        "student_1": "student, 1 step",
        "student_2": "student, 2 steps",
    }
    for key, name in names.items():
        row = f_mem[key]
        rows.append((name, percent(row), f"{row['variance']:.2f}"))
    grids = [("student, 1 step, ridge", f_mem["gamma"], f_mem["student_ridge"])]
    grids += [("teacher, ridge", f_mem["gamma"], f_mem["teacher_ridge"])]
    grids += [("teacher, stopped at tau =", f_mem["tau"], f_mem["teacher_stopped"])]
    grids += [("teacher, truncated at rank", f_mem["rank"], f_mem["teacher_truncated"])]
    base = [(f"{name} {x:g}", percent(row), f"{row['variance']:.2f}") for name, grid, rows_ in grids
            for x, row in zip(grid, rows_)]  # fmt: skip
    head = ("sampler", "f_mem", "tr Cov / d")
    note = f"{f_mem['seeds']} seeds, {f_mem['samples']} samples each, n = {f_mem['n']}. {INTERVAL}"
    text = [
        "A lower f_mem alone shows nothing: the teacher itself copies less with fewer steps, and samples that shrink "
        "towards their mean copy less as well (the truth has tr Cov / d = 1).",
    ]
    parts = [Table(head, rows, note), Table(head, base, "Baselines: the same kinds of regularisation on the teacher.")]
    return Section("Teacher and student", text, parts, reconstruction=True)


def _line(name: str, kind: str, x: Sequence[float], rows: Sequence[Results], key: str = "mean") -> Series:
    if key == "variance":
        return Series(name, kind, x, [r[key] for r in rows])
    return Series(name, kind, x, [r["mean"] for r in rows], [max(r["low"], 0) for r in rows], [r["high"] for r in rows])


def _stopping(f_mem: Results, stopping: Results) -> Section:
    tau = f_mem["tau"]
    lines = [
        _line("student, 1 step", "student", tau, f_mem["student_flow"]),
        _line("student, 2 steps", "student2", tau, f_mem["student_flow_2"]),
        _line("1 step, ridge instead", "copycat", tau, f_mem["student_matched_ridge"]),
        _line("teacher stopped", "teacher", tau, f_mem["teacher_stopped"]),
    ]
    chart = curves(
        "f_mem_time", lines, "training time tau", "f_mem", log_x=True, percent=True, alt="f_mem against time"
    )
    spread = [
        _line("student, 1 step", "student", tau, f_mem["student_flow"], "variance"),
        _line("student, 2 steps", "student2", tau, f_mem["student_flow_2"], "variance"),
        _line("1 step, from the teacher", "student3", tau, f_mem["student_flow_from_teacher"], "variance"),
        _line("teacher stopped", "teacher", tau, f_mem["teacher_stopped"], "variance"),
    ]
    variance = curves("variance_time", spread, "training time tau", "tr Cov / d", log_x=True, marks=(),
                      alt="variance against time")  # fmt: skip
    rows = []
    for n in sorted({r["n"] for r in stopping["times"]}):
        of = [r for r in stopping["times"] if r["n"] == n]
        times = " / ".join("-" if r["tau_mem"] is None else f"{r['tau_mem']:.3g}" for r in of)
        linear = [f"{np.mean([r[k] for r in of]):.3g}" for k in ("gen_linear", "mem_linear")]
        rows.append((str(n), f"{np.mean([r['f_mem'] for r in of]):.2%}", times, *linear))
    head = ("n", "last f_mem, 2 steps", "tau_mem", "psi_p / 2 Delta lambda, Gen", "the same, Mem")
    exponents = "; ".join(
        f"{name} ~ n^{e[0]:.2f} [{e[1]:.2f}, {e[2]:.2f}]"
        if (e := stopping[f"{key}_exponent"])
        else f"{name}: no exponent"
        for key, name in (("tau_mem", "tau_mem"), ("mem_linear", "time of Mem"), ("gen_linear", "time of Gen"))
    )
    gap = stopping["ridge_against_flow"]
    text = [
        "A student under gradient flow for a time tau, all levels at once, each on the moving output of the one below, "
        "from 0; the published ridge is replaced by stopping.",
        f"Rule: {stopping['rule']} One step: {stopping['student_1']}. Two steps: {stopping['student_2']}.",
        f"Ridge gamma_k = psi_p / (2 Delta_k tau) against stopping at tau, one step: rms difference in f_mem "
        f"{gap['rms']:.3%} where f_mem reaches {gap['largest_f_mem']:.3%}.",
        exponents + ".",
    ]
    note = (
        "tau_mem per seed: half of the last f_mem of two steps. The linear times are those of the student's own filter."
    )
    return Section("Distillation, or stopping early?", text, [
        Figure(chart, f"{f_mem['seeds']} seeds; teacher: a third of the samples. {INTERVAL}"),
        Figure(variance, "Total variance beside it: 1 is the truth."),
        Table(head, rows, note),
    ], reconstruction=True)  # fmt: skip
