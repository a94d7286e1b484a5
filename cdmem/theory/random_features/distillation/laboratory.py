"""The distillation part of ``python -m cdmem theory random-features``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.stats import binomtest

from cdmem.errors import InputError
from cdmem.theory.experiment import Progress, Section
from cdmem.theory.random_features.distillation import show
from cdmem.theory.random_features.distillation.experiment import (
    Design,
    Row,
    Seed,
    decide,
    few,
    interval,
    measure,
    ranks,
    student_onsets,
)
from cdmem.theory.random_features.distillation.leakage import (
    Leak,
    blocks_by_gap,
    blocks_by_index,
    leak,
    minimal_sufficient,
    transport,
)
from cdmem.theory.random_features.flow import flow_filter, modes, ridge_filter
from cdmem.theory.random_features.model import constants, delta, gaussian_data, make_features
from cdmem.theory.random_features.moments import drawn_moments

GAMMAS = (0.0, *np.geomspace(0.003, 10, 22).round(6).tolist())
STUDENT_GAMMAS = (1e-6, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
NAMES = {
    "ridge": "student_ridge",
    "flow": "student_flow",
    "flow_two": "student_flow_2",
    "matched": "student_matched_ridge",
    "from_teacher": "student_flow_from_teacher",
    "early": "teacher_stopped",
    "teacher_ridge": "teacher_ridge",
    "truncated": "teacher_truncated",
}
STUDENT_TAUS = (1.0, 10.0, 100.0, 1e3, 3e3, 1e4, 3e4, 1e5, 1e6, 1e8)


class Settings(Protocol):
    """What this part reads of the laboratory's settings; they are described there."""

    d: int
    psi_p: float
    psi_n: float
    t: float
    t_next: float
    teacher_tau: float
    leak_draws: int
    student_d: int
    student_psi_p: float
    student_n: list[int]
    student_levels: int
    student_draws: int
    student_samples: int
    student_seeds: int
    seed: int


def check(s: Settings) -> None:
    """Raises InputError for settings that cannot be run."""
    if not 0 < s.t_next < s.t:
        raise InputError("t_next", s.t_next, "is not between 0 and t", f"give a time below t = {s.t}")
    if s.teacher_tau <= 0:
        raise InputError("teacher_tau", s.teacher_tau, "is no training time", "give a number above 0, e.g. 3e4")
    lowest = {"leak_draws": 1, "student_d": 2, "student_draws": 1, "student_samples": 10, "student_seeds": 1}
    lowest |= {"student_levels": 4}
    for key, low in lowest.items():
        if getattr(s, key) < low:
            raise InputError(key, getattr(s, key), "is too small", f"give {low} or more")
    if s.student_psi_p <= 0:
        raise InputError("student_psi_p", s.student_psi_p, "is no ratio", "give p / d, e.g. 30")
    if not s.student_n or min(s.student_n) < 2 or len(set(s.student_n)) < len(s.student_n):
        raise InputError("student_n", s.student_n, "is no list of different numbers from 2 on", "e.g. [12, 24, 48]")


@dataclass(frozen=True)
class Leakage:
    """Leak of one seed: per cut, along GAMMAS and along the training times at which the filters agree."""

    ridge: dict[str, list[Leak]]
    flow: dict[str, list[Leak]]
    sizes: dict[str, tuple[int, int, int]]
    eigenvalues: np.ndarray
    floor: float
    independent: float


def taus_of(s: Settings) -> list[float]:
    """psi_p / (2 Delta gamma) for the positive ridges."""
    return [s.psi_p / (2 * delta(s.t) * gamma) for gamma in GAMMAS if gamma > 0]


