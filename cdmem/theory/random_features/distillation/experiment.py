"""The laboratory for the claim itself: how many training points do teacher and student give back, and is it
distillation that lowers the number or stopping early?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import t as student_t

from cdmem.theory.random_features.distillation.student import (
    Chain,
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


@dataclass
class Seed:
    """What one seed gave: sampler -> {f_mem, variance}; along gamma and tau, in the design's order."""

    rows: dict[str, Row] = field(default_factory=dict)
    ridge: list[Row] = field(default_factory=list)
    flow: list[Row] = field(default_factory=list)
    flow_two: list[Row] = field(default_factory=list)
    matched: list[Row] = field(default_factory=list)
    from_teacher: list[Row] = field(default_factory=list)
    early: list[Row] = field(default_factory=list)
    teacher_ridge: list[Row] = field(default_factory=list)
    truncated: list[Row] = field(default_factory=list)


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


def measure(design: Design, seed: int) -> Seed:
    """All samplers of one seed, from the same noise."""
    chain, rng = chain_of(design, seed)
    noise = rng.standard_normal((design.samples, design.d))
    renoise = rng.standard_normal(noise.shape)

    def row(samples: np.ndarray) -> Row:
        return {"f_mem": f_mem(samples, chain.data), "variance": variance_ratio(samples)}

    found = Seed()
    for nfe in sorted({design.levels, 4, 2, 1}, reverse=True):
        found.rows[f"teacher_{nfe}"] = row(teacher_samples(chain, noise, nfe))
    found.rows["empirical"] = row(empirical_samples(chain, noise))
    for gamma in design.gammas:
        B = ridge_student(chain, ridge_filter(gamma))
        found.ridge.append(row(student_samples(chain, B, noise)))
        if gamma == min(design.gammas):
            found.rows["student_1"] = found.ridge[-1]
            found.rows["student_2"] = row(student_samples(chain, B, noise, renoise))
    taus = np.asarray(design.taus, float)
    for readouts in flow_student(chain, taus):
        found.flow.append(row(student_samples(chain, readouts(), noise)))
        found.flow_two.append(row(student_samples(chain, readouts(), noise, renoise)))
    for readouts in flow_student(chain, taus, teacher_start(chain, ridge_filter(RIDGE))):
        found.from_teacher.append(row(student_samples(chain, readouts(), noise)))
    fewer = noise[: few(design)]
    for tau in taus:
        found.matched.append(row(student_samples(chain, ridge_student(chain, matched_ridges(chain, tau)), noise)))
        found.early.append(row(_teacher_with(chain, flow_filter(tau, 0.0, 1.0), fewer, tau)))
    found.teacher_ridge = [row(_teacher_with(chain, ridge_filter(gamma), fewer)) for gamma in design.gammas]
    found.truncated = [row(_teacher_with(chain, truncation_filter(r), fewer)) for r in ranks(design)]
    return found


def _teacher_with(chain: Chain, apply: Filter, noise: np.ndarray, tau: float | None = None) -> np.ndarray:
    """Samples of the teacher under another filter, or stopped at ``tau``."""
    psi_p = chain.features.psi_p
    readouts = [m.readout(apply if tau is None else flow_filter(tau, m.t, psi_p)) for m in chain.modes]
    return teacher_samples(chain, noise, len(chain.times), readouts)


def onset(taus: Sequence[float], values: Sequence[float], share: float = 0.5) -> float | None:
    """First tau at which ``values`` reach ``share`` of their last one, linear in ln tau; None if the last one is 0."""
    level = share * values[-1]
    if level <= 0:
        return None
    k = next(i for i, v in enumerate(values) if v >= level)
    if k == 0:
        return float(taus[0])
    part = (level - values[k - 1]) / (values[k] - values[k - 1])
    return float(math.exp(math.log(taus[k - 1]) + part * math.log(taus[k] / taus[k - 1])))


def student_onsets(design: Design, n: int, seed: int) -> dict[str, float | None]:
    """tau_mem of the student, two steps (one step copies too little to time), and its own spectrum's two times.

    ``mem_linear`` and ``gen_linear`` are psi_p / (2 Delta lambda) at the middle time, for the median lambda of the n
    Mem and of the d Gen directions: the times at which the student's filter opens for them.
    """
    chain, rng = chain_of(design, seed, n)
    noise, renoise = rng.standard_normal((2, design.samples, design.d))
    taus = np.asarray(design.taus, float)
    values = [
        f_mem(student_samples(chain, readouts(), noise, renoise), chain.data) for readouts in flow_student(chain, taus)
    ]
    level = chain.levels[len(chain.times) // 2 - 1]
    lam, scale = level.eigenvalues, chain.features.psi_p / (2 * delta(level.t))
    p, d = len(lam), design.d
    mem = float(np.median(lam[max(p - d - n, 0) : p - d]))
    return {
        "tau_mem": onset(design.taus, values),
        "f_mem": values[-1],
        "gen_linear": scale / float(np.median(lam[p - d :])),
        "mem_linear": scale / mem,
    }


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval over seeds (Student's t); the interval is infinite for one seed."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, -math.inf, math.inf
    half = float(student_t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return mean, mean - half, mean + half


def decide(teacher: Sequence[float], student: Sequence[float]) -> str:
    """The rule, fixed beforehand, for the student that is neither stopped nor regularised against the full-cost
    teacher.

    With the paired differences student - teacher / 2 over seeds: below 0 with its whole 95 % interval, the suppression
    does not need early stopping; above 0, it does; else undecided.
    """
    _, low, high = interval([s - t / 2 for s, t in zip(student, teacher)])
    if high < 0:
        return "suppressed without early stopping"
    if low > 0:
        return "early stopping is what suppresses"
    return "undecided"
