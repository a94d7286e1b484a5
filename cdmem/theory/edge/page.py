"""The page of edge: words, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cdmem.report.charts.base import Chart
from cdmem.report.charts.curves import Series, curves
from cdmem.theory.edge.capacity_sweep import CapacitySweep
from cdmem.theory.edge.charts import against, lines, picture_rows, share
from cdmem.theory.edge.distillation import Curve
from cdmem.theory.edge.images import SIDE
from cdmem.theory.edge.losses import generalising
from cdmem.theory.edge.mixture import Sizes, grid
from cdmem.theory.edge.sampling import Copies, copied, integrate
from cdmem.theory.edge.scaling_law import Cell, Fit, Law
from cdmem.theory.edge.transition import transition
from cdmem.theory.edge.untrained import Crossovers, UntrainedLosses
from cdmem.theory.experiment import Figure, Section, Table
from cdmem.theory.measures import Interval

OVER_N, RATIO = "capacity M / N", "memorisation ratio"
KINDS = ("teacher", "student", "student2", "student3", "control", "student4", "copycat")


def _interval(label: str, kind: str, x: Sequence[float], values: Sequence[Interval]) -> Series:
    ends = [e.low for e in values], [e.high for e in values]
    return Series(label, kind, x, [e.mean for e in values], *ends)


def _ratios(label: str, kind: str, capacities: Sequence[int], n: int, copies: Sequence[Copies]) -> Series:
    ends = [c.low for c in copies], [c.high for c in copies]
    return Series(label, kind, [m / n for m in capacities], [c.ratio for c in copies], *ends)


def losses_section(losses: UntrainedLosses, cross: Crossovers, sizes: Sizes, level: int, where: str) -> Section:
    """Losses of the untrained denoisers and where they cross.

    Args:
        losses: of one data set.
        cross: their crossovers.
        sizes: of the data.
        level: index of the time at which losses are shown against capacity.
        where: sizes and draws, for the captions.
    """
    n, t, times = sizes.n, losses.times, torch.tensor(losses.times, dtype=torch.float64)
    shares = [m / n for m in losses.capacities]
    half, most = (min(range(len(shares)), key=lambda k: abs(shares[k] - x)) for x in (0.5, 0.9))
    per_t = [
        _interval("generalising", "teacher", t, losses.gen),
        Series("its formula", "cheap", t, generalising(times, sizes.d, sizes.variance).tolist()),
        _interval("memorising", "copycat", t, losses.mem),
    ]
    for kind, k in (("student", half), ("student2", most)):
        per_t.append(Series(f"M/N = {shares[k]:.2g} memorised", kind, t, losses.pmem[k].tolist()))
    chart = curves("losses", per_t, "time t", "denoising loss", alt="Losses of four denoisers against time.")
    caption = f"{where}; bands: 95 % over noise. The generalising loss follows d s²/(ψ s² + 1); the partly memorising "
    caption += "one does not depend on t until the noise hides which sample it came from."
    data_side = [
        Series("M samples, Monte Carlo", "student", shares, losses.pmem[:, level].tolist()),
        Series("mean over all choices of M", "copycat", shares, cross.pmem_formula),
    ]
    level_at = losses.gen[level].mean
    by_m = lines(
        "pmem",
        data_side,
        OVER_N,
        f"loss at t = {t[level]:.2f}",
        levels=[(level_at, "generalising")],
        alt="Partly memorising loss against capacity, with the generalising one as a level.",
    )
    crossing = [
        Series("Monte Carlo", "teacher", t, cross.per_t),
        Series("formulas", "cheap", t, cross.per_t_formula),
    ]
    star = curves("crossover", crossing, "time t", "M* / N", alt="Capacity at which the losses cross, per time.")
    low, high = cross.uniform_formula_C_1_to_2
    head = ("weight λ(t)", "M*/N", "formula (3.3)")
    rows = [
        ("uniform", share(cross.uniform), f"{low:.3f} (C = 1) to {high:.3f} (C = 2)"),
        ("ψ, as in training", share(cross.psi), "near 1"),
    ]
    constants = f"C of (3.2) falls from {cross.C[0]:.2f} at M/N = {shares[0]:.2g} to "
    constants += f"{cross.C[-1]:.2f} at {shares[-2]:.2g}; theory allows 1 to 2 for large d."
    return Section(
        "Losses without training: when does memorising become cheaper?",
        [constants],
        [
            Figure(chart, caption),
            Figure(by_m, f"{where}. Right of the crossing, memorising M samples beats knowing the mixture."),
            Figure(star, f"{where}. Formulas: d s²/(ψ s² + 1) against the mean distance to memorised neighbours."),
            Table(head, rows, f"Crossover averaged over the {len(t)} times of the grid, {where}."),
        ],
    )


def trained_section(sweep: CapacitySweep, losses: UntrainedLosses, level: int, where: str) -> Section:
    """The trained models; ``level`` and ``where`` as above."""
    n, x = sweep.n, [m / sweep.n for m in sweep.capacities]
    at = sweep.transition().shares(n)
    marks = [(at[name], name) for name in ("start", "M_pt", "end") if at[name] is not None]
    ratio = curves(
        "ratio",
        [_ratios("trained", "teacher", sweep.capacities, n, sweep.pooled())],
        OVER_N,
        RATIO,
        marks=marks,
        alt="Memorisation ratio against capacity.",
    )
    train, test = ([row[level] for row in sweep.average(key)] for key in ("train", "fresh"))
    both = [Series("training points", "teacher", x, train), Series("fresh points", "student", x, test)]
    levels, loss_at = [(losses.gen[level].mean, "generalising")], f"loss at t = {losses.times[level]:.2f}"
    alt = "Losses against capacity."
    both_losses = lines("trained_losses", both, OVER_N, loss_at, levels=levels, log_y=True, alt=alt)
    var = sweep.average("var")
    variance = curves(
        "variance",
        [Series("learned s²", "teacher", x, var)],
        OVER_N,
        "learned variance s²",
        alt="Learned variance against capacity.",
    )
    distances = curves(
        "distances",
        [
            Series("to the nearest sample", "teacher", x, sweep.average("means.to_sample")),
            Series("to the nearest true mean", "student", x, sweep.average("means.to_true")),
        ],
        OVER_N,
        "mean distance of learned means",
        alt="Distances of learned means against capacity.",
    )
    head = ("M", "M/N", "ratio", "s²", "near a true mean", "near a sample", "train loss", "test loss")
    columns = (sweep.average("means.near_true"), sweep.average("means.near_sample"), train, test)
    rows = [
        (str(m), f"{m / n:.3g}", f"{c.ratio:.3f} [{c.low:.3f}, {c.high:.3f}]", f"{s2:.4f}", f"{true:g}", f"{sample:g}",
         f"{on_train:.4g}", f"{on_test:.4g}")
        for m, c, s2, true, sample, on_train, on_test in zip(sweep.capacities, sweep.pooled(), var, *columns)
    ]  # fmt: skip
    return Section(
        "Trained models: M means and one variance",
        [f"M_pt/N per seed: {', '.join(share(e.shares(n)['M_pt']) for e in sweep.each())}."],
        [
            Figure(ratio, f"{where}; band: 95 % (Wilson). A copy has d1² ≤ d2²/9 among the training points."),
            Figure(both_losses, f"{where}. Published: the test loss rises with the ratio."),
            Figure(variance, f"{where}. Published: it falls linearly in M, also while the model generalises."),
            Figure(distances, f"{where}. Published: the distance to the samples falls linearly in M."),
            Table(head, rows, f"{where}; ratio with 95 % interval, counts averaged over seeds."),
        ],
    )


def distillation_section(
    curves_: Sequence[Curve], capacities: Sequence[int], n: int, steps: int, where: str
) -> Section:
    """Students beside their teachers, of n points; ``steps`` per level of the longest distillation."""
    shown = {c.name: c for c in curves_}
    lengths = [c for c in curves_ if c.name.startswith("consistency_1_after_")]
    main = [shown[k] for k in ("teacher", "consistency_1", "consistency_2", "regression_1", "teacher_2")]

    def chart(name: str, chosen: Sequence[Curve], spread: bool, alt: str) -> Chart:
        made = []
        for c, kind in zip(chosen, KINDS):
            y = c.spread if spread else [copies.ratio for copies in c.copies]
            made.append(Series(c.label, kind, [m / n for m in capacities], y))
        return lines(name, made, OVER_N, "tr Cov / true tr Cov" if spread else RATIO, alt=alt)

    parts: list[Figure | Table] = [
        Figure(
            chart("distilled_ratio", main, False, "Memorisation ratio of teacher and students."),
            f"{where}; {steps} optimiser steps per level.",
        ),
        Figure(
            chart("distilled_spread", main, True, "Variance ratios of teacher and students."),
            f"{where}. 1 is the true mixture; below the teacher's line samples are blurred.",
        ),
    ]
    if lengths:
        by_length = [shown["teacher"], *lengths, shown["consistency_1"]]
        title = "Memorisation ratio of one-step students by length of the distillation."
        words = f"{where}; the last line is after {steps} steps per level."
        parts.append(Figure(chart("distilled_length", by_length, False, title), words))
    head = ("sampler", "M_pt/N", "95 % interval", "ratio at M = N", "variance ratio there", "copies kept", "error")
    rows = []
    for c in curves_:
        at = transition(list(capacities), c.copies).shares(n)
        last = c.copies[-1]
        kept = "-" if c.kept[-1] is None else f"{c.kept[-1]:.3f}"
        ends = f"{share(at['low'])} to {share(at['high'])}"
        ratio_at = f"{last.ratio:.3f} [{last.low:.3f}, {last.high:.3f}]"
        rows.append((c.label, share(at["M_pt"]), ends, ratio_at, f"{c.spread[-1]:.2f}", kept, f"{c.error[-1]:.2f}"))
    words = [
        "The student has its teacher's number of means, with free gains, sharpness and intercepts at every level.",
        "Where the variance ratio falls below the teacher's, samples are averages of several data points: such blur "
        "alone raises d1/d2 and lowers the ratio. Error is the distance to the teacher's sample from the same noise, "
        "relative to its size; a dash means that the ratio never reaches one half.",
    ]
    parts.append(Table(head, rows, f"{where}; ratio, variance ratio, copies kept and error at M = N."))
    return Section("Does distillation move the transition?", words, parts, reconstruction=True)


def law_section(cells: Sequence[Cell], line: Law | None, fitted: Fit | None, where: str) -> Section:
    """M_pt over (N, d, K) and the fitted weight."""
    reached = [c for c in cells if c.transition.middle is not None]
    parts: list[Figure | Table] = []
    if reached:
        groups = []
        for kind, d in zip(KINDS, sorted({c.sizes.d for c in reached})):
            of = [c for c in reached if c.sizes.d == d]
            middle, *ends = ([getattr(c.transition, key) for c in of] for key in ("middle", "low", "high"))
            groups.append(Series(f"d = {d}", kind, [c.sizes.n for c in of], middle, *ends))
        slope = 0.8
        chart = against("m_pt", groups, slope, "training points N", "M_pt", label="0.8 N", alt="M_pt against N.")
        parts.append(Figure(chart, f"{where}; bars: 95 %. Dashed: the published 4N/5."))
    words = []
    if fitted:
        cases = [c for c in cells if c.case is not None]
        sides = []
        for label, kind, side in (("fitted", "teacher", True), ("held out", "student", False)):
            keep = [k for k, used in enumerate(fitted.fitted) if used is side]
            x, y = [cases[k].case.target for k in keep], [fitted.predicted[k] for k in keep]
            if keep:
                sides.append(Series(label, kind, x, y))
        chart = against(
            "predicted",
            sides,
            1.0,
            "measured M_pt / N",
            "predicted M / N",
            label="equal",
            origin=False,
            alt="Predicted against measured.",
        )
        errors = f"Squared error of M/N: {fitted.train:.2g} fitted"
        if fitted.test is not None and fitted.constant is not None:
            errors += (
                f", {fitted.test:.2g} held out; the mean of the fitted tuples would err by {fitted.constant:.2g} there"
            )
        parts.append(Figure(chart, f"{errors}."))
        weight = [Series("λ̃", "teacher", grid().tolist(), fitted.weights)]
        parts.append(
            Figure(
                curves("lambda", weight, "time t", "fitted weight λ̃ (sum 1)", alt="Fitted weight against time."),
                "Only one mean of λ̃ is fixed by the data, that of d s²/(ψ s² + 1); its shape over t follows the start.",
            )
        )
        words.append(
            "λ̃ makes the crossover of the untrained losses fall on the measured M_pt, by a soft-max over M with "
            "temperature 1/20 and an entropy penalty of 1e-3; scale and optimiser are assumed."
        )
    head = ("N", "d", "K", "M_pt/N", "95 % interval", "start", "end", "M*/N uniform λ", "predicted by λ̃")
    rows, predictions = [], iter(fitted.predicted if fitted else [])
    for c in cells:
        at = c.transition.shares(c.sizes.n)
        guess = share(next(predictions)) if fitted and c.case is not None else "-"
        ends = f"{share(at['low'])} to {share(at['high'])}"
        numbers = (share(at["M_pt"]), ends, share(at["start"]), share(at["end"]), share(c.uniform), guess)
        rows.append((str(c.sizes.n), str(c.sizes.d), str(c.sizes.k), *numbers))
    parts.append(Table(head, rows, where))
    if line:
        words.insert(0, f"M_pt = {line.slope:.3f} N [{line.low:.3f}, {line.high:.3f}] over {line.tuples} tuples.")
    return Section("The transition over N, d and K", words, parts)


def image_section(sweep: CapacitySweep, losses: UntrainedLosses, source: str, draws: int, where: str) -> Section:
    """The image model, whose templates are of ``source``; ``draws`` noises per image of the losses."""
    n, x, t = sweep.n, [m / sweep.n for m in sweep.capacities], losses.times[0]
    ratio = curves(
        "image_ratio",
        [_ratios("trained", "teacher", sweep.capacities, n, sweep.pooled())],
        OVER_N,
        RATIO,
        alt="Memorisation ratio of the image model against capacity.",
    )
    train, test = ([row[0] for row in sweep.average(key)] for key in ("train", "fresh"))
    partly = losses.pmem[:, 0].tolist()
    both = [
        Series("training images", "teacher", x, train),
        Series("fresh images", "student", x, test),
        Series("partly memorising", "student2", x[:-1], partly[:-1]),
    ]
    level = [(losses.gen[0].mean, "generalising")]
    level_at, alt = f"loss at t = {t:.2f}", "Image losses."
    loss = lines("image_losses", both, OVER_N, level_at, levels=level, log_y=True, alt=alt)
    head = ("M/N", "ratio", "train loss", "test loss", "pmem train", "colour s²")
    rows = [
        (f"{share:.2g}", f"{c.ratio:.3f} [{c.low:.3f}, {c.high:.3f}]", *(f"{v:.4g}" for v in means), f"{var:.4f}")
        for share, c, var, *means in zip(x, sweep.pooled(), sweep.average("var"), train, test, partly)
    ]
    words = [
        f"Templates: {source}, resized bicubically to 15 x 15; the published ones are of FashionMNIST, which "
        "comes with no dependency. The shape of the published table is the target, not its numbers.",
        f"Generalising: train {losses.gen[0].mean:.4g}, test {losses.gen_fresh[0].mean:.4g}; memorising: train "
        f"{losses.mem[0].mean:.4g}, test {losses.mem_fresh[0].mean:.4g} (t = {t:.3f}, {draws} noises per image).",
    ]
    return Section(
        "The image model",
        words,
        [
            Figure(ratio, f"{where}; band: 95 % (Wilson)."),
            Figure(loss, f"{where}. Published shape: the test loss rises from M/N = .6 on."),
            Figure(_pictures(sweep), "First seed. Framed: copies of a training image."),
            Table(head, rows, f"{where}; losses at t = {t:.3f}."),
        ],
    )


def _pictures(sweep: CapacitySweep) -> Chart:
    """Training images, and samples of four capacities from the same noise."""
    problem, count, n = sweep.problems[0], 8, sweep.n
    rows = [("training", problem.data[:count].unflatten(-1, (SIDE, SIDE)), [False] * count)]
    for aim in (0.1, 0.5, 0.9, 1.0):
        k = min(range(len(sweep.capacities)), key=lambda k: abs(sweep.capacities[k] / n - aim))
        samples = integrate(sweep.models[0][k], problem.noise[:count], grid())
        flags = copied(samples, problem.data).tolist()
        rows.append((f"M/N = {sweep.capacities[k] / n:.2g}", samples.unflatten(-1, (SIDE, SIDE)), flags))
    return picture_rows("image_samples", rows, alt="Training images, and samples of four capacities.")
