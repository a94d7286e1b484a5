"""The distillation part of ``python -m cdmem theory random-features``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from cdmem.errors import InputError
from cdmem.theory.curves import power_law
from cdmem.theory.experiment import Outcome, Progress
from cdmem.theory.measures import Interval, mean_interval
from cdmem.theory.random_features.distillation import experiment
from cdmem.theory.random_features.distillation.experiment import (
    Distillation,
    Row,
    Samplers,
    few,
    measure_times,
    ranks,
)
from cdmem.theory.random_features.distillation.leakage import (
    Leak,
    blocks_by_gap,
    blocks_by_index,
    leak,
    minimal_sufficient,
    transport,
)
from cdmem.theory.random_features.distillation.page import GAINS, lead, sections
from cdmem.theory.random_features.flow import flow_filter, modes, ridge_filter
from cdmem.theory.random_features.model import Network, constants, delta, gaussian_data, make_features
from cdmem.theory.random_features.moments import drawn_moments

GAMMAS = (0.0, *np.geomspace(0.003, 10, 22).round(6).tolist())


def check(network: Network, s: Distillation) -> None:
    """Raises InputError for a leak whose step does not lead down."""
    if s.t_next is not None and not s.t_next < network.t:
        raise InputError("distillation.t_next", s.t_next, "is not below t", f"give a time below t = {network.t}")


def next_time(network: Network, s: Distillation) -> float:
    """To which the leak's step goes."""
    return network.t / 10 if s.t_next is None else s.t_next


@dataclass(frozen=True)
class Leakage:
    """Leak of one seed by filter (``ridge`` along GAMMAS, ``flow`` along the training times at which the two agree) and
    cut; the cuts' sizes; the leak of no step at all, and of independent draws."""

    leaks: dict[tuple[str, str], list[Leak]]
    sizes: dict[str, list[int]]
    eigenvalues: np.ndarray
    floor: float
    independent: float


def taus_of(network: Network) -> list[float]:
    """psi_p / (2 Delta gamma) for the positive ridges."""
    return [network.psi_p / (2 * delta(network.t) * gamma) for gamma in GAMMAS if gamma > 0]


def leakage(network: Network, s: Distillation, seed: int) -> Leakage:
    """One network, one training set, one teacher stopped at ``teacher_tau``."""
    rng = np.random.default_rng([seed, 1])
    d, n, p, t, psi_p = network.d, network.n, network.p, network.t, network.psi_p
    features = make_features(p, d, rng)
    data = gaussian_data(n, np.ones(d), rng)
    noise = rng.standard_normal((s.leak_draws, n, d))
    teacher = modes(drawn_moments(features, data, t, noise), t)
    readout, weak = (teacher.readout(flow_filter(tau, t, psi_p)) for tau in (s.teacher_tau, 30.0))
    step = transport(features, data, t, next_time(network, s), readout, noise)
    cuts = {"index": blocks_by_index(p, d, n), "gap": blocks_by_gap(step.eigenvalues, constants(t).s2)}
    ridges, flows = [ridge_filter(gamma) for gamma in GAMMAS], [flow_filter(tau, t, psi_p) for tau in taus_of(network)]
    leaks = {
        (kind, name): [leak(step, cut, apply) for apply in filters]
        for kind, filters in (("ridge", ridges), ("flow", flows))
        for name, cut in cuts.items()
    }
    idle = transport(features, data, t, t, readout, noise)
    # A weak teacher and a short step leak next to nothing, unless U and C are from different draws.
    other = rng.standard_normal(noise.shape)
    apart = transport(features, data, t, 0.9 * t, weak, noise, other)
    floor, independent = (leak(found, cuts["index"], ridge_filter(0.0)).mem_null for found in (idle, apart))
    sizes = {name: [len(block) for block in cut] for name, cut in cuts.items()}
    return Leakage(leaks, sizes, step.eigenvalues, floor, independent)


def leak_results(network: Network, s: Distillation, seeds: Sequence[Leakage]) -> dict[str, Any]:
    """The JSON of all seeds: means over seeds of the medians, and their intervals."""

    def along(kind: str, cut: str, key: str) -> list[Interval]:
        rows = [[getattr(one, key) for one in seed.leaks[kind, cut]] for seed in seeds]
        return [mean_interval(values) for values in zip(*rows)]

    out: dict[str, Any] = {"status": "reconstruction", "gamma": list(GAMMAS), "seeds": len(seeds)}
    out |= {"teacher_tau": s.teacher_tau, "t": network.t, "t_next": next_time(network, s), "tau": taus_of(network)}
    for cut in ("index", "gap"):
        entry: dict[str, Any] = {"sizes": seeds[0].sizes[cut]}
        for key in ("mem", "null", "mem_null", "gen", "back"):
            means = along("ridge", cut, key)
            entry[key] = [v.mean for v in means]
            entry[f"{key}_ci95"] = [(v.low, v.high) for v in means]
            entry[f"flow_{key}"] = [v.mean for v in along("flow", cut, key)]
        for star, key in (("gamma_star_mem", "mem"), ("gamma_star", "mem_null")):
            entry[star] = minimal_sufficient(np.array(GAMMAS), np.array(entry[key]))
        out[cut] = entry
    out |= {key: out["index"][key] for key in ("mem", "null", "mem_null", "gen", "gamma_star")}
    out["gain"] = {"eigenvalue": seeds[0].eigenvalues, "gamma": [GAMMAS[k] for k in GAINS]}
    out["gain"]["values"] = [seeds[0].leaks["ridge", "index"][k].gain for k in GAINS]
    out["noise_floor"] = float(np.mean([seed.floor for seed in seeds]))
    out["independent_draws"] = float(np.mean([seed.independent for seed in seeds]))
    return out


