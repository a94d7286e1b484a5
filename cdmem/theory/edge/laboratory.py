"""``python -m cdmem theory edge``: the Gaussian-mixture laboratory of Buchanan et al. 2025

Published: N = 200, d = 50, K = 12, capacities N/10 ... N, 50,000 steps of Adam with 100 noises per sample. The defaults
are smaller and use a shorter memory of Adam's second moment, which reaches the same models in 1,000 steps. The
distillation is a reconstruction: the paper does not distil.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cdmem.errors import InputError
from cdmem.theory.edge.capacity_sweep import (
    CapacitySweep,
    Measurement,
    gaussian_problem,
    steps_of,
    sweep_capacities,
    train_gaussians,
)
from cdmem.theory.edge.distillation import Distillation, compare, curve_numbers
from cdmem.theory.edge.images import Images, image_problem, templates, train_images
from cdmem.theory.edge.mixture import Sizes, grid
from cdmem.theory.edge.page import distillation_section, image_section, law_section, losses_section, trained_section
from cdmem.theory.edge.scaling_law import Cell, Grid, law, measure, weights
from cdmem.theory.edge.training import Training
from cdmem.theory.edge.untrained import crossovers, untrained_losses
from cdmem.theory.experiment import Outcome, Progress, combine
from cdmem.theory.settings import check_settings, number, seed

LEVEL = 16  # of the grid: t = .3603, psi = 6.70


@dataclass(frozen=True)
class MixtureSettings(Sizes):
    """The isotropic experiment.

    Attributes:
        seeds: data sets of n points, all with their own models; 0 leaves this part and the distillation out.
    """

    seeds: int = number(1, 0, 64)


@dataclass(frozen=True)
class Settings:
    """Settings of edge, in groups.

    Attributes:
        mixture: the isotropic experiment.
        measurement: of every trained model.
        training: of the isotropic models.
        distillation: of the isotropic models of the first seed.
        sweep: over (N, d, K).
        images: the image model.
        seed: of everything.
    """

    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    measurement: Measurement = field(default_factory=Measurement)
    training: Training = field(default_factory=lambda: Training(1000, 1e-2, memory=0.9, draws=4))
    distillation: Distillation = field(default_factory=Distillation)
    sweep: Grid = field(default_factory=Grid)
    images: Images = field(default_factory=Images)
    seed: int = seed()


def check(s: Settings) -> None:
    """Raises InputError for settings that cannot be run, before anything is computed."""
    check_settings(s)
    if 0 < s.images.n < 4:
        raise InputError("images.n", s.images.n, "is too few images", "give 4 or more, or 0 to leave the images out")
    if s.sweep.n and not (s.sweep.d and s.sweep.k):
        problem, hint = "the sweep has no dimensions or components", "give lists, or sweep.n=[]"
        raise InputError("sweep.d", s.sweep.d, problem, hint)
    if not (s.mixture.seeds or s.sweep.n or s.images.n):
        raise InputError("mixture.seeds", 0, "leaves nothing to compute", "give mixture.seeds, sweep.n or images.n")


def run(settings: Settings, progress: Progress) -> Outcome:
    """The isotropic experiment, its distillation, the sweep and the image model, as far as they are asked for.

    Raises:
        InputError: settings that cannot be run, or a training that diverged.
    """
    s = settings
    check(s)
    pictures = templates(s.images, np.random.default_rng(s.seed)) if s.images.n else None
    parts: list[Outcome] = []
    threads = torch.get_num_threads()
    try:
        # Products as small as these lose more by sharing them between threads than they gain.
        torch.set_num_threads(threads if s.training.draws * s.mixture.n > 4000 else 1)
        if s.mixture.seeds:
            sweep, part = isotropic(s, progress)
            parts.append(part)
            if s.distillation.steps:
                parts.append(distilled(s, sweep, progress))
        if s.sweep.n:
            parts.append(scaling(s, progress))
        if pictures is not None:
            parts.append(image_model(s, pictures, progress))
    finally:
        torch.set_num_threads(threads)
    return combine("On the edge of memorisation", parts)


def _share(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.3f}"


def isotropic(s: Settings, progress: Progress) -> tuple[CapacitySweep, Outcome]:
    """Losses and crossover of the untrained denoisers, and the trained models of every capacity."""
    sizes, m, times = s.mixture, s.measurement, grid().tolist()
    progress(f"losses of the untrained denoisers: {sizes}, {m.loss_draws} noises per sample")
    seeds = [1000 * s.seed + k for k in range(sizes.seeds)]
    problems = [gaussian_problem(sizes, m.fresh, m.samples, seed) for seed in seeds]
    losses = untrained_losses(problems[0], times, 20, m.loss_draws)
    cross = crossovers(losses, problems[0].data, sizes.d, sizes.variance)
    seeds_and_steps = f"{sizes.seeds} seed(s), {s.training.steps} steps"
    progress(f"training {m.capacities} capacities, then {m.refine} more, {seeds_and_steps}")
    sweep = sweep_capacities(problems, partial(train_gaussians, training=s.training), m, times)
    published = replace(s.training, draws=100) == Training()
    trained = "published schedule" if published else "published loss, shorter schedule"
    draws = "" if s.training.draws == 100 else f", {s.training.draws} noises per sample and step, not 100"
    results = {
        "status": {"losses": "published definitions", "trained": trained + draws},
        "losses": losses.numbers(),
        "crossover": asdict(cross),
        "trained": sweep.numbers(),
        "sizes": sizes.numbers(),
    }
    at = sweep.transition().shares(sizes.n)
    low, high = cross.uniform_formula_C_1_to_2
    lead = [
        f"{sizes}: half of the samples are copies from M_pt/N = {_share(at['M_pt'])} on "
        f"(95 % interval {_share(at['low'])} to {_share(at['high'])}, {m.samples} samples per capacity, {sizes.seeds} "
        f"seed(s)); the transition runs from {_share(at['start'])} to {_share(at['end'])}.",
        f"Crossover of losses: M*/N = {_share(cross.uniform)} for uniform lambda (formula {low:.3f} to {high:.3f}), "
        f"{_share(cross.psi)} for the training weight psi.",
    ]
    where = f"{sizes}, s*² = {sizes.variance:g}, one data set, {m.loss_draws} noises per sample"
    trained_where = f"{sizes}, {seeds_and_steps}, {m.samples} samples per model"
    untrained = losses_section(losses, cross, sizes, LEVEL, where)
    return sweep, Outcome(lead, results, [untrained, trained_section(sweep, losses, LEVEL, trained_where)])


def distilled(s: Settings, sweep: CapacitySweep, progress: Progress) -> Outcome:
    """One-step students of the evenly spaced capacities of the first seed."""
    n, steps = s.mixture.n, s.distillation.steps
    chosen = [k for k, m in enumerate(sweep.capacities) if m in steps_of(n, s.measurement.capacities)]
    capacities = [sweep.capacities[k] for k in chosen]
    progress(f"distilling {len(capacities)} models, {max(steps)} steps per level")
    bar = progress.bar(range(25 * len(steps)), "levels")
    next(bar)
    models = [sweep.models[0][k] for k in chosen]
    curves = compare(models, sweep.problems[0], s.distillation, s.training.draws, lambda: next(bar, None))
    rows = curve_numbers(curves, capacities, n)
    status = {"distillation": "reconstruction; the student's family and both trainings are assumed"}
    at = {c.name: rows[c.name]["transition_over_n"]["M_pt"] for c in curves}
    lead = (
        f"Distilled (reconstruction): M_pt/N {_share(at['teacher'])} of the teachers, "
        f"{_share(at['regression_1'])} of one-step regression, {_share(at['consistency_1'])} of one-step and "
        f"{_share(at['consistency_2'])} of two-step consistency students."
    )
    where = f"{s.mixture}, first seed, {s.measurement.samples} samples from the same noise"
    section = distillation_section(curves, capacities, n, max(steps), where)
    return Outcome([lead], {"status": status, "distillation": rows}, [section])


def scaling(s: Settings, progress: Progress) -> Outcome:
    """M_pt over all (N, d, K), its law in N, and the fitted weight."""
    sizes = [replace(Sizes(variance=s.mixture.variance), n=n, d=d, k=k)
             for n in s.sweep.n for d in s.sweep.d for k in s.sweep.k]  # fmt: skip
    progress(f"sweep over {len(sizes)} tuples (N, d, K)")
    m = s.measurement
    few = replace(m, refine=s.sweep.refine, fresh=2, loss_draws=max(2, m.loss_draws // 2))
    cells: list[Cell] = []
    for j, one in enumerate(progress.bar(sizes, "tuples")):
        seeds = [1000 * s.seed + 500 + j + 100 * e for e in range(s.sweep.seeds)]
        cells.append(measure(one, partial(train_gaussians, training=s.training), few, seeds))
    line, fitted = law(cells, s.seed), weights(cells, s.seed)
    results = {"sweep": {"tuples": [c.numbers() for c in cells], "law": None if line is None else asdict(line)}}
    lead = []
    if line:
        lead.append(
            f"Over {line.tuples} tuples (N, d, K), M_pt = {line.slope:.3f} N [{line.low:.3f}, {line.high:.3f}]; M_pt/N "
            f"lies between {line.smallest:.3f} and {line.largest:.3f}."
        )
    if fitted:
        names = [c.sizes.numbers() for c in cells if c.case is not None]
        results["weighting"] = {**asdict(fitted), "tuples": names, "t": grid().tolist()}
        results["status"] = {"weighting": "published form; scale and optimiser assumed"}
        lead.append(
            f"Fitted lambda~: squared error of M/N {fitted.train:.2g} on {sum(fitted.fitted)} tuples, "
            f"{fitted.test:.2g} on the other {fitted.fitted.count(False)} (a constant M/N: {fitted.constant:.2g})."
        )
    where = f"{s.sweep.seeds} data set(s) each, {s.training.steps} steps, {m.samples} samples per model"
    return Outcome(lead, results, [law_section(cells, line, fitted, f"{len(cells)} tuples, {where}")])


def image_model(s: Settings, pictures: Tensor, progress: Progress) -> Outcome:
    """The trained image model of every capacity."""
    i, m = s.images, s.measurement
    progress(f"image model: N = {i.n}, K = {i.k} templates of {i.source}, {i.training.steps} steps")
    times = [grid().tolist()[LEVEL]]
    seeds = [1000 * s.seed + 900 + k for k in range(i.seeds)]
    problems = [image_problem(pictures, i.n, m.fresh, m.samples, seed) for seed in seeds]

    sweep = sweep_capacities(problems, partial(train_images, training=i.training), replace(m, refine=0), times)
    losses = untrained_losses(problems[0], times, m.capacities, m.loss_draws)
    numbers = {"losses": losses.numbers(), "templates": i.source, "N": i.n, "K": i.k}
    status = {"images": f"published model on templates of {i.source} instead of FashionMNIST"}
    lead = (
        f"Image model (N = {i.n}, K = {i.k}, templates: {i.source}, not FashionMNIST): M_pt/N = "
        f"{_share(sweep.transition().shares(i.n)['M_pt'])}."
    )
    where = f"N = {i.n}, K = {i.k}, {i.seeds} seed(s), {i.training.steps} steps, {m.samples} samples per model"
    section = image_section(sweep, losses, i.source, m.loss_draws, where)
    return Outcome([lead], {"status": status, "images": {**sweep.numbers(), **numbers}}, [section])