def leakage(s: Settings, seed: int) -> Leakage:
    """One network, one training set, one teacher stopped at ``teacher_tau``."""
    rng = np.random.default_rng([seed, 1])
    n, p = max(round(s.psi_n * s.d), 2), round(s.psi_p * s.d)
    features = make_features(p, s.d, rng)
    data = gaussian_data(n, np.ones(s.d), rng)
    noise = rng.standard_normal((s.leak_draws, n, s.d))
    readout = modes(drawn_moments(features, data, s.t, noise), s.t).readout(flow_filter(s.teacher_tau, s.t, s.psi_p))
    found = transport(features, data, s.t, s.t_next, readout, noise)
    cuts = {"index": blocks_by_index(p, s.d, n), "gap": blocks_by_gap(found.eigenvalues, constants(s.t).s2)}
    ridge = {name: [leak(found, cut, ridge_filter(gamma)) for gamma in GAMMAS] for name, cut in cuts.items()}
    flow = {
        name: [leak(found, cut, flow_filter(tau, s.t, s.psi_p)) for tau in taus_of(s)] for name, cut in cuts.items()
    }
    nothing, cut = ridge_filter(0.0), cuts["index"]
    floor = leak(transport(features, data, s.t, s.t, readout, noise), cut, nothing).mem_null
    # A weak teacher and a short step leak next to nothing, unless U and C are from different draws.
    other = rng.standard_normal(noise.shape)
    weak = modes(drawn_moments(features, data, s.t, noise), s.t).readout(flow_filter(30.0, s.t, s.psi_p))
    apart = leak(transport(features, data, s.t, 0.9 * s.t, weak, noise, other), cut, nothing).mem_null
    sizes = {name: (len(cut.gen), len(cut.mem), len(cut.null)) for name, cut in cuts.items()}
    return Leakage(ridge, flow, sizes, found.eigenvalues, floor, apart)


def leak_results(s: Settings, seeds: Sequence[Leakage]) -> dict[str, Any]:
    """The JSON of all seeds: means over seeds of the medians, and their intervals."""

    def along(kind: str, cut: str, key: str) -> list[tuple[float, float, float]]:
        rows = [[getattr(one, key) for one in getattr(seed, kind)[cut]] for seed in seeds]
        return [interval(values) for values in zip(*rows)]

    out: dict[str, Any] = {"status": "reconstruction", "gamma": list(GAMMAS), "seeds": len(seeds)}
    out |= {"teacher_tau": s.teacher_tau, "t": s.t, "t_next": s.t_next, "tau": taus_of(s)}
    for cut in ("index", "gap"):
        entry: dict[str, Any] = {"sizes": seeds[0].sizes[cut]}
        for key in ("mem", "null", "mem_null", "gen", "back"):
            entry[key] = [v[0] for v in along("ridge", cut, key)]
            entry[f"{key}_ci95"] = [v[1:] for v in along("ridge", cut, key)]
            entry[f"flow_{key}"] = [v[0] for v in along("flow", cut, key)]
        for name in ("mem", "mem_null"):
            star = minimal_sufficient(np.array(GAMMAS), np.array(entry[name]))
            entry["gamma_star" if name == "mem_null" else "gamma_star_mem"] = star
        out[cut] = entry
    out |= {key: out["index"][key] for key in ("mem", "null", "mem_null", "gen", "gamma_star")}
    out["gain"] = {"eigenvalue": seeds[0].eigenvalues, "gamma": [GAMMAS[k] for k in show.GAINS]}
    out["gain"]["values"] = [seeds[0].ridge["index"][k].gain for k in show.GAINS]
    out["noise_floor"] = float(np.mean([seed.floor for seed in seeds]))
    out["independent_draws"] = float(np.mean([seed.independent for seed in seeds]))
    return out


def _mean(rows: Sequence[Row], samples: int) -> dict[str, Any]:
    """Over seeds. f_mem's interval is the wider of Student's t over seeds and Wilson's over all samples: three seeds
    without a copy still leave room for some."""
    f, low, high = interval([row["f_mem"] for row in rows])
    total = samples * len(rows)
    counted = binomtest(round(f * total), total).proportion_ci(method="wilson")
    v, v_low, v_high = interval([row["variance"] for row in rows])
    spread = {"variance": v, "variance_low": v_low, "variance_high": v_high}
    ends = {"low": max(min(low, counted.low), 0.0), "high": min(max(high, counted.high), 1.0)}
    return {"mean": f, **ends, **spread, "per_seed": [row["f_mem"] for row in rows]}


