"""``python -m cdmem theory two-gaussians``: a real network on a known density, cheap enough for a CPU.

Published (Bonnaire et al. 2025, supplement, Fig. 9): two Gaussians at +-1_d with unit covariance, d = 8; residual MLP
of width 128 (102,024 parameters); SGD 6e-3, momentum .95, full batch, n 128 to 4096, up to 4M steps; tau_mem grows like
n / W, KL(P_theta | P_0) is first near 0 and then rises. Diffusion steps, betas and sampler are **assumed** to be those
of the paper's CelebA experiment.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from cdmem.errors import InputError
from cdmem.theory.frame import Outcome, Progress
from cdmem.theory.two_gaussians.measures import copied, divergence, draw
from cdmem.theory.two_gaussians.show import LOOKS, Found, lead, least, sections
from cdmem.theory.two_gaussians.times import crossing, power_law
from cdmem.theory.two_gaussians.training import STEPS, Plan, train


@dataclass(frozen=True)
class Settings:
    """Settings of two-gaussians.

    Attributes:
        n: numbers of training points.
        widths: widths W of the network.
        steps_per_point: a training of n points at width W takes steps_per_point n (128 / W) optimizer steps.
        points: measurements along each, geometric in steps.
        seeds: independent networks and training sets per setting.
        dim: dimension d of the data.
        lr: learning rate of SGD.
        momentum: of SGD.
        samples: made at each measurement, per network.
        nfe: DDIM steps.
        level: f_mem at which memorisation has set in.
        loss_step: diffusion step, 0 to 999, at which train and test losses are compared.
        seed: of everything.
    """

    n: list[int] = field(default_factory=lambda: [16, 32, 48])
    widths: list[int] = field(default_factory=lambda: [128])
    steps_per_point: int = 400
    points: int = 12
    seeds: int = 2
    dim: int = 8
    lr: float = 6e-3
    momentum: float = 0.95
    samples: int = 1000
    nfe: int = 50
    level: float = 0.1
    loss_step: int = 100
    seed: int = 0


def check(settings: Settings) -> None:
    """Raises InputError for settings that cannot be run."""
    bounds: dict[str, tuple[float, float]] = {"steps_per_point": (1, 10**6), "points": (3, 200), "seeds": (1, 64)}
    bounds |= {"dim": (1, 256), "samples": (10, 20_000), "nfe": (1, STEPS), "loss_step": (0, STEPS - 1)}
    bounds |= {"momentum": (0, 0.999)}
    for key, (low, high) in bounds.items():
        if not low <= getattr(settings, key) <= high:
            raise InputError(key, getattr(settings, key), "is out of range", f"give {low} to {high}")
    if not 0 < settings.level < 1:
        raise InputError("level", settings.level, "is no share", "give a number between 0 and 1, e.g. 0.1")
    if settings.lr <= 0:
        raise InputError("lr", settings.lr, "is no learning rate", "give a number above 0, e.g. 6e-3")
    for key, values, low in (("n", settings.n, 2), ("widths", settings.widths, 1)):
        if not values or min(values) < low or max(values) > 10**6 or len(set(values)) < len(values):
            raise InputError(key, values, f"is no list of different whole numbers from {low} on", "e.g. [16, 32]")
    if len(settings.n) * len(settings.widths) > len(LOOKS):
        raise InputError("n", settings.n, f"with widths makes more than {len(LOOKS)} curves", "give fewer n or widths")


def plans(settings: Settings) -> list[Plan]:
    """One training per (n, W); the seeds differ."""
    made = []
    for k, (n, width) in enumerate((n, w) for w in settings.widths for n in settings.n):
        last = max(round(settings.steps_per_point * n * 128 / width), settings.points)
        steps = sorted({round(s) for s in np.geomspace(min(100, last / 10), last, settings.points)} | {last})
        fixed = (settings.seeds, settings.dim, settings.lr, settings.momentum, settings.samples, settings.nfe)
        made.append(Plan(n, width, steps, *fixed, settings.loss_step, settings.seed * 1000 + k))
    return made


def floor(settings: Settings) -> dict[str, float]:
    """The estimators on exact samples: what KL and f_mem read when nothing was learned by heart."""
    generator = torch.Generator().manual_seed(settings.seed * 1000 + 999)
    exact = torch.stack([draw(settings.samples, settings.dim, generator) for _ in range(8)])
    data = torch.stack([draw(max(settings.n), settings.dim, generator) for _ in range(8)])
    kl = divergence(exact)
    return {"kl": float(kl.mean()), "kl_sd": float(kl.std()), "f_mem": float(copied(exact, data).mean())}


def run(settings: Settings, progress: Progress) -> Outcome:
    """Train, measure, fit.

    Raises:
        InputError: settings that cannot be run, or a training whose weights are no longer finite.
    """
    check(settings)
    reference = floor(settings)
    onsets: list[Found] = []
    threads = torch.get_num_threads()
    try:
        for plan in plans(settings):
            progress(f"n = {plan.n}, W = {plan.width}: {plan.steps[-1]} steps")
            # Products this small lose more by sharing the work between threads than they gain.
            torch.set_num_threads(1 if plan.n * plan.members < 512 else threads)
            onsets.append(_one(plan, settings, progress))
    finally:
        torch.set_num_threads(threads)
    seen = [(r.n, r.width, tau) for r, taus in onsets for tau in taus if tau is not None]
    law = power_law(*map(list, zip(*seen))) if seen else power_law([], [], [])
    results = {
        "status": "published setting" if _published(settings) else "published setting, reduced",
        "parameters": {str(r.width): r.size for r, _ in onsets},
        "floor": reference,
        "runs": [{**asdict(r), "tau_mem": taus, "kl_min": least(r)} for r, taus in onsets],
        "tau_mem": {"level": settings.level, "exponent_n": law.n, "exponent_width": law.width, "points": law.points},
    }
    title = "Two Gaussians: when does a trained network begin to copy?"
    shown = sections(onsets, law, reference, settings.level, settings.samples, settings.loss_step)
    return Outcome(title, lead(law, onsets, settings.level), results, shown)


def _one(plan: Plan, settings: Settings, progress: Progress) -> Found:
    """A training and the onset of each member."""
    bar = iter(progress.bar(plan.steps, "measurements"))
    next(bar)
    run = train(plan, lambda: next(bar, None))
    if not np.isfinite(run.kl[-1]).all():
        raise InputError("lr", settings.lr, f"diverged at n = {plan.n}, W = {plan.width}", "give a smaller one")
    return run, [crossing(run.steps, [row[e] for row in run.f_mem], settings.level) for e in range(plan.members)]


def _published(s: Settings) -> bool:
    ours = (s.dim, s.lr, s.momentum)
    return ours == (8, 6e-3, 0.95) and min(s.n) >= 128 and 128 in s.widths
