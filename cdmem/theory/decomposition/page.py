"""The page of decomposition: words, tables and figures."""

from __future__ import annotations

from typing import Any

from cdmem.report.charts.curves import Series, curves
from cdmem.theory.experiment import KINDS, Figure, Section, Table, span

Results = dict[str, Any]


def lead(results: Results) -> list[str]:
    """The main numbers, made from the results."""
    paths = results["paths"]
    near = paths["nearest"]
    lines = [
        f"Unguided paths of the {results['teacher']}: f_mem {paths['f_mem']:.1%}, D_1 {span(near['D_1'])}, D_2 "
        f"{span(near['D_2'])}; Pearson of D_1 with severity {span(near['D_1_pearson'], '+.2f')}, for a random image "
        f"instead {span(paths['random']['D_1_pearson'], '+.2f')} ({paths['samples']} paths).",
        "Guided by g towards a class of one image, the first estimate's share of the target is "
        + ", ".join(f"{row['a_first']['mean']:.2f} at g = {row['g']:g}" for row in results["guidance"])
        + ".",
    ]
    own = results["guided_teacher"]
    if own and own["rows"]:
        lines.append(
            f"The trained teacher, guided by its own label dropout towards {len(own['classes'])} known targets: "
            + ", ".join(f"{r['trained']['a_first']['mean']:.2f} at g = {r['g']:g}" for r in own["rows"])
            + f" ({own['seeds']} paths a class)."
        )
    if results["student"]:
        row = results["student"]["students"][0]
        lines.append(
            "One student step against the teacher's endpoint of the same noise: target share "
            f"{span(row['a_change_all'])}, rest {span(row['across_change_all'])}."
        )
    return lines


def sections(results: Results) -> list[Section]:
    """The page's parts."""
    parts = [_paths(results), _guidance(results)]
    if results["guided_teacher"]:
        parts.append(_trained(results))
    return [*parts, _student(results["student"])] if results["student"] else parts


def _paths(results: Results) -> Section:
    paths = results["paths"]
    sigma, exact = paths["schedule"]["sigma"], paths["schedule"]
    near = paths["nearest"]["along"]
    weights = [
        Series("target", "teacher", sigma, near["w_0"]),
        Series("noise", "student", sigma, near["w_T"]),
        Series("target, schedule", "cheap", sigma, exact["w_0"]),
        Series("noise, schedule", "student2", sigma, exact["w_T"]),
        Series("neither", "copycat", sigma, near["residual"]),
    ]
    chart = curves("weights", weights, "sigma", "weight in x_t", log_x=True, alt="weights of target and noise")
    estimate = [
        Series("along the target", "teacher", sigma, near["a"]),
        Series("across", "student", sigma, near["across"]),
        Series("posterior of the target", "control", sigma, near["posterior"]),
    ]
    second = curves("estimate", estimate, "sigma", "share", log_x=True, alt="the estimate's parts")
    spread = [Series("measured", "teacher", sigma, paths["diversity"]["ratio"]),
              Series("schedule", "cheap", sigma, [w**2 for w in exact["w_T"]])]  # fmt: skip
    third = curves("diversity", spread, "sigma", "variance within a target", log_x=True, alt="diversity of paths")
    rows = []
    for name, words in (("nearest", "nearest image"), ("second", "second-nearest"), ("random", "a random image")):
        entry = paths[name]
        cells = [span(entry[key]) for key in ("D_1", "D_2")]
        cells += [span(entry[key], "+.2f") for key in ("D_1_pearson", "D_1_spearman", "D_2_pearson", "D_2_spearman")]
        rows.append((words, *cells))
    head = ("x*", "D_1", "D_2", "Pearson, D_1", "Spearman, D_1", "Pearson, D_2", "Spearman, D_2")
    times = ", ".join(f"{name} {'-' if v is None else f'{v:.2f}'}" for name, v in paths["commitment"].items())
    text = [
        "x_t is written as w_0 x* + w_T x_T (mean-centred least squares, variance-preserving frame). x* is the "
        "training image nearest to where the path ends; choosing it by the outcome is circular, so two other choices "
        "stand beside it. The schedule is that of a sampler whose estimate is x* from the first step on.",
        f"Median sigma at which the posterior of x* passes one half: {times}. Severity is -ln(d1 / d2).",
    ]
    note = "Means with Student's t, correlations with bootstrap intervals, 95 %."
    return Section("Unguided paths", text, [
        Figure(chart, f"Means over {paths['samples']} paths, n = {results['n']}."),
        Figure(second, "The clean estimate at each level, and how sure the training law is of the target."),
        Figure(third, f"Variance of x_t among paths with one target, mean over {paths['diversity']['groups']} targets "
               "with at least 5 paths."),
        Table(head, rows, note),
    ], reconstruction=True)  # fmt: skip


