"""The laboratory for the claim itself: how many training points do teacher and student give back, and is it
distillation that lowers the number or stopping early?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cdmem.theory.curves import crossing
from cdmem.theory.measures import mean_interval
from cdmem.theory.random_features.distillation.student import (
    Chain,
    Readouts,
    build,
    empirical_samples,
    f_mem,
    flow_student,
    ridge_student,
    student_samples,
    teacher_samples,
    teacher_start,
    variance_ratio,
)
from cdmem.theory.random_features.flow import Filter, flow_filter, ridge_filter, truncation_filter
from cdmem.theory.random_features.model import delta, gaussian_data, make_features

RIDGE = 1e-6  # of the teacher, and of the student that is not regularised
T_MIN, T_MAX = 0.01, 3.0


@dataclass(frozen=True)
class Design:
    """Sizes of the experiment."""

    d: int
    psi_p: float
    n: int
    levels: int
    draws: int
    samples: int
    gammas: Sequence[float]
    taus: Sequence[float]


Row = dict[str, float]  # f_mem and variance of one sampler


@dataclass(frozen=True)
class Samplers:
    """Of one seed: sampler -> row, and family -> rows along gamma, tau or rank, in the design's order."""

    rows: dict[str, Row]
    along: dict[str, list[Row]]


def chain_of(design: Design, seed: int, n: int | None = None) -> tuple[Chain, np.random.Generator]:
    """Teacher and pairs of a seed; the generator goes on with noise for samples."""
    rng = np.random.default_rng([seed, n or design.n])
    features = make_features(round(design.psi_p * design.d), design.d, rng)
    data = gaussian_data(n or design.n, np.ones(design.d), rng)
    times = np.geomspace(T_MIN, T_MAX, design.levels)
    return build(features, data, times, ridge_filter(RIDGE), design.draws, rng), rng


def matched_ridges(chain: Chain, tau: float) -> list[Filter]:
    """gamma_k = psi_p / (2 Delta_k tau): where both filters agree for small eigenvalues."""
    return [ridge_filter(chain.features.psi_p / (2 * delta(level.t) * tau)) for level in chain.levels]


def ranks(design: Design) -> list[int]:
    """Truncations of the teacher: from the d generalising directions to all n + d that the data span, and twice
    that."""
    return sorted({design.d, design.d + design.n // 2, design.d + design.n, 2 * (design.d + design.n)})


def few(design: Design) -> int:
    """Samples of the teacher's baselines, which cost a whole walk each."""
    return max(design.samples // 3, 1)


def measure(design: Design, seed: int) -> Samplers:
    """All samplers of one seed, from the same noise."""
    chain, rng = chain_of(design, seed)
    noise = rng.standard_normal((design.samples, design.d))
    renoise = rng.standard_normal(noise.shape)

    def row(samples: np.ndarray) -> Row:
        return {"f_mem": f_mem(samples, chain.data), "variance": variance_ratio(samples)}

    def student(readouts: Readouts, twice: bool = False) -> Row:
        return row(student_samples(chain, readouts, noise, renoise if twice else None))

    def teacher(filter_at: Callable[[float], Filter]) -> Row:
        readouts = [modes.readout(filter_at(modes.t)) for modes in chain.modes]
        return row(teacher_samples(chain, noise[: few(design)], len(chain.times), readouts))

    taus, psi_p = np.asarray(design.taus, float), chain.features.psi_p
    ridge = [ridge_student(chain, ridge_filter(gamma)) for gamma in design.gammas]
    flow = flow_student(chain, taus)
    warm = flow_student(chain, taus, teacher_start(chain, ridge_filter(RIDGE)))
    least = ridge[int(np.argmin(design.gammas))]
    steps = sorted({design.levels, 4, 2, 1}, reverse=True)
    rows = {f"teacher_{nfe}": row(teacher_samples(chain, noise, nfe)) for nfe in steps}
    rows["empirical"] = row(empirical_samples(chain, noise))
    rows |= {"student_1": student(least), "student_2": student(least, twice=True)}
    along = {
        "student_ridge": [student(readouts) for readouts in ridge],
        "student_flow": [student(readouts) for readouts in flow],
        "student_flow_2": [student(readouts, twice=True) for readouts in flow],
        "student_matched_ridge": [student(ridge_student(chain, matched_ridges(chain, tau))) for tau in taus],
        "student_flow_from_teacher": [student(readouts) for readouts in warm],
        "teacher_stopped": [teacher(lambda t, tau=tau: flow_filter(tau, t, psi_p)) for tau in taus],
        "teacher_ridge": [teacher(lambda _, gamma=gamma: ridge_filter(gamma)) for gamma in design.gammas],
        "teacher_truncated": [teacher(lambda _, rank=rank: truncation_filter(rank)) for rank in ranks(design)],
    }
    return Samplers(rows, along)


def student_onsets(design: Design, n: int, seed: int) -> dict[str, float | None]:
    """tau_mem of the student, two steps (one step copies too little to time), and its own spectrum's two times.

    ``mem_linear`` and ``gen_linear`` are psi_p / (2 Delta lambda) at the middle time, for the median lambda of the n
    Mem and of the d Gen directions: the times at which the student's filter opens for them.
    """
    chain, rng = chain_of(design, seed, n)
    noise, renoise = rng.standard_normal((2, design.samples, design.d))
    taus = np.asarray(design.taus, float)
    values = [
        f_mem(student_samples(chain, readouts, noise, renoise), chain.data) for readouts in flow_student(chain, taus)
    ]
    level = chain.levels[len(chain.times) // 2 - 1]
    lam, scale = level.eigenvalues, chain.features.psi_p / (2 * delta(level.t))
    p, d = len(lam), design.d
    mem = float(np.median(lam[max(p - d - n, 0) : p - d]))
    return {
        "tau_mem": crossing(design.taus, values, values[-1] / 2, log_x=True) if values[-1] > 0 else None,
        "f_mem": values[-1],
        "gen_linear": scale / float(np.median(lam[p - d :])),
        "mem_linear": scale / mem,
    }


def decide(teacher: Sequence[float], student: Sequence[float]) -> str:
    """The rule, fixed beforehand, for the student that is neither stopped nor regularised against the full-cost
    teacher.

    With the paired differences student - teacher / 2 over seeds: below 0 with its whole 95 % interval, the suppression
    does not need early stopping; above 0, it does; else undecided.
    """
    difference = mean_interval([s - t / 2 for s, t in zip(student, teacher)])
    if difference.high < 0:
        return "suppressed without early stopping"
    if difference.low > 0:
        return "early stopping is what suppresses"
    return "undecided"
