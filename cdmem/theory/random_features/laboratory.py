"""``python -m cdmem theory random-features``: the random-feature network of Bonnaire et al. 2025."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from cdmem.errors import InputError
from cdmem.theory.experiment import Outcome, Progress, Section
from cdmem.theory.random_features.model import Constants, constants
from cdmem.theory.random_features.moments import Kind, spectrum_of
from cdmem.theory.random_features.page import constants_section, exponent, span, spectrum_section, training_section
from cdmem.theory.random_features.spectrum import Theory, describe, measure, rho_1_edges, theory, times
from cdmem.theory.random_features.sweep import (
    Onset,
    PowerLaw,
    Sweep,
    least_score,
    onsets,
    power_law,
    run_sweep,
    times_for,
)

GIB = 2**30
MATRICES = 8  # p x p at a time, at most
LARGEST = 24.0  # GiB


@dataclass(frozen=True)
class Settings:
    """Settings of random-features.

    Attributes:
        d: dimension of the data.
        psi_p: p / d, features per dimension.
        psi_n: n / d of the spectrum.
        t: Ornstein-Uhlenbeck time.
        activation: of the features.
        sigma: spectrum of the data's covariance; images give their d leading principal directions.
        sigma_x: scales it so that tr Sigma / d = sigma_x^2; none leaves levels as they are, else means 1.
        levels: variances, each for an equal share of the directions, if sigma is levels.
        images: folder of cifar10, if sigma is cifar10.
        image_count: images whose covariance is taken.
        draws: noises per point for the spectrum of U; 0 means exact expectations.
        spectrum_seeds: weights and training sets pooled in the spectrum.
        psi_ns: n / d of the trainings; an empty list leaves that part out.
        seeds: weights and training sets per training.
        seed: of everything.
        distillation: whether to distil as well; a reconstruction.
        t_next: time to which the leak's distillation step goes.
        teacher_tau: training time of the leak's teacher.
        leak_draws: noises per point of the leak.
        student_d: dimension of the laboratory for f_mem.
        student_psi_p: features per dimension there.
        student_n: numbers of training points there; f_mem is shown at the middle one.
        student_levels: noise levels of teacher and student.
        student_draws: noises per point and level.
        student_samples: samples per sampler and seed.
        student_seeds: seeds of leak and laboratory.
    """

    d: int = 30
    psi_p: float = 32.0
    psi_n: float = 4.0
    t: float = 0.1
    activation: Literal["tanh", "erf", "sin", "relu", "softplus", "gelu"] = "tanh"
    sigma: Kind = "isotropic"
    sigma_x: float | None = None
    levels: list[float] = field(default_factory=lambda: [0.5, 1.5])
    images: str | None = None
    image_count: int = 1000
    draws: int = 0
    spectrum_seeds: int = 4
    psi_ns: list[float] = field(default_factory=lambda: [2.0, 4.0, 8.0, 16.0])
    seeds: int = 3
    seed: int = 0
    distillation: bool = True
    t_next: float = 0.01
    teacher_tau: float = 3e4
    leak_draws: int = 60
    student_d: int = 20
    student_psi_p: float = 30.0
    student_n: list[int] = field(default_factory=lambda: [12, 24, 48])
    student_levels: int = 16
    student_draws: int = 200
    student_samples: int = 4000
    student_seeds: int = 3


def check(s: Settings) -> int:
    """Number of features p.

    Raises:
        InputError: settings that cannot be run.
    """
    if s.d < 2:
        raise InputError("d", s.d, "is no dimension to speak of", "give 2 or more")
    for key in ("psi_p", "t"):
        if getattr(s, key) <= 0:
            raise InputError(key, getattr(s, key), "is not positive", "give a number above 0")
    if s.psi_p < 2:
        raise InputError("psi_p", s.psi_p, "leaves no room for two bulks", "give 2 features per dimension or more")
    if s.t > 10:
        raise InputError("t", s.t, "leaves no signal", "give an OU time of 10 or less")
    if s.sigma_x is not None and s.sigma_x <= 0:
        raise InputError("sigma_x", s.sigma_x, "is no deviation", "give a number above 0")
    for key, values in (("psi_n", [s.psi_n]), ("psi_ns", s.psi_ns)):
        for value in values:
            if value * s.d < 2:
                raise InputError(key, value, f"is fewer than 2 points in {s.d} dimensions", "give a larger ratio")
    if len(set(s.psi_ns)) < len(s.psi_ns) or len(s.psi_ns) > 7:
        raise InputError("psi_ns", s.psi_ns, "is no list of up to 7 different ratios", "e.g. [4, 8, 16, 32]")
    for key, low in (("spectrum_seeds", 1), ("seeds", 1), ("image_count", 3), ("draws", 0)):
        if getattr(s, key) < low:
            raise InputError(key, getattr(s, key), "is too small", f"give {low} or more")
    if s.draws == 1:
        raise InputError("draws", 1, "tells nothing of its noise", "give 2 or more, or 0 for exact expectations")
    p = round(s.psi_p * s.d)
    gib = MATRICES * 8 * p**2 / GIB
    if gib > LARGEST:
        raise InputError("psi_p", s.psi_p, f"{p} features need {gib:.0f} GiB", "give fewer, or a smaller d")
    return p


def run(settings: Settings, progress: Progress) -> Outcome:
    """Constants, spectrum, training, and the distillation built on them.

    Raises:
        InputError: settings that cannot be run, before anything is computed.
    """
    s, p = settings, check(settings)
    sigma = spectrum_of(s.sigma, s.d, s.sigma_x, s.levels, s.images, s.image_count)
    if s.distillation:
        from cdmem.theory.random_features.distillation import laboratory as distillation

        distillation.check(s)
    c = constants(s.t, math.sqrt(float(sigma.mean())), s.activation)
    results: dict[str, Any] = {
        "status": {"spectrum": "published formulas", "training": "published formulas"},
        "sizes": {"d": s.d, "p": p, "n": round(s.psi_n * s.d)},
        "constants": asdict(c),
    }
    sections = [constants_section(c)]
    lead = []
    progress("limiting spectrum")
    found = theory(c, p / s.d, round(s.psi_n * s.d) / s.d, sigma)
    results |= _spectrum(s, p, sigma, c, found, progress, sections)
    lead.append(
        f"Memorisation bulk {span(found.rho_1)}, generalisation bulk {span(found.rho_2)}, atom {c.s2:.4g}; "
        f"tau_gen = {found.tau_gen:.1f}, tau_mem = {found.tau_mem:.0f}."
    )
    if s.psi_ns:
        more, line = _training(s, p, sigma, c, found, progress, sections)
        results |= more
        lead.append(line)
    if s.distillation:
        more, parts, lines = distillation.run(s, progress)
        results |= more
        results["status"]["distillation"] = "reconstruction"
        sections += parts
        lead += lines
    return Outcome("The random-feature network", lead, results, sections)


def _spectrum(
    s: Settings, p: int, sigma: np.ndarray, c: Constants, found: Theory, progress: Progress, sections: list[Section]
) -> dict[str, Any]:
    n = round(s.psi_n * s.d)
    progress(f"spectrum: {s.spectrum_seeds} x p = {p}, n = {n}")
    with_mean = abs(c.mu_0) > 1e-9
    spectrum = measure(s.d, p, n, sigma, c, s.activation, s.draws, s.spectrum_seeds, s.seed)
    exact = describe(spectrum.exact, s.d, n, found.rho_1, with_mean)
    equivalent = describe(spectrum.equivalent, s.d, n, found.rho_1, False)
    if spectrum.floor is not None:
        progress(f"noise floor of U: {spectrum.floor:.3g}")
    sizes = {"d": s.d, "p": p, "n": n}
    sections.append(spectrum_section(c, sigma, sizes, (p / s.d, n / s.d), found, spectrum, exact, equivalent))
    return {
        "rho_1": {"edges": found.rho_1},
        "rho_2": {"edges": found.rho_2, "edges_many_points": found.rho_2_many},
        "bulks": [asdict(b) for b in found.bulks],
        "atom": c.s2,
        "tau_gen": found.tau_gen,
        "tau_mem": found.tau_mem,
        "tau_slow": found.tau_slow,
        "spectrum": {
            "U": asdict(exact),
            "gaussian_equivalent": asdict(equivalent),
            "series_error": spectrum.error,
            "noise_floor": spectrum.floor,
            "seeds": s.spectrum_seeds,
        },
    }


def _training(
    s: Settings, p: int, sigma: np.ndarray, c: Constants, found: Theory, progress: Progress, sections: list[Section]
) -> tuple[dict[str, Any], str]:
    psi_p = p / s.d
    ratios = [round(x * s.d) / s.d for x in sorted(s.psi_ns)]
    tau_mem = [times(c, psi_p, rho_1_edges(c, psi_p, x)[0], 1.0).mem for x in ratios]
    slow = psi_p / (c.Delta * c.s2)
    tau = times_for(0.03 * found.tau_gen, 30 * slow)
    work = iter(progress.bar(range(len(ratios) * s.seeds), "trainings"))
    progress(f"training: psi_n = {', '.join(f'{x:g}' for x in ratios)}, {s.seeds} seeds")
    sweep = run_sweep(s.d, p, ratios, sigma, s.t, s.activation, tau, s.seeds, s.seed, lambda: next(work, None))
    begun = onsets(sweep)
    least = least_score(sweep)
    law = power_law(sweep.psi_n, least)
    where = f"d = {s.d}, p = {p}, t = {s.t:g}"
    sections.append(training_section(sweep, where, found.tau_gen, tau_mem, begun, law))
    line = f"E_score* ~ psi_n^{exponent(law)} over psi_n = {ratios[0]:g} to {ratios[-1]:g}" if law else "One psi_n"
    line += f" (d = {s.d}, psi_p = {psi_p:g}, t = {s.t:g}, {s.seeds} seeds)."
    return {"training": _numbers(sweep, tau_mem, begun), "score": _power(sweep, least, law)}, line


def _numbers(sweep: Sweep, tau_mem: Sequence[float], begun: Sequence[Onset]) -> dict[str, Any]:
    return {
        "psi_n": sweep.psi_n,
        "tau_mem": tau_mem,
        "tau_onset": [b.begun for b in begun],
        "tau_half": [b.half for b in begun],
        "tau_best": [b.best for b in begun],
        "tau": sweep.tau,
        "train": sweep.train.mean(1),
        "test": sweep.test.mean(1),
        "score": sweep.score.mean(1),
        "seeds": sweep.train.shape[1],
        "series_error": sweep.error,
    }


def _power(sweep: Sweep, least: np.ndarray, law: PowerLaw | None) -> dict[str, Any]:
    ends = {"low": least.min(1), "high": least.max(1)} if least.shape[1] > 1 else {}
    return {"psi_n": sweep.psi_n, "least": least.mean(1), **ends, "law": asdict(law) if law else None}
