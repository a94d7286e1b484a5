"""The page of edge: words, tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from cdmem.report.charts.base import Chart
from cdmem.report.charts.curves import Series, curves
from cdmem.theory.edge.capacity_sweep import CapacitySweep
from cdmem.theory.edge.charts import against, lines, picture_rows, share
from cdmem.theory.edge.distillation import Curve
from cdmem.theory.edge.images import SIDE
from cdmem.theory.edge.losses import generalising
from cdmem.theory.edge.mixture import Sizes, grid
from cdmem.theory.edge.sampling import copied, integrate
from cdmem.theory.edge.scaling_law import Case, Cell, Fit, Law
from cdmem.theory.edge.transition import Transition, transition
from cdmem.theory.edge.untrained import Crossovers, UntrainedLosses
from cdmem.theory.experiment import Figure, Section, Table
from cdmem.theory.measures import Interval

OVER_N, RATIO = "capacity M / N", "memorisation ratio"
KINDS = ("teacher", "student", "student2", "student3", "control", "student4", "copycat")


def _band(label: str, kind: str, x: Sequence[float], values: Sequence[Interval]) -> Series:
    return Series(label, kind, x, [v.mean for v in values], [v.low for v in values], [v.high for v in values])


def _table(columns: Mapping[str, Iterable[str]], caption: str) -> Table:
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)), caption)


def _all(values: Iterable[float], form: str) -> list[str]:
    return [f"{value:{form}}" for value in values]


def _bounds(found: Transition, n: int) -> tuple[str, str]:
    """M_pt / N and its interval."""
    at = found.shares(n)
    return share(at["M_pt"]), f"{share(at['low'])} to {share(at['high'])}"


def _nearest(shares: Sequence[float], aim: float) -> int:
    return min(range(len(shares)), key=lambda k: abs(shares[k] - aim))


def losses_section(losses: UntrainedLosses, cross: Crossovers, sizes: Sizes, level: int, where: str) -> Section:
    """Losses of the untrained denoisers and where they cross.

    Args:
        losses: of one data set.
        cross: their crossovers.
        sizes: of the data.
        level: index of the time at which losses are shown against capacity.
        where: sizes and draws, for the captions.
    """
    t, times = losses.times, torch.tensor(losses.times, dtype=torch.float64)
    shares = [m / sizes.n for m in losses.capacities]
    per_t = [
        _band("generalising", "teacher", t, losses.gen),
        Series("its formula", "cheap", t, generalising(times, sizes.d, sizes.variance).tolist()),
        _band("memorising", "copycat", t, losses.mem),
    ]
    for kind, k in (("student", _nearest(shares, 0.5)), ("student2", _nearest(shares, 0.9))):
        per_t.append(Series(f"M/N = {shares[k]:.2g} memorised", kind, t, losses.pmem[k].tolist()))
    against_t = curves("losses", per_t, "time t", "denoising loss", alt="Losses of four denoisers against time.")
    caption = f"{where}; bands: 95 % over noise. The generalising loss follows d s²/(ψ s² + 1); the partly memorising "
    caption += "one does not depend on t until the noise hides which sample it came from."
    by_m = lines(
        "pmem",
        [
            Series("M samples, Monte Carlo", "student", shares, losses.pmem[:, level].tolist()),
            Series("mean over all choices of M", "copycat", shares, cross.pmem_formula),
        ],
        OVER_N,
        f"loss at t = {t[level]:.2f}",
        levels=[(losses.gen[level].mean, "generalising")],
        alt="Partly memorising loss against capacity, with the generalising one as a level.",
    )
    crossing = [Series("Monte Carlo", "teacher", t, cross.per_t), Series("formulas", "cheap", t, cross.per_t_formula)]
    star = curves("crossover", crossing, "time t", "M* / N", alt="Capacity at which the losses cross, per time.")
    low, high = cross.uniform_formula_C_1_to_2
    weights = {
        "weight λ(t)": ("uniform", "ψ, as in training"),
        "M*/N": (share(cross.uniform), share(cross.psi)),
        "formula (3.3)": (f"{low:.3f} (C = 1) to {high:.3f} (C = 2)", "near 1"),
    }
    constants = f"C of (3.2) falls from {cross.C[0]:.2f} at M/N = {shares[0]:.2g} to "
    constants += f"{cross.C[-1]:.2f} at {shares[-2]:.2g}; theory allows 1 to 2 for large d."
    return Section(
        "Losses without training: when does memorising become cheaper?",
        [constants],
        [
            Figure(against_t, caption),
            Figure(by_m, f"{where}. Right of the crossing, memorising M samples beats knowing the mixture."),
            Figure(star, f"{where}. Formulas: d s²/(ψ s² + 1) against the mean distance to memorised neighbours."),
            _table(weights, f"Crossover averaged over the {len(t)} times of the grid, {where}."),
        ],
    )


def _ratio(name: str, sweep: CapacitySweep, caption: str, marks: Sequence[tuple[float, str]] = ()) -> Figure:
    band = _band("trained", "teacher", sweep.shares, sweep.pooled())
    alt = "Memorisation ratio of the trained models against capacity."
    return Figure(curves(name, [band], OVER_N, RATIO, marks=marks, alt=alt), caption)


def _losses(
    name: str, sweep: CapacitySweep, losses: UntrainedLosses, level: int, points: str, more: Sequence[Series] = ()
) -> Chart:
    """Losses of the trained models on training and fresh ``points``."""
    series = [
        Series(f"{label} {points}", kind, sweep.shares, [row[level] for row in sweep.average(key)])
        for label, kind, key in (("training", "teacher", "train"), ("fresh", "student", "fresh"))
    ]
    dashed = [(losses.gen[level].mean, "generalising")]
    ylabel, alt = f"loss at t = {losses.times[level]:.2f}", "Losses of the trained models against capacity."
    return lines(name, [*series, *more], OVER_N, ylabel, levels=dashed, log_y=True, alt=alt)


def trained_section(sweep: CapacitySweep, losses: UntrainedLosses, level: int, where: str) -> Section:
    """The trained models; ``level`` and ``where`` as above."""
    x, var = sweep.shares, sweep.average("var")
    at = sweep.transition().shares(sweep.n)
    marks = [(at[name], name) for name in ("start", "M_pt", "end") if at[name] is not None]
    learned, alt = [Series("learned s²", "teacher", x, var)], "Learned variance against capacity."
    variance = curves("variance", learned, OVER_N, "learned variance s²", alt=alt)
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
    columns = {
        "M": map(str, sweep.capacities),
        "M/N": _all(x, ".3g"),
        "ratio": map(str, sweep.pooled()),
        "s²": _all(var, ".4f"),
        "near a true mean": _all(sweep.average("means.near_true"), "g"),
        "near a sample": _all(sweep.average("means.near_sample"), "g"),
        "train loss": _all((row[level] for row in sweep.average("train")), ".4g"),
        "test loss": _all((row[level] for row in sweep.average("fresh")), ".4g"),
    }
    both = _losses("trained_losses", sweep, losses, level, "points")
    return Section(
        "Trained models: M means and one variance",
        [f"M_pt/N per seed: {', '.join(share(e.shares(sweep.n)['M_pt']) for e in sweep.each())}."],
        [
            _ratio(
                "ratio",
                sweep,
                f"{where}; band: 95 % (Wilson). A copy has d1² ≤ d2²/9 among the training points.",
                marks,
            ),
            Figure(both, f"{where}. Published: the test loss rises with the ratio."),
            Figure(variance, f"{where}. Published: it falls linearly in M, also while the model generalises."),
            Figure(distances, f"{where}. Published: the distance to the samples falls linearly in M."),
            _table(columns, f"{where}; ratio with 95 % interval, counts averaged over seeds."),
        ],
    )


def distillation_section(
    curves_: Sequence[Curve], capacities: Sequence[int], n: int, steps: int, where: str
) -> Section:
    """Students beside their teachers, of n points; ``steps`` per level of the longest distillation."""
    shown, shares = {c.name: c for c in curves_}, [m / n for m in capacities]
    lengths = [c for c in curves_ if c.name.startswith("consistency_1_after_")]
    main = [shown[k] for k in ("teacher", "consistency_1", "consistency_2", "regression_1", "teacher_2")]
    by_length = [shown["teacher"], *lengths, shown["consistency_1"]]

    def ratios(name: str, chosen: Sequence[Curve], alt: str) -> Chart:
        made = [Series(c.label, kind, shares, [x.ratio for x in c.copies]) for c, kind in zip(chosen, KINDS)]
        return lines(name, made, OVER_N, RATIO, alt=alt)

    spreads = [Series(c.label, kind, shares, c.spread) for c, kind in zip(main, KINDS)]
    alt = "Variance ratios of teacher and students."
    parts: list[Figure | Table] = [
        Figure(
            ratios("distilled_ratio", main, "Memorisation ratio of teacher and students."),
            f"{where}; {steps} optimiser steps per level.",
        ),
        Figure(
            lines("distilled_spread", spreads, OVER_N, "tr Cov / true tr Cov", alt=alt),
            f"{where}. 1 is the true mixture; below the teacher's line samples are blurred.",
        ),
    ]
    if lengths:
        alt = "Memorisation ratio of one-step students by length of the distillation."
        caption = f"{where}; the last line is after {steps} steps per level."
        parts.append(Figure(ratios("distilled_length", by_length, alt), caption))
    found = [_bounds(transition(list(capacities), c.copies), n) for c in curves_]
    columns = {
        "sampler": [c.label for c in curves_],
        "M_pt/N": [middle for middle, _ in found],
        "95 % interval": [ends for _, ends in found],
        "ratio at M = N": [str(c.copies[-1]) for c in curves_],
        "variance ratio there": _all((c.spread[-1] for c in curves_), ".2f"),
        "copies kept": ["-" if c.kept[-1] is None else f"{c.kept[-1]:.3f}" for c in curves_],
        "error": _all((c.error[-1] for c in curves_), ".2f"),
    }
    parts.append(_table(columns, f"{where}; ratio, variance ratio, copies kept and error at M = N."))
    words = [
        "The student has its teacher's number of means, with free gains, sharpness and intercepts at every level.",
        "Where the variance ratio falls below the teacher's, samples are averages of several data points: such blur "
        "alone raises d1/d2 and lowers the ratio. Error is the distance to the teacher's sample from the same noise, "
        "relative to its size; a dash means that the ratio never reaches one half.",
    ]
    return Section("Does distillation move the transition?", words, parts, reconstruction=True)


def _fit_figures(cases: Sequence[Case], fitted: Fit) -> list[Figure]:
    """What the fitted weight predicts, and the weight itself."""
    sides = []
    for label, kind, side in (("fitted", "teacher", True), ("held out", "student", False)):
        keep = [k for k, used in enumerate(fitted.fitted) if used is side]
        sides.append(Series(label, kind, [cases[k].target for k in keep], [fitted.predicted[k] for k in keep]))
    axes, alt = ("measured M_pt / N", "predicted M / N"), "Predicted against measured."
    predicted = against("predicted", sides, 1.0, *axes, label="equal", origin=False, alt=alt)
    errors = (
        f"Squared error of M/N: {fitted.train:.2g} fitted, {fitted.test:.2g} held out; the mean of the fitted tuples "
    )
    errors += f"would err by {fitted.constant:.2g} there."
    line, alt = [Series("λ̃", "teacher", grid().tolist(), fitted.weights)], "Fitted weight against time."
    weight = curves("lambda", line, "time t", "fitted weight λ̃ (sum 1)", alt=alt)
    caption = "Only one mean of λ̃ is fixed by the data, that of d s²/(ψ s² + 1); its shape over t follows the start."
    return [Figure(predicted, errors), Figure(weight, caption)]


def law_section(cells: Sequence[Cell], line: Law | None, fitted: Fit | None, where: str) -> Section:
    """M_pt over (N, d, K) and the fitted weight."""
    reached = [c for c in cells if c.case is not None]
    parts: list[Figure | Table] = []
    words = []
    if line:
        words.append(f"M_pt = {line.slope:.3f} N [{line.low:.3f}, {line.high:.3f}] over {line.tuples} tuples.")
    if reached:
        groups = []
        for kind, d in zip(KINDS, sorted({c.sizes.d for c in reached})):
            of = [c for c in reached if c.sizes.d == d]
            middle, *ends = ([getattr(c.transition, key) for c in of] for key in ("middle", "low", "high"))
            groups.append(Series(f"d = {d}", kind, [c.sizes.n for c in of], middle, *ends))
        chart = against("m_pt", groups, 0.8, "training points N", "M_pt", label="0.8 N", alt="M_pt against N.")
        parts.append(Figure(chart, f"{where}; bars: 95 %. Dashed: the published 4N/5."))
    if fitted:
        parts += _fit_figures([c.case for c in reached], fitted)
        words.append(
            "λ̃ makes the crossover of the untrained losses fall on the measured M_pt, by a soft-max over M with "
            "temperature 1/20 and an entropy penalty of 1e-3; scale and optimiser are assumed."
        )
    guesses = dict(zip([c.sizes for c in reached], fitted.predicted if fitted else []))
    found, at = [_bounds(c.transition, c.sizes.n) for c in cells], [c.transition.shares(c.sizes.n) for c in cells]
    columns = {
        "N": [str(c.sizes.n) for c in cells],
        "d": [str(c.sizes.d) for c in cells],
        "K": [str(c.sizes.k) for c in cells],
        "M_pt/N": [middle for middle, _ in found],
        "95 % interval": [ends for _, ends in found],
        "start": [share(s["start"]) for s in at],
        "end": [share(s["end"]) for s in at],
        "M*/N uniform λ": [share(c.uniform) for c in cells],
        "predicted by λ̃": [share(guesses.get(c.sizes)) for c in cells],
    }
    parts.append(_table(columns, where))
    return Section("The transition over N, d and K", words, parts)


def image_section(sweep: CapacitySweep, losses: UntrainedLosses, source: str, draws: int, where: str) -> Section:
    """The image model, whose templates are of ``source``; ``draws`` noises per image of the losses."""
    x, t, partly = sweep.shares, losses.times[0], losses.pmem[:, 0].tolist()
    memorised = Series("partly memorising", "student2", x[:-1], partly[:-1])
    loss = _losses("image_losses", sweep, losses, 0, "images", [memorised])
    columns = {
        "M/N": _all(x, ".2g"),
        "ratio": map(str, sweep.pooled()),
        "train loss": _all((row[0] for row in sweep.average("train")), ".4g"),
        "test loss": _all((row[0] for row in sweep.average("fresh")), ".4g"),
        "pmem train": _all(partly, ".4g"),
        "colour s²": _all(sweep.average("var"), ".4f"),
    }
    words = [
        f"Templates: {source}, resized bicubically to 15 x 15; the published ones are of FashionMNIST, which "
        "comes with no dependency. The shape of the published table is the target, not its numbers.",
        f"Generalising: train {losses.gen[0].mean:.4g}, test {losses.gen_fresh[0].mean:.4g}; memorising: train "
        f"{losses.mem[0].mean:.4g}, test {losses.mem_fresh[0].mean:.4g} (t = {t:.3f}, {draws} noises per image).",
    ]
    parts = [
        _ratio("image_ratio", sweep, f"{where}; band: 95 % (Wilson)."),
        Figure(loss, f"{where}. Published shape: the test loss rises from M/N = .6 on."),
        Figure(_pictures(sweep), "First seed. Framed: copies of a training image."),
        _table(columns, f"{where}; losses at t = {t:.3f}."),
    ]
    return Section("The image model", words, parts)


def _pictures(sweep: CapacitySweep) -> Chart:
    """Training images, and samples of four capacities from the same noise."""
    problem, count = sweep.problems[0], 8
    rows = [("training", problem.data[:count].unflatten(-1, (SIDE, SIDE)), [False] * count)]
    for k in (_nearest(sweep.shares, aim) for aim in (0.1, 0.5, 0.9, 1.0)):
        samples = integrate(sweep.models[0][k], problem.noise[:count], grid())
        flags = copied(samples, problem.data).tolist()
        rows.append((f"M/N = {sweep.shares[k]:.2g}", samples.unflatten(-1, (SIDE, SIDE)), flags))
    return picture_rows("image_samples", rows, alt="Training images, and samples of four capacities.")
