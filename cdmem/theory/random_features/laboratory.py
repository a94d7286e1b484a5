"""``python -m cdmem theory random-features``: the random-feature network of Bonnaire et al. 2025."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

from cdmem.errors import InputError
from cdmem.theory.curves import power_law_of_seeds
from cdmem.theory.experiment import Outcome, Progress, combine
from cdmem.theory.random_features import page
from cdmem.theory.random_features.distillation import laboratory as distillation
from cdmem.theory.random_features.distillation.experiment import Distillation
from cdmem.theory.random_features.model import Constants, Network, constants
from cdmem.theory.random_features.moments import Kind, spectrum_of
from cdmem.theory.random_features.spectrum import Theory, describe, measure, rho_1_edges, theory, training_time
from cdmem.theory.random_features.sweep import least_score, onsets, run_sweep, times_for
from cdmem.theory.settings import check_settings, each, number, seed

MATRICES = 8  # p x p at a time, at most
LARGEST = 24.0  # GiB


@dataclass(frozen=True)
class Settings(Network):
    """Settings of random-features.

    Attributes:
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
        distillation: a reconstruction.
        seed: of everything.
    """

    activation: Literal["tanh", "erf", "sin", "relu", "softplus", "gelu"] = "tanh"
    sigma: Kind = "isotropic"
    sigma_x: float | None = number(None, 0, open=True)
    levels: list[float] = field(default_factory=lambda: [0.5, 1.5])
    images: str | None = None
    image_count: int = number(1000, 3)
    draws: int = number(0, 0)
    spectrum_seeds: int = number(4, 1)
    psi_ns: list[float] = field(
        default_factory=lambda: [2.0, 4.0, 8.0, 16.0], metadata=each(0, open=True, optional=True)
    )
    seeds: int = number(3, 1)
    distillation: Distillation = field(default_factory=Distillation)
    seed: int = seed()


def check(s: Settings) -> None:
    """Raises InputError for settings that cannot be run."""
    check_settings(s)
    for key, values in (("psi_n", [s.psi_n]), ("psi_ns", s.psi_ns)):
        for value in values:
            if value * s.d < 2:
                raise InputError(key, value, f"is fewer than 2 points in {s.d} dimensions", "give a larger ratio")
    if len(s.psi_ns) > 7:
        raise InputError("psi_ns", s.psi_ns, "are more than 7 curves", "give fewer, e.g. [4, 8, 16, 32]")
    if s.draws == 1:
        raise InputError("draws", 1, "tells nothing of its noise", "give 2 or more, or 0 for exact expectations")
    gib = MATRICES * 8 * s.p**2 / 2**30
    if gib > LARGEST:
        raise InputError("psi_p", s.psi_p, f"{s.p} features need {gib:.0f} GiB", "give fewer, or a smaller d")
    if s.distillation.seeds:
        distillation.check(s, s.distillation)


def run(settings: Settings, progress: Progress) -> Outcome:
    """Constants, spectrum, training, and the distillation built on them.

    Raises:
        InputError: settings that cannot be run, before anything is computed.
    """
    s = settings
    check(s)
    sigma = spectrum_of(s.sigma, s.d, s.sigma_x, s.levels, s.images, s.image_count)
    c = constants(s.t, math.sqrt(float(sigma.mean())), s.activation)
    progress("limiting spectrum")
    limit = theory(c, s.p / s.d, s.n / s.d, sigma)
    parts = [spectrum(s, sigma, c, limit, progress)]
    if s.psi_ns:
        parts.append(training(s, sigma, c, limit, progress))
    if s.distillation.seeds:
        parts.append(distillation.run(s, s.distillation, s.seed, progress))
    return combine("The random-feature network", parts)


def spectrum(s: Settings, sigma: np.ndarray, c: Constants, limit: Theory, progress: Progress) -> Outcome:
    """Constants and spectrum: U at finite size, its Gaussian equivalent and the limit."""
    progress(f"spectrum: {s.spectrum_seeds} x p = {s.p}, n = {s.n}")
    eigenvalues = measure(s.d, s.p, s.n, sigma, c, s.activation, s.draws, s.spectrum_seeds, s.seed)
    exact = describe(eigenvalues.exact, s.d, s.n, limit.rho_1, abs(c.mu_0) > 1e-9)
    equivalent = describe(eigenvalues.equivalent, s.d, s.n, limit.rho_1, False)
    if eigenvalues.floor is not None:
        progress(f"noise floor of U: {eigenvalues.floor:.3g}")
    results = {
        "status": {"spectrum": "published formulas", "training": "published formulas"},
        "sizes": {"d": s.d, "p": s.p, "n": s.n},
        "constants": asdict(c),
        "rho_1": {"edges": limit.rho_1},
        "rho_2": {"edges": limit.rho_2, "edges_many_points": limit.rho_2_many},
        "bulks": [asdict(b) for b in limit.bulks],
        "atom": c.s2,
        "tau_gen": limit.tau_gen,
        "tau_mem": limit.tau_mem,
        "tau_slow": limit.tau_slow,
        "spectrum": {
            "U": asdict(exact),
            "gaussian_equivalent": asdict(equivalent),
            "series_error": eigenvalues.error,
            "noise_floor": eigenvalues.floor,
            "seeds": s.spectrum_seeds,
        },
    }
    lead = (
        f"Memorisation bulk {page.edges(limit.rho_1)}, generalisation bulk {page.edges(limit.rho_2)}, atom {c.s2:.4g}; "
        f"tau_gen = {limit.tau_gen:.1f}, tau_mem = {limit.tau_mem:.0f}."
    )
    section = page.spectrum_section(s, c, sigma, limit, eigenvalues, exact, equivalent)
    return Outcome([lead], results, [page.constants_section(c), section])


def training(s: Settings, sigma: np.ndarray, c: Constants, limit: Theory, progress: Progress) -> Outcome:
    """Losses and score error along training for every psi_n."""
    psi_p = s.p / s.d
    ratios = [round(x * s.d) / s.d for x in sorted(s.psi_ns)]
    tau_mem = [training_time(c, psi_p, rho_1_edges(c, psi_p, x)[0]) for x in ratios]
    tau = times_for(0.03 * limit.tau_gen, 30 * training_time(c, psi_p, c.s2))
    progress(f"training: psi_n = {', '.join(f'{x:g}' for x in ratios)}, {s.seeds} seeds")
    sweep = run_sweep(s.d, s.p, ratios, sigma, s.t, s.activation, tau, s.seeds, s.seed, progress)
    begun, least = onsets(sweep), least_score(sweep)
    law = power_law_of_seeds(sweep.psi_n, least)
    section = page.training_section(sweep, f"d = {s.d}, p = {s.p}, t = {s.t:g}", limit.tau_gen, tau_mem, begun, law)
    lead = f"E_score* ~ psi_n^{page.exponent(law)} over psi_n = {ratios[0]:g} to {ratios[-1]:g}" if law else "One psi_n"
    lead += f" (d = {s.d}, psi_p = {psi_p:g}, t = {s.t:g}, {s.seeds} seeds)."
    ends = {"low": least.min(1), "high": least.max(1)} if s.seeds > 1 else {}
    results = {
        "training": {
            "psi_n": sweep.psi_n,
            "tau_mem": tau_mem,
            **{f"tau_{key}": [getattr(b, key) for b in begun] for key in ("onset", "half", "best")},
            "tau": sweep.tau,
            **{key: getattr(sweep, key).mean(1) for key in ("train", "test", "score")},
            "seeds": s.seeds,
            "series_error": sweep.error,
        },
        "score": {"psi_n": sweep.psi_n, "least": least.mean(1), **ends, "law": asdict(law) if law else None},
    }
    return Outcome([lead], results, [section])
