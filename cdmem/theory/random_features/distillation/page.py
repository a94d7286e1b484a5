"""The page of the distillation part: words, tables and figures. Everything in it is a reconstruction."""

from __future__ import annotations

from typing import Any

import numpy as np

from cdmem.report.charts.curves import Series, curves
from cdmem.theory.experiment import Figure, Section, Table

INTERVAL = "95 % interval: the wider of Student's t over seeds and Wilson's over all samples."
GAINS = (0, 10, 16, 22)  # places in the grid of ridges whose gain is drawn
Results = dict[str, Any]


def percent(row: Results) -> str:
    """Mean and interval of f_mem."""
    return f"{row['mean']:.2%} [{row['low']:.2%}, {row['high']:.2%}]"


def walks(f_mem: Results) -> dict[str, str]:
    """Of the teacher: key of the results -> steps, the full cost first."""
    steps = {key: key.removeprefix("teacher_") for key in f_mem}
    return {key: count for key, count in steps.items() if count.isdigit()}


def lead(leak: Results, f_mem: Results, stopping: Results) -> list[str]:
    """The main numbers, each labelled."""
    star = "none" if leak["gamma_star"] is None else f"{leak['gamma_star']:.3g}"
    teacher = [percent(f_mem[key]) for key in (next(iter(walks(f_mem))), "teacher_1", "teacher_2")]
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

    shares = [
        series("Mem + Null", "copycat", index, "mem_null"),
        series("Mem, by index", "student", index, "mem"),
        series("Mem, by gap", "student2", gap, "mem"),
        series("Null", "control", index, "null"),
    ]
    marks = [(leak["gamma_star"], "gamma*")] if leak["gamma_star"] else []
    alt, label = "leakage from Gen against the ridge", "median share of T v, v in Gen"
    chart = curves("leak", shares, "ridge gamma", label, log_x=True, percent=True, marks=marks, alt=alt)
    equal = [
        Series("ridge", "teacher", gamma[1:], index["mem_null"][1:]),
        Series("gradient flow", "student", gamma[1:], index["flow_mem_null"]),
        Series("ridge, Mem", "cheap", gamma[1:], index["mem"][1:]),
        Series("gradient flow, Mem", "student2", gamma[1:], index["flow_mem"]),
    ]
    label = "gamma, or psi_p / (2 Delta tau)"
    flow = curves("leak_flow", equal, label, "share outside Gen", log_x=True, percent=True, alt="ridge against time")
    gains = leak["gain"]
    shown = _thinned(len(gains["eigenvalue"]))
    x, *values = (np.asarray(v)[shown].tolist() for v in (gains["eigenvalue"], *gains["values"]))
    entries = list(zip(("copycat", "student", "student2", "teacher"), gains["gamma"], values))
    lines = [Series(f"gamma = {g:.3g}", kind, x, y) for kind, g, y in entries[1:]]
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
        star = (
            f"gamma* = {leak['gamma_star']:.3g}: the smallest ridge with at most 5 % outside Gen, or within 10 % of "
            "the value at gamma = 10 (our rule)."
        )
    return Section("What one distillation step does to the directions", text, [
        Figure(chart, f"Medians over Gen, mean and 95 % interval over {leak['seeds']} seeds. {star}"),
        Figure(flow, "The same with the student stopped at a time tau instead: the two filters agree for small "
               "eigenvalues at gamma = psi_p / (2 Delta tau)."),
        Figure(gain, "How much of a direction survives, seed 0: large eigenvalues pass, the ridge damps small ones."),
    ], reconstruction=True)  # fmt: skip


def _thinned(p: int) -> np.ndarray:
    """Places evenly spread in rank among small and all among the largest of p eigenvalues."""
    rest = np.linspace(0, max(p - 61, 0), min(160, p)).round().astype(int)
    return np.unique(np.concatenate([rest, np.arange(max(p - 60, 0), p)]))


def _students(f_mem: Results) -> Section:
    samplers = [(f"teacher, {steps} steps", f_mem[key]) for key, steps in walks(f_mem).items()]
    samplers += [
        ("empirical score, all steps", f_mem["empirical"]),
        ("student, 1 step", f_mem["student_1"]),
        ("student, 2 steps", f_mem["student_2"]),
    ]
    grids = (
        ("student, 1 step, ridge", "gamma", "student_ridge"),
        ("teacher, ridge", "gamma", "teacher_ridge"),
        ("teacher, stopped at tau =", "tau", "teacher_stopped"),
        ("teacher, truncated at rank", "rank", "teacher_truncated"),
    )
    baselines = [(f"{name} {x:g}", row) for name, grid, key in grids for x, row in zip(f_mem[grid], f_mem[key])]
    rows, base = ([(name, percent(row), f"{row['variance']:.2f}") for name, row in of] for of in (samplers, baselines))
    head = ("sampler", "f_mem", "tr Cov / d")
    note = f"{f_mem['seeds']} seeds, {f_mem['samples']} samples each, n = {f_mem['n']}. {INTERVAL}"
    text = [
        "A lower f_mem alone shows nothing: the teacher itself copies less with fewer steps, and samples that shrink "
        "towards their mean copy less as well (the truth has tr Cov / d = 1).",
    ]
    parts = [Table(head, rows, note), Table(head, base, "Baselines: the same kinds of regularisation on the teacher.")]
    return Section("Teacher and student", text, parts, reconstruction=True)


def _stopping(f_mem: Results, stopping: Results) -> Section:
    tau, axis = f_mem["tau"], "training time tau"
    one, two = ("student, 1 step", "student", "student_flow"), ("student, 2 steps", "student2", "student_flow_2")
    ridge = ("1 step, ridge instead", "copycat", "student_matched_ridge")
    warm = ("1 step, from the teacher", "student3", "student_flow_from_teacher")
    teacher = ("teacher stopped", "teacher", "teacher_stopped")
    lines = []
    for name, kind, key in (one, two, ridge, teacher):
        mean, low, high = ([r[k] for r in f_mem[key]] for k in ("mean", "low", "high"))
        lines.append(Series(name, kind, tau, mean, low, high))
    chart = curves("f_mem_time", lines, axis, "f_mem", log_x=True, percent=True, alt="f_mem against time")
    spread = [Series(*of, tau, [r["variance"] for r in f_mem[key]]) for *of, key in (one, two, warm, teacher)]
    variance = curves("variance_time", spread, axis, "tr Cov / d", log_x=True, alt="variance against time")
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
