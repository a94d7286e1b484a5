"""The page of edge: words, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cdmem.report.charts_base import Chart
from cdmem.report.lines import Series, curves
from cdmem.theory.edge.capacity_sweep import Crossovers, References, Study, averages, mean_book, shares
from cdmem.theory.edge.charts import against, lines, picture_rows, share
from cdmem.theory.edge.distillation import Curve
from cdmem.theory.edge.images import SIDE
from cdmem.theory.edge.losses import Estimate, Fit, generalising
from cdmem.theory.edge.mixture import grid
from cdmem.theory.edge.sampling import Copies, copied, integrate
from cdmem.theory.edge.scaling_law import Law, Tuple
from cdmem.theory.edge.transition import transition
from cdmem.theory.experiment import Figure, Section, Table

if TYPE_CHECKING:
    from cdmem.theory.edge.laboratory import Settings

OVER_N, RATIO = "capacity M / N", "memorisation ratio"
KINDS = ("teacher", "student", "student2", "student3", "control", "student4", "copycat")


def _interval(label: str, kind: str, x: Sequence[float], values: Sequence[Estimate]) -> Series:
    ends = [e.low for e in values], [e.high for e in values]
    return Series(label, kind, x, [e.mean for e in values], *ends)


def _ratios(label: str, kind: str, capacities: Sequence[int], n: int, found: Sequence[Copies]) -> Series:
    ends = [c.low for c in found], [c.high for c in found]
    return Series(label, kind, [m / n for m in capacities], [c.ratio for c in found], *ends)


def losses_section(ref: References, cross: Crossovers, s: Settings, level: int) -> Section:
    """Losses of the untrained denoisers and where they cross."""
    n, t = s.n, ref.times
    where = f"N = {n}, d = {s.d}, K = {s.k}, s*² = {s.variance:g}, one data set, {s.loss_draws} noises per sample"
    half, most = (min(range(len(ref.capacities)), key=lambda k: abs(ref.capacities[k] / n - x)) for x in (0.5, 0.9))
    per_t = [
        _interval("generalising", "teacher", t, ref.gen),
        Series("its formula", "cheap", t, generalising(torch.tensor(t, dtype=torch.float64), s.d, s.variance).tolist()),
        _interval("memorising", "copycat", t, ref.mem),
    ]
    for kind, k in (("student", half), ("student2", most)):
        per_t.append(Series(f"M/N = {ref.capacities[k] / n:.2g} memorised", kind, t, ref.pmem[k].tolist()))
    chart = curves("losses", per_t, "time t", "denoising loss", alt="Losses of four denoisers against time.")
    caption = f"{where}; bands: 95 % over noise. The generalising loss follows d s²/(ψ s² + 1); the partly memorising "
    caption += "one does not depend on t until the noise hides which sample it came from."
    data_side = [
        Series("M samples, Monte Carlo", "student", [m / n for m in ref.capacities], ref.pmem[:, level].tolist()),
        Series("mean over all choices of M", "copycat", [m / n for m in ref.capacities], cross.nearest),
    ]
    level_at = ref.gen[level].mean
    by_m = lines(
        "pmem",
        data_side,
        OVER_N,
        f"loss at t = {t[level]:.2f}",
        levels=[(level_at, "generalising")],
        alt="Partly memorising loss against capacity, with the generalising one as a level.",
    )
    crossing = [
        Series("Monte Carlo", "teacher", t, cross.per_time),
        Series("formulas", "cheap", t, cross.formula),
    ]
    star = curves("crossover", crossing, "time t", "M* / N", alt="Capacity at which the losses cross, per time.")
    low, high = cross.uniform_bounds
    head = ("weight λ(t)", "M*/N", "formula (3.3)")
    rows = [
        ("uniform", share(cross.uniform), f"{low:.3f} (C = 1) to {high:.3f} (C = 2)"),
        ("ψ, as in training", share(cross.psi), "near 1"),
    ]
    constants = f"C of (3.2) falls from {cross.constants[0]:.2f} at M/N = {ref.capacities[0] / n:.2g} to "
    constants += f"{cross.constants[-1]:.2f} at {ref.capacities[-2] / n:.2g}; theory allows 1 to 2 for large d."
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


def trained_section(found: Study, ref: References, s: Settings, level: int) -> Section:
    """The trained models."""
    n, x = s.n, [m / s.n for m in found.capacities]
    where = f"N = {n}, d = {s.d}, K = {s.k}, {s.seeds} seed(s), {s.steps} steps, {s.samples} samples per model"
    at = shares(found.transition(), n)
    marks = [
        (v, name) for name, v in (("start", at["start"]), ("M_pt", at["M_pt"]), ("end", at["end"])) if v is not None
    ]
    ratio = curves(
        "ratio",
        [_ratios("trained", "teacher", found.capacities, n, found.pooled())],
        OVER_N,
        RATIO,
        marks=marks,
        alt="Memorisation ratio against capacity.",
    )
    both = [
        Series("training points", "teacher", x, [row[level] for row in averages(found, "train")]),
        Series("fresh points", "student", x, [row[level] for row in averages(found, "fresh")]),
    ]
    levels = [(ref.gen[level].mean, "generalising")]
    loss_at = f"loss at t = {ref.times[level]:.2f}"
    losses = lines("trained_losses", both, OVER_N, loss_at, levels=levels, log_y=True, alt="Losses against capacity.")
    variance = curves(
        "variance",
        [Series("learned s²", "teacher", x, averages(found, "var"))],
        OVER_N,
        "learned variance s²",
        alt="Learned variance against capacity.",
    )
    distances = curves(
        "distances",
        [
            Series("to the nearest sample", "teacher", x, mean_book(found, "to_sample")),
            Series("to the nearest true mean", "student", x, mean_book(found, "to_true")),
        ],
        OVER_N,
        "mean distance of learned means",
        alt="Distances of learned means against capacity.",
    )
    head = ("M", "M/N", "ratio", "s²", "near a true mean", "near a sample", "train loss", "test loss")
    rows = []
    pooled, near = found.pooled(), (mean_book(found, "near_true"), mean_book(found, "near_sample"))
    for k, m in enumerate(found.capacities):
        c, var = pooled[k], averages(found, "var")[k]
        counts = [f"{side[k]:g}" for side in near]
        ends = [f"{averages(found, key)[k][level]:.4g}" for key in ("train", "fresh")]
        rows.append(
            (str(m), f"{m / n:.3g}", f"{c.ratio:.3f} [{c.low:.3f}, {c.high:.3f}]", f"{var:.4f}", *counts, *ends)
        )
    return Section(
        "Trained models: M means and one variance",
        [f"M_pt/N per seed: {', '.join(share(None if e.middle is None else e.middle / n) for e in found.each())}."],
        [
            Figure(ratio, f"{where}; band: 95 % (Wilson). A copy has d1² ≤ d2²/9 among the training points."),
            Figure(losses, f"{where}. Published: the test loss rises with the ratio."),
            Figure(variance, f"{where}. Published: it falls linearly in M, also while the model generalises."),
            Figure(distances, f"{where}. Published: the distance to the samples falls linearly in M."),
            Table(head, rows, f"{where}; ratio with 95 % interval, counts averaged over seeds."),
        ],
    )


def distillation_section(curves_: Sequence[Curve], capacities: Sequence[int], s: Settings) -> Section:
    """Students beside their teachers."""
    n = s.n
    where = f"N = {n}, d = {s.d}, K = {s.k}, first seed, {s.samples} samples from the same noise"
    shown = {c.name: c for c in curves_}
    lengths = [c for c in curves_ if c.name.startswith("consistency_1_after_")]
    main = [shown[k] for k in ("teacher", "consistency_1", "consistency_2", "regression_1", "teacher_2")]

    def chart(name: str, chosen: Sequence[Curve], spread: bool, alt: str) -> Chart:
        made = []
        for c, kind in zip(chosen, KINDS):
            y = c.spread if spread else [found.ratio for found in c.copies]
            made.append(Series(c.label, kind, [m / n for m in capacities], y))
        return lines(name, made, OVER_N, "tr Cov / true tr Cov" if spread else RATIO, alt=alt)

    parts: list[Figure | Table] = [
        Figure(
            chart("distilled_ratio", main, False, "Memorisation ratio of teacher and students."),
            f"{where}; {max(s.distil_steps)} optimiser steps per level.",
        ),
        Figure(
            chart("distilled_spread", main, True, "Variance ratios of teacher and students."),
            f"{where}. 1 is the true mixture; below the teacher's line samples are blurred.",
        ),
    ]
    if lengths:
        by_length = [shown["teacher"], *lengths, shown["consistency_1"]]
        title = "Memorisation ratio of one-step students by length of the distillation."
        words = f"{where}; the last line is after {max(s.distil_steps)} steps per level."
        parts.append(Figure(chart("distilled_length", by_length, False, title), words))
    head = ("sampler", "M_pt/N", "95 % interval", "ratio at M = N", "variance ratio there", "copies kept", "error")
    rows = []
    for c in curves_:
        at = shares(transition(list(capacities), c.copies), n)
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


def sweep_section(
    found: Sequence[Tuple], line: Law | None, fitted: tuple[Fit, list[bool]] | None, s: Settings
) -> Section:
    """M_pt over (N, d, K) and the fitted weight."""
    reached = [t for t in found if t.transition.middle is not None]
    where = f"{len(found)} tuples, {s.sweep_seeds} data set(s) each, {s.steps} steps, {s.samples} samples per model"
    parts: list[Figure | Table] = []
    if reached:
        groups = []
        for kind, d in zip(KINDS, sorted({t.d for t in reached})):
            mine = [t for t in reached if t.d == d]
            ends = [t.transition.low for t in mine], [t.transition.high for t in mine]
            groups.append(Series(f"d = {d}", kind, [t.n for t in mine], [t.transition.middle for t in mine], *ends))
        slope = 0.8
        chart = against("m_pt", groups, slope, "training points N", "M_pt", label="0.8 N", alt="M_pt against N.")
        parts.append(Figure(chart, f"{where}; bars: 95 %. Dashed: the published 4N/5."))
    words = []
    if fitted:
        made, used = fitted
        cases = [t for t in found if t.case is not None]
        sides = []
        for label, kind, side in (("fitted", "teacher", True), ("held out", "student", False)):
            keep = [k for k, u in enumerate(used) if u is side]
            x, y = [cases[k].case.target for k in keep], [made.predicted[k] for k in keep]
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
        errors = f"Squared error of M/N: {made.train:.2g} fitted"
        if made.test is not None and made.constant is not None:
            errors += (
                f", {made.test:.2g} held out; the mean of the fitted tuples would err by {made.constant:.2g} there"
            )
        parts.append(Figure(chart, f"{errors}."))
        weight = [Series("λ̃", "teacher", grid().tolist(), made.weights)]
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
    rows, predictions = [], iter(fitted[0].predicted if fitted else [])
    for t in found:
        at = shares(t.transition, t.n)
        guess = share(next(predictions)) if fitted and t.case is not None else "-"
        ends = f"{share(at['low'])} to {share(at['high'])}"
        numbers = (share(at["M_pt"]), ends, share(at["start"]), share(at["end"]), share(t.uniform), guess)
        rows.append((str(t.n), str(t.d), str(t.k), *numbers))
    parts.append(Table(head, rows, where))
    if line:
        words.insert(0, f"M_pt = {line.slope:.3f} N [{line.low:.3f}, {line.high:.3f}] over {line.tuples} tuples.")
    return Section("The transition over N, d and K", words, parts)


def image_section(found: Study, ref: References, templates: Tensor, s: Settings) -> Section:
    """The image model."""
    n, x, t = s.image_n, [m / s.image_n for m in found.capacities], ref.times[0]
    where = f"N = {n}, K = {s.image_k}, {s.image_seeds} seed(s), {s.image_steps} steps, {s.samples} samples per model"
    ratio = curves(
        "image_ratio",
        [_ratios("trained", "teacher", found.capacities, n, found.pooled())],
        OVER_N,
        RATIO,
        alt="Memorisation ratio of the image model against capacity.",
    )
    both = [
        Series("training images", "teacher", x, [row[0] for row in averages(found, "train")]),
        Series("fresh images", "student", x, [row[0] for row in averages(found, "fresh")]),
        Series("partly memorising", "student2", x[:-1], [float(v) for v in ref.pmem[:-1, 0]]),
    ]
    level = [(ref.gen[0].mean, "generalising")]
    loss = lines("image_losses", both, OVER_N, f"loss at t = {t:.2f}", levels=level, log_y=True, alt="Image losses.")
    head = ("M/N", "ratio", "train loss", "test loss", "pmem train", "colour s²")
    rows = []
    for k, c in enumerate(found.pooled()):
        numbers = [averages(found, key)[k][0] for key in ("train", "fresh")] + [float(ref.pmem[k, 0])]
        ends = (*(f"{v:.4g}" for v in numbers), f"{averages(found, 'var')[k]:.4f}")
        rows.append((f"{x[k]:.2g}", f"{c.ratio:.3f} [{c.low:.3f}, {c.high:.3f}]", *ends))
    words = [
        f"Templates: {s.image_source}, resized bicubically to 15 x 15; the published ones are of FashionMNIST, which "
        "comes with no dependency. The shape of the published table is the target, not its numbers.",
        f"Generalising: train {ref.gen[0].mean:.4g}, test {ref.gen_fresh[0].mean:.4g}; memorising: train "
        f"{ref.mem[0].mean:.4g}, test {ref.mem_fresh[0].mean:.4g} (t = {t:.3f}, {s.loss_draws} noises per image).",
    ]
    return Section(
        "The image model",
        words,
        [
            Figure(ratio, f"{where}; band: 95 % (Wilson)."),
            Figure(loss, f"{where}. Published shape: the test loss rises from M/N = .6 on."),
            Figure(_pictures(found, templates), "First seed. Framed: copies of a training image."),
            Table(head, rows, f"{where}; losses at t = {t:.3f}."),
        ],
    )


def _pictures(found: Study, templates: Tensor) -> Chart:
    """Training images, and samples of four capacities from the same noise."""
    problem, count, n = found.problems[0], 8, len(found.problems[0].data)
    rows = [("training", problem.data[:count].unflatten(-1, (SIDE, SIDE)), [False] * count)]
    for aim in (0.1, 0.5, 0.9, 1.0):
        k = min(range(len(found.capacities)), key=lambda k: abs(found.capacities[k] / n - aim))
        made = integrate(found.models[0][k], problem.noise[:count], grid())
        flags = copied(made, problem.data).tolist()
        rows.append((f"M/N = {found.capacities[k] / n:.2g}", made.unflatten(-1, (SIDE, SIDE)), flags))
    return picture_rows("image_samples", rows, alt=f"Training images of {len(templates)} templates and samples.")