def _mean(rows: Sequence[Row], samples: int) -> dict[str, Any]:
    """Over seeds. f_mem's interval is the wider of Student's t over seeds and Wilson's over all samples: three seeds
    without a copy still leave room for some."""
    f, v = (mean_interval([row[key] for row in rows]) for key in ("f_mem", "variance"))
    total = samples * len(rows)
    counted = binomtest(round(f.mean * total), total).proportion_ci(method="wilson")
    spread = {"variance": v.mean, "variance_low": v.low, "variance_high": v.high}
    ends = {"low": max(min(f.low, counted.low), 0.0), "high": min(max(f.high, counted.high), 1.0)}
    return {"mean": f.mean, **ends, **spread, "per_seed": [row["f_mem"] for row in rows]}


def student_results(s: Distillation, n: int, seeds: Sequence[Samplers]) -> dict[str, Any]:
    """f_mem and variance of every sampler, over seeds."""
    out: dict[str, Any] = {"status": "reconstruction", "samples": s.samples, "seeds": len(seeds), "n": n}
    out |= {name: _mean([seed.rows[name] for seed in seeds], s.samples) for name in seeds[0].rows}
    out |= {"gamma": list(experiment.GAMMAS), "tau": list(experiment.TAUS), "rank": ranks(s.d, n)}
    for name in seeds[0].along:
        samples = few(s.samples) if name.startswith("teacher_") else s.samples
        out[name] = [_mean(column, samples) for column in zip(*(seed.along[name] for seed in seeds))]
    return out


def stopping_results(
    s: Distillation, seeds: Sequence[int], f_mem: dict[str, Any], measured: Sequence[Samplers], progress: Progress
) -> dict[str, Any]:
    """Is the suppression distillation's or the stopping's? And the student's own times against n, of which those at
    the n of ``f_mem`` are ``measured``."""
    teacher = f_mem[f"teacher_{s.levels}"]["per_seed"]
    flow, ridge = f_mem["student_flow"], f_mem["student_matched_ridge"]
    gap = [a["mean"] - b["mean"] for a, b in zip(flow, ridge)]
    out: dict[str, Any] = {"status": "reconstruction", "rule": " ".join((experiment.decide.__doc__ or "").split())}
    for name in ("student_1", "student_2"):
        out[name] = experiment.decide(teacher, f_mem[name]["per_seed"])
    rms, largest = float(np.sqrt(np.mean(np.square(gap)))), max(row["mean"] for row in flow)
    out["ridge_against_flow"] = {"rms": rms, "largest_f_mem": largest}
    rows = out["times"] = [
        {"n": n, "seed": k, **(measured[k].times if n == f_mem["n"] else measure_times(s, n, seed))}
        for n in progress.bar(sorted(s.n), "student's times")
        for k, seed in enumerate(seeds)
    ]
    for key in ("tau_mem", "gen_linear", "mem_linear"):
        kept = [r for r in rows if r[key]]
        law = power_law({"n": [r["n"] for r in kept]}, [r[key] for r in kept])["n"]
        out[f"{key}_exponent"] = None if law is None else (law.value, law.low, law.high)
    return out


def run(network: Network, s: Distillation, seed: int, progress: Progress) -> Outcome:
    """Results ``leak``, ``f_mem`` and ``stopping``, for settings that were checked."""
    seeds = [1000 * seed + k for k in range(s.seeds)]
    progress("distillation: leakage")
    leaks = [leakage(network, s, k) for k in progress.bar(seeds, "leakage")]
    progress("distillation: teacher and students")
    n = sorted(s.n)[len(s.n) // 2]
    measured = [experiment.measure(s, n, k) for k in progress.bar(seeds, "seeds")]
    f_mem = student_results(s, n, measured)
    progress("distillation: the student's own times")
    stopping = stopping_results(s, seeds, f_mem, measured, progress)
    parts = (leak_results(network, s, leaks), f_mem, stopping)
    results = dict(zip(("leak", "f_mem", "stopping"), parts))
    return Outcome(lead(*parts), {"status": {"distillation": "reconstruction"}, **results}, sections(*parts))
