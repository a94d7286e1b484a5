"""``python -m cdmem theory edge``: the Gaussian-mixture laboratory of Buchanan et al. 2025

Published: N = 200, d = 50, K = 12, capacities N/10 ... N, 50,000 steps of Adam with 100 noises per sample. The defaults
are smaller and use a shorter memory of Adam's second moment, which reaches the same models in 1,000 steps. The
distillation is a reconstruction: the paper does not distil.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from cdmem.errors import InputError
from cdmem.theory.edge.capacity_sweep import (
    Study,
    crossovers,
    gaussian_problem,
    gaussian_results,
    gaussian_trainer,
    reference_numbers,
    references,
    shares,
    steps_of,
    study,
    study_numbers,
)
from cdmem.theory.edge.distillation import compare, curve_numbers
from cdmem.theory.edge.images import Source, image_problem, image_trainer, templates
from cdmem.theory.edge.mixture import grid
from cdmem.theory.edge.page import distillation_section, image_section, losses_section, sweep_section, trained_section
from cdmem.theory.edge.scaling_law import law, one, tuples_of, weights
from cdmem.theory.edge.training import Schedule
from cdmem.theory.experiment import Outcome, Progress, Section

LEVEL = 16  # of the grid: t = .3603, psi = 6.70


@dataclass(frozen=True)
class Settings:
    """Settings of edge.

    Attributes:
        n: training points N.
        d: dimension.
        k: components of the true mixture.
        variance: s*^2 of each.
        seeds: data sets of n points, all with their own models; 0 leaves this part and the distillation out.
        capacities: capacities M, evenly from n / capacities to n.
        refine: about as many more inside the transition.
        samples: made per model.
        fresh: points for the test loss.
        steps: optimiser steps; published 50,000.
        peak_lr: learning rate after the warm-up; published 1e-3.
        last_lr: at the end; published 1e-6.
        warm_up: share of the steps; published .1.
        average: decay of the average over updates; published .99.
        memory: decay of Adam's second moment; published .999.
        draws: noises per sample and step; published 100.
        loss_draws: noises per sample of the measured losses; published 100.
        sweep_n: numbers N of the sweep; an empty list leaves the sweep out.
        sweep_d: its dimensions.
        sweep_k: its components.
        sweep_refine: about as many more capacities in each transition.
        sweep_seeds: data sets per tuple, whose samples are pooled.
        distil_steps: optimiser steps per noise level of consistency students, the longest is the main one; an empty
            list leaves the distillation out.
        distil_lr: its peak learning rate.
        image_n: training images; 0 leaves the image model out.
        image_k: templates.
        image_seeds: data sets.
        image_source: digits, or cifar10; the published FashionMNIST comes with no dependency.
        image_folder: of cifar10.
        image_steps: optimiser steps; published 100,000.
        image_peak_lr: published 1e-4.
        image_last_lr: published 1e-8.
        image_warm_up: share of the steps; published .05.
        image_average: published .1.
        image_clip: largest norm of a gradient; published 1e3.
        image_memory: published .999.
        image_draws: noises per image and step; published 100.
        seed: of everything.
    """

    n: int = 60
    d: int = 50
    k: int = 12
    variance: float = 1.0
    seeds: int = 1
    capacities: int = 10
    refine: int = 5
    samples: int = 500
    fresh: int = 100
    steps: int = 1000
    peak_lr: float = 1e-2
    last_lr: float = 1e-6
    warm_up: float = 0.1
    average: float = 0.99
    memory: float = 0.9
    draws: int = 4
    loss_draws: int = 20
    sweep_n: list[int] = field(default_factory=lambda: [30, 60])
    sweep_d: list[int] = field(default_factory=lambda: [30, 50])
    sweep_k: list[int] = field(default_factory=lambda: [3, 6])
    sweep_refine: int = 0
    sweep_seeds: int = 1
    distil_steps: list[int] = field(default_factory=lambda: [15, 60])
    distil_lr: float = 1e-2
    image_n: int = 40
    image_k: int = 4
    image_seeds: int = 1
    image_source: Source = "digits"
    image_folder: str | None = None
    image_steps: int = 1000
    image_peak_lr: float = 2e-3
    image_last_lr: float = 1e-8
    image_warm_up: float = 0.05
    image_average: float = 0.1
    image_clip: float = 1e3
    image_memory: float = 0.9
    image_draws: int = 2
    seed: int = 0

    @property
    def schedule(self) -> Schedule:
        """Of the isotropic models."""
        return Schedule(self.steps, self.peak_lr, self.last_lr, self.warm_up, self.average, 1e9, self.memory)

    @property
    def image_schedule(self) -> Schedule:
        """Of the image models."""
        rates = (self.image_peak_lr, self.image_last_lr, self.image_warm_up)
        return Schedule(self.image_steps, *rates, self.image_average, self.image_clip, self.image_memory)


RANGES: dict[str, tuple[float, float]] = {
    "n": (4, 2000),
    "d": (2, 1000),
    "k": (1, 1000),
    "variance": (1e-6, 1e6),
    "seeds": (0, 64),
    "capacities": (2, 100),
    "refine": (0, 100),
    "samples": (10, 20_000),
    "fresh": (2, 10_000),
    "steps": (10, 10**7),
    "draws": (1, 1000),
    "loss_draws": (2, 10_000),
    "sweep_refine": (0, 100),
    "sweep_seeds": (1, 64),
    "image_n": (0, 2000),
    "image_seeds": (1, 64),
    "image_steps": (10, 10**7),
    "image_draws": (1, 1000),
    "image_clip": (1e-6, 1e12),
    **dict.fromkeys(("peak_lr", "image_peak_lr", "distil_lr"), (1e-9, 1.0)),
    **dict.fromkeys(("last_lr", "image_last_lr"), (0, 1.0)),
    **dict.fromkeys(("warm_up", "image_warm_up"), (0, 0.9)),
    **dict.fromkeys(("average", "image_average", "memory", "image_memory"), (0, 0.99999)),
}


def check(s: Settings) -> None:
    """Raises InputError for settings that cannot be run, before anything is computed."""
    for key, (low, high) in RANGES.items():
        if not low <= getattr(s, key) <= high:
            raise InputError(key, getattr(s, key), "is out of range", f"give {low:g} to {high:g}")
    if s.image_n and s.image_n < 4:
        raise InputError("image_n", s.image_n, "is too few images", "give 4 or more, or 0 to leave the images out")
    for key, low in (("sweep_n", 4), ("sweep_d", 2), ("sweep_k", 1), ("distil_steps", 1)):
        values = getattr(s, key)
        if any(v < low or v > 2000 for v in values) or len(set(values)) < len(values):
            raise InputError(key, values, f"is no list of different whole numbers from {low} to 2000", "e.g. [50, 100]")
    if s.sweep_n and not (s.sweep_d and s.sweep_k):
        raise InputError("sweep_d", s.sweep_d, "the sweep has no dimensions or components", "give lists, or sweep_n=[]")
    if not (s.seeds or s.sweep_n or s.image_n):
        raise InputError("seeds", 0, "leaves nothing to compute", "give seeds, sweep_n or image_n")


def run(settings: Settings, progress: Progress) -> Outcome:
    """The isotropic experiment, its distillation, the sweep and the image model, as far as they are asked for.

    Raises:
        InputError: settings that cannot be run, or a training that diverged.
    """
    s = settings
    check(s)
    pictures = None
    if s.image_n:
        pictures = templates(s.image_source, s.image_k, s.image_folder, np.random.default_rng(s.seed))
    results: dict[str, Any] = {"status": {}}
    lead: list[str] = []
    sections: list[Section] = []
    threads = torch.get_num_threads()
    try:
        # Products as small as these lose more by sharing them between threads than they gain.
        torch.set_num_threads(threads if s.draws * s.n > 4000 else 1)
        if s.seeds:
            found = _isotropic(s, progress, results, lead, sections)
            if s.distil_steps:
                _distillation(s, found, progress, results, lead, sections)
        if s.sweep_n:
            _sweep(s, progress, results, lead, sections)
        if pictures is not None:
            _images(s, pictures, progress, results, lead, sections)
    finally:
        torch.set_num_threads(threads)
    return Outcome("On the edge of memorisation", lead, results, sections)


def _percent(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.3f}"


def _isotropic(
    s: Settings, progress: Progress, results: dict[str, Any], lead: list[str], sections: list[Section]
) -> Study:
    times = grid().tolist()
    progress(f"losses of the untrained denoisers: N = {s.n}, d = {s.d}, K = {s.k}, {s.loss_draws} noises per sample")
    seeds = [1000 * s.seed + k for k in range(s.seeds)]
    problems = [gaussian_problem(s.n, s.d, s.k, s.variance, s.fresh, s.samples, seed) for seed in seeds]
    ref = references(problems[0], times, 20, s.loss_draws)
    cross = crossovers(ref, problems[0].data, s.d, s.variance)
    progress(f"training {s.capacities} capacities, then {s.refine} more, {s.seeds} seed(s), {s.steps} steps")
    found = study(problems, gaussian_trainer(s.schedule, s.draws), s.capacities, s.refine, times, s.loss_draws)
    results |= gaussian_results(found, ref, cross, times)
    results["sizes"] = {"N": s.n, "d": s.d, "K": s.k}
    own = (s.steps, s.peak_lr, s.last_lr, s.warm_up, s.average, s.memory)
    published = own == (50_000, 1e-3, 1e-6, 0.1, 0.99, 0.999)
    results["status"]["losses"] = "published definitions"
    results["status"]["trained"] = "published schedule" if published else "published loss, shorter schedule"
    results["status"]["trained"] += "" if s.draws == 100 else f", {s.draws} noises per sample and step, not 100"
    sections.append(losses_section(ref, cross, s, LEVEL))
    sections.append(trained_section(found, ref, s, LEVEL))
    at = shares(found.transition(), s.n)
    lead.append(
        f"N = {s.n}, d = {s.d}, K = {s.k}: half of the samples are copies from M_pt/N = {_percent(at['M_pt'])} on "
        f"(95 % interval {_percent(at['low'])} to {_percent(at['high'])}, {s.samples} samples per capacity, {s.seeds} "
        f"seed(s)); the transition runs from {_percent(at['start'])} to {_percent(at['end'])}."
    )
    lead.append(
        f"Crossover of losses: M*/N = {_percent(cross.uniform)} for uniform lambda "
        f"(formula {cross.uniform_bounds[0]:.3f} to {cross.uniform_bounds[1]:.3f}), {_percent(cross.psi)} for the "
        "training weight psi."
    )
    return found


def _distillation(
    s: Settings, found: Study, progress: Progress, results: dict[str, Any], lead: list[str], sections: list[Section]
) -> None:
    chosen = [k for k, m in enumerate(found.capacities) if m in steps_of(s.n, s.capacities)]
    capacities = [found.capacities[k] for k in chosen]
    progress(f"distilling {len(capacities)} models, {max(s.distil_steps)} steps per level")
    bar = iter(progress.bar(range(25 * len(s.distil_steps)), "levels"))
    models = [found.models[0][k] for k in chosen]
    curves = compare(models, found.problems[0], s.distil_steps, s.distil_lr, s.draws, lambda: next(bar, None))
    results["distillation"] = curve_numbers(curves, capacities, s.n)
    results["status"]["distillation"] = "reconstruction; the student's family and both trainings are assumed"
    sections.append(distillation_section(curves, capacities, s))
    at = {c.name: results["distillation"][c.name]["transition_over_n"]["M_pt"] for c in curves}
    lead.append(
        f"Distilled (reconstruction): M_pt/N {_percent(at['teacher'])} of the teachers, "
        f"{_percent(at['regression_1'])} of one-step regression, {_percent(at['consistency_1'])} of one-step and "
        f"{_percent(at['consistency_2'])} of two-step consistency students."
    )


def _sweep(s: Settings, progress: Progress, results: dict[str, Any], lead: list[str], sections: list[Section]) -> None:
    combinations = tuples_of(s.sweep_n, s.sweep_d, s.sweep_k)
    progress(f"sweep over {len(combinations)} tuples (N, d, K)")
    trainer, counts = gaussian_trainer(s.schedule, s.draws), (s.capacities, s.sweep_refine, s.samples, 20)
    found = []
    for j, (n, d, k) in enumerate(progress.bar(combinations, "tuples")):
        seeds = [1000 * s.seed + 500 + j + 100 * e for e in range(s.sweep_seeds)]
        found.append(one(n, d, k, s.variance, trainer, counts, max(2, s.loss_draws // 2), grid().tolist(), seeds))
    line, fitted = law(found, s.seed), weights(found, s.seed)
    results["sweep"] = {"tuples": [t.numbers() for t in found], "law": None if line is None else asdict(line)}
    if fitted:
        made, used = fitted
        names = [{"N": t.n, "d": t.d, "K": t.k} for t in found if t.case is not None]
        results["weighting"] = {**asdict(made), "fitted": used, "tuples": names, "t": grid().tolist()}
        results["status"]["weighting"] = "published form; scale and optimiser assumed"
    sections.append(sweep_section(found, line, fitted, s))
    if line:
        lead.append(
            f"Over {line.tuples} tuples (N, d, K), M_pt = {line.slope:.3f} N [{line.low:.3f}, {line.high:.3f}]; M_pt/N "
            f"lies between {line.smallest:.3f} and {line.largest:.3f}."
        )
    if fitted:
        made, used = fitted
        rest = "" if made.test is None else f", {made.test:.2g} on the other {used.count(False)}"
        rest += "" if made.constant is None else f" (a constant M/N: {made.constant:.2g})"
        lead.append(f"Fitted lambda~: squared error of M/N {made.train:.2g} on {sum(used)} tuples{rest}.")


def _images(
    s: Settings,
    pictures: torch.Tensor,
    progress: Progress,
    results: dict[str, Any],
    lead: list[str],
    sections: list[Section],
) -> None:
    progress(f"image model: N = {s.image_n}, K = {s.image_k} templates of {s.image_source}, {s.image_steps} steps")
    times = [grid().tolist()[LEVEL]]
    made = [
        image_problem(pictures, s.image_n, s.fresh, s.samples, 1000 * s.seed + 900 + k) for k in range(s.image_seeds)
    ]
    labels = {problem.seed: shown for problem, shown in made}
    problems = [problem for problem, _ in made]
    by_seed = {
        problem.seed: image_trainer(pictures, labels[problem.seed], s.image_schedule, s.image_draws)
        for problem in problems
    }

    def trainer(data: torch.Tensor, capacities: Any, seed: int) -> Any:
        return by_seed[seed // 2](data, capacities, seed)

    found = study(problems, trainer, s.capacities, 0, times, s.loss_draws)
    ref = references(problems[0], times, s.capacities, s.loss_draws)
    results["images"] = {
        **study_numbers(found, times),
        "losses": reference_numbers(ref),
        "templates": s.image_source,
        "N": s.image_n,
        "K": s.image_k,
    }
    results["status"]["images"] = f"published model on templates of {s.image_source} instead of FashionMNIST"
    sections.append(image_section(found, ref, pictures, s))
    at = shares(found.transition(), s.image_n)
    lead.append(
        f"Image model (N = {s.image_n}, K = {s.image_k}, templates: {s.image_source}, not FashionMNIST): M_pt/N = "
        f"{_percent(at['M_pt'])}."
    )
