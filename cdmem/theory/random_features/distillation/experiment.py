"""The laboratory for the claim itself: how many training points do teacher and student give back, and is it
distillation that lowers the number or stopping early?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cdmem.theory.curves import crossing
from cdmem.theory.measures import mean_interval
from cdmem.theory.random_features.distillation.leakage import blocks_by_index
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
from cdmem.theory.settings import each, number

RIDGE = 1e-6  # of the teacher, and of the student that is not regularised
T_MIN, T_MAX = 0.01, 3.0
GAMMAS = (RIDGE, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TAUS = (1.0, 10.0, 100.0, 1e3, 3e3, 1e4, 3e4, 1e5, 1e6, 1e8)


@dataclass(frozen=True)
class Distillation:
    """The leak of one distillation step of the network above, and the laboratory for f_mem.

    Attributes:
        seeds: weights and training sets of leak and laboratory; 0 leaves both out.
        t_next: time to which the leak's distillation step goes; t / 10 if null.
        teacher_tau: training time of the leak's teacher.
        leak_draws: noises per point of the leak.
        d: dimension of the laboratory for f_mem.
        psi_p: features per dimension there.
        n: numbers of training points there; f_mem is shown at the middle one.
        levels: noise levels of teacher and student.
        draws: noises per point and level.
        samples: per sampler and seed.
    """

    seeds: int = number(3, 0)
    t_next: float | None = number(None, 0, open=True)
    teacher_tau: float = number(3e4, 0, open=True)
    leak_draws: int = number(60, 1)
    d: int = number(20, 2)
    psi_p: float = number(30.0, 0, open=True)
    n: list[int] = field(default_factory=lambda: [12, 24, 48], metadata=each(2))
    levels: int = number(16, 4)
    draws: int = number(200, 1)
    samples: int = number(4000, 10)


Row = dict[str, float]  # f_mem and variance of one sampler
Times = dict[str, float | None]  # see student_times


@dataclass(frozen=True)
class Samplers:
    """Of one seed: sampler -> row; family -> rows along gamma, tau or rank, in their order; and the student's times."""

    rows: dict[str, Row]
    along: dict[str, list[Row]]
    times: Times


def chain_of(s: Distillation, n: int, seed: int) -> tuple[Chain, np.random.Generator]:
    """Teacher and pairs of n training points and a seed; the generator goes on with noise for samples."""
    rng = np.random.default_rng([seed, n])
    features = make_features(round(s.psi_p * s.d), s.d, rng)
    data = gaussian_data(n, np.ones(s.d), rng)
    return build(features, data, np.geomspace(T_MIN, T_MAX, s.levels), ridge_filter(RIDGE), s.draws, rng), rng


def matched_ridges(chain: Chain, tau: float) -> list[Filter]:
    """gamma_k = psi_p / (2 Delta_k tau): where both filters agree for small eigenvalues."""
    return [ridge_filter(chain.features.psi_p / (2 * delta(level.t) * tau)) for level in chain.levels]


def ranks(d: int, n: int) -> list[int]:
    """Truncations of the teacher: from the d generalising directions to all n + d that the data span, and twice
    that."""
    return sorted({d, d + n // 2, d + n, 2 * (d + n)})


def few(samples: int) -> int:
    """Samples of the teacher's baselines, which cost a whole walk each."""
    return samples // 3


def measure(
    s: Distillation, n: int, seed: int, gammas: Sequence[float] = GAMMAS, taus: Sequence[float] = TAUS
) -> Samplers:
    """All samplers of one seed, from the same noise."""
    chain, rng = chain_of(s, n, seed)
    noise, renoise = rng.standard_normal((2, s.samples, s.d))

    def row(samples: np.ndarray) -> Row:
        return {"f_mem": f_mem(samples, chain.data), "variance": variance_ratio(samples)}

    def student(readouts: Readouts, twice: bool = False) -> Row:
        return row(student_samples(chain, readouts, noise, renoise if twice else None))

    def teacher(filter_at: Callable[[float], Filter]) -> Row:
        readouts = [modes.readout(filter_at(modes.t)) for modes in chain.modes]
        return row(teacher_samples(chain, noise[: few(s.samples)], s.levels, readouts))

    psi_p = chain.features.psi_p
    ridge = [ridge_student(chain, ridge_filter(gamma)) for gamma in gammas]
    flow = flow_student(chain, taus)
    warm = flow_student(chain, taus, teacher_start(chain, ridge_filter(RIDGE)))
    least = ridge[int(np.argmin(gammas))]
    steps = sorted({s.levels, 4, 2, 1}, reverse=True)
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
        "teacher_ridge": [teacher(lambda _, gamma=gamma: ridge_filter(gamma)) for gamma in gammas],
        "teacher_truncated": [teacher(lambda _, rank=rank: truncation_filter(rank)) for rank in ranks(s.d, n)],
    }
    return Samplers(rows, along, student_times(chain, taus, [r["f_mem"] for r in along["student_flow_2"]]))


def measure_times(s: Distillation, n: int, seed: int) -> Times:
    """:func:`student_times` alone; :func:`measure` gives the same."""
    chain, rng = chain_of(s, n, seed)
    noise, renoise = rng.standard_normal((2, s.samples, s.d))
    values = [f_mem(student_samples(chain, B, noise, renoise), chain.data) for B in flow_student(chain, TAUS)]
    return student_times(chain, TAUS, values)


def student_times(chain: Chain, taus: Sequence[float], values: Sequence[float]) -> Times:
    """tau_mem of the student, two steps (one step copies too little to time), and its own spectrum's two times.

    ``mem_linear`` and ``gen_linear`` are psi_p / (2 Delta lambda) at the middle time, for the median lambda of the n
    Mem and of the d Gen directions: the times at which the student's filter opens for them.

    Args:
        chain: teacher and pairs.
        taus: training times.
        values: f_mem of the student in two steps at each.
    """
    level = chain.levels[len(chain.times) // 2 - 1]
    lam, scale = level.eigenvalues, chain.features.psi_p / (2 * delta(level.t))
    blocks = blocks_by_index(len(lam), chain.features.d, len(chain.data))
    return {
        "tau_mem": crossing(taus, values, values[-1] / 2, log_x=True) if values[-1] > 0 else None,
        "f_mem": values[-1],
        "gen_linear": scale / float(np.median(lam[blocks.gen])),
        "mem_linear": scale / float(np.median(lam[blocks.mem])),
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