def student_results(design: Design, seeds: Sequence[Seed]) -> dict[str, Any]:
    """f_mem and variance of every sampler, over seeds."""
    out: dict[str, Any] = {"status": "reconstruction", "samples": design.samples, "seeds": len(seeds), "n": design.n}
    out |= {name: _mean([seed.rows[name] for seed in seeds], design.samples) for name in seeds[0].rows}
    out["gamma"], out["tau"], out["rank"] = list(design.gammas), list(design.taus), ranks(design)
    for ours, name in NAMES.items():
        samples = few(design) if name.startswith("teacher_") else design.samples
        out[name] = [_mean(column, samples) for column in zip(*(getattr(seed, ours) for seed in seeds))]
    return out


def stopping_results(s: Settings, design: Design, found: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Is the suppression distillation's or the stopping's? And the student's own times against n."""
    teacher = found[f"teacher_{design.levels}"]["per_seed"]
    flow, ridge = found["student_flow"], found["student_matched_ridge"]
    gap = [a["mean"] - b["mean"] for a, b in zip(flow, ridge)]
    last = max(row["mean"] for row in flow)
    out: dict[str, Any] = {"status": "reconstruction", "rule": " ".join((decide.__doc__ or "").split())}
    for name in ("student_1", "student_2"):
        out[name] = decide(teacher, found[name]["per_seed"])
    out["ridge_against_flow"] = {"rms": float(np.sqrt(np.mean(np.square(gap)))), "largest_f_mem": last}
    rows = []
    for n in progress.bar(sorted(s.student_n), "student's times"):
        rows += [{"n": n, "seed": k, **student_onsets(design, n, 1000 * s.seed + k)} for k in range(s.student_seeds)]
    out["times"] = rows
    for key in ("tau_mem", "gen_linear", "mem_linear"):
        out[f"{key}_exponent"] = _exponent([(r["n"], r[key]) for r in rows if r[key]])
    return out


def _exponent(pairs: Sequence[tuple[int, float]]) -> tuple[float, float, float] | None:
    """Slope of ln time against ln n with its 95 % interval; None with fewer than three points or one n."""
    from scipy.stats import linregress
    from scipy.stats import t as student_t

    if len(pairs) < 3 or len({n for n, _ in pairs}) < 2:
        return None
    fit = linregress(*np.log(np.array(pairs, float)).T)
    half = float(student_t.ppf(0.975, len(pairs) - 2) * fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def run(s: Settings, progress: Progress) -> tuple[dict[str, Any], list[Section], list[str]]:
    """Results (``leak``, ``f_mem``, ``stopping``), sections of the page and lines of its lead.

    Raises:
        InputError: settings that cannot be run.
    """
    check(s)
    progress("distillation: leakage")
    leaks = [leakage(s, 1000 * s.seed + k) for k in progress.bar(range(s.student_seeds), "leakage")]
    found_leak = leak_results(s, leaks)
    progress("distillation: teacher and students")
    n = sorted(s.student_n)[len(s.student_n) // 2]
    design = Design(s.student_d, s.student_psi_p, n, s.student_levels, s.student_draws, s.student_samples,
                    STUDENT_GAMMAS, STUDENT_TAUS)  # fmt: skip
    seeds = [measure(design, 1000 * s.seed + k) for k in progress.bar(range(s.student_seeds), "seeds")]
    found = student_results(design, seeds)
    progress("distillation: the student's own times")
    stopping = stopping_results(s, design, found, progress)
    results = {"leak": found_leak, "f_mem": found, "stopping": stopping}
    return results, show.sections(found_leak, found, stopping), show.lead(found_leak, found, stopping)