def _guidance(results: Results) -> Section:
    rows = [
        (f"{r['g']:g}", span(r["a_first"], ".3f"), f"{r['a_against_unconditional']:.3f}", f"{r['w_0_most']:.2f}",
         span(r["D_1"]), span(r["D_2"]), f"{r['hits']:.0%}")
        for r in results["guidance"]
    ]  # fmt: skip
    head = ("g", "a, first step", "a against D_u", "largest w_0", "D_1", "D_2", "ends at x*")
    sigma = results["paths"]["schedule"]["sigma"]
    lines = [Series(f"g = {r['g']:g}", kind, sigma, r["w_0"]) for kind, r in zip(KINDS, results["guidance"])]
    chart = curves("guided_weights", lines, "sigma", "weight of the target", log_x=True, alt="weights under guidance")
    text = [
        "Exact conditional and unconditional denoisers of the same images, a class that holds one image, so that x* is "
        "known beforehand: the estimate is D_u + g (x* - D_u). At the first step D_u is nearly the mean, so the "
        "overestimate is g.",
    ]
    return Section("Guidance", text, [
        Figure(chart, "Weight of the target along the path. Above the line of g = 1: overestimated."),
        Table(head, rows, "32 seeds; Student's t, 95 %."),
    ], reconstruction=True)  # fmt: skip


def _trained(results: Results) -> Section:
    own, sigma = results["guided_teacher"], results["paths"]["schedule"]["sigma"]
    rows = []
    for r in own["rows"]:
        for kind in ("trained", "exact"):
            e = r[kind]
            spans = [span(e["a_first"], ".3f"), span(e["across_first"], ".3f"), span(e["D_1"]), span(e["D_2"])]
            rows.append((f"{r['g']:g}", kind, *spans, span(e["D_1_pearson"], "+.2f"), span(e["hits"], ".0%")))
    lines = [Series(f"g = {r['g']:g}", kind, sigma, r["trained"]["w_0"]) for kind, r in zip(KINDS, own["rows"])]
    chart = curves(
        "trained_weights", lines, "sigma", "weight of the target", log_x=True, alt="weights, trained teacher"
    )
    classes = ", ".join(f"{c['label']} ({c['copies']} copies, {c['share']:.0%})" for c in own["classes"]) or "none"
    text = [
        "A class-conditional teacher trained with label dropout, guided by its own two estimates. A target is known "
        "beforehand where one image makes up more than half of its class; exact denoisers of the same classes stand "
        "beside it, from the same noise.",
        f"Classes (copies of the target, their share of the class): {classes}.",
    ]
    head = ("g", "denoisers", "a, first step", "across, first step", "D_1", "D_2", "Pearson, D_1", "ends at x*")
    note = f"{own['seeds']} paths a class; Student's t over classes (over paths with fewer than three), 95 %."
    figure = Figure(chart, "Weight of the target along the path of the trained teacher.")
    return Section("Guidance of the trained teacher", text, [*([figure] if rows else []), Table(head, rows, note)],
                   reconstruction=True)  # fmt: skip


def _student(results: Results) -> Section:
    teacher = results["teacher"]
    rows = [("teacher's endpoint", span(teacher["a"], ".3f"), span(teacher["across"], ".3f"), "1", "-", "-", "-")]
    for r in results["students"]:
        changes = [span(r[k]) if k in r else "-" for k in ("a_change_all", "across_change_all", "a_change_copies")]
        rows.append((f"student, {r['steps']} steps", span(r["a"], ".3f"), span(r["across"], ".3f"),
                     span(r["cosine"], ".3f"), *changes))  # fmt: skip
    head = ("output", "along x*", "across", "cosine with teacher", "along: change", "across: change",
            "along: change, copies")  # fmt: skip
    text = [
        "Does distillation lower the share of the target, or add something across it? x* is the training image nearest "
        "to the teacher's endpoint; the same noise through both.",
    ]
    note = f"{results['samples']} seeds, {results['copies']} of them copies; paired changes, Student's t, 95 %."
    return Section("Few-step students", text, [Table(head, rows, note)], reconstruction=True)
