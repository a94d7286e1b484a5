"""``python -m cdmem theory two-gaussians``: a real network on a known density, cheap enough for a CPU.

Published (Bonnaire et al. 2025, supplement, Fig. 9): two Gaussians at +-1_d with unit covariance, d = 8; residual MLP
of width 128 (102,024 parameters); SGD 6e-3, momentum .95, full batch, n 128 to 4096, up to 4M steps; tau_mem grows like
n / W, KL(P_theta | P_0) is first near 0 and then rises. Diffusion steps, betas and sampler are **assumed** to be those
of the paper's CelebA experiment.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch

from cdmem.errors import InputError
from cdmem.theory.curves import crossing, power_law
from cdmem.theory.experiment import KINDS, Outcome, Progress
from cdmem.theory.settings import check_settings
from cdmem.theory.two_gaussians.measures import copied, divergence, draw
from cdmem.theory.two_gaussians.page import Trained, lead, least, sections
from cdmem.theory.two_gaussians.training import Plan, Settings, train


def check(settings: Settings) -> None:
    """Raises InputError for settings that cannot be run."""
    check_settings(settings)
    if len(settings.n) * len(settings.widths) > len(KINDS):
        raise InputError("n", settings.n, f"with widths makes more than {len(KINDS)} curves", "give fewer n or widths")


def plans(settings: Settings) -> list[Plan]:
    """One training per (n, W); the seeds differ."""
    made = []
    for k, (n, width) in enumerate((n, w) for w in settings.widths for n in settings.n):
        last = max(round(settings.steps_per_point * n * 128 / width), settings.points)
        steps = sorted({round(s) for s in np.geomspace(min(100, last / 10), last, settings.points)} | {last})
        made.append(Plan(n, width, steps, settings.seed * 1000 + k))
    return made


def floor(settings: Settings) -> dict[str, float]:
    """The estimators on exact samples: KL and f_mem when nothing was learned by heart."""
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
    trained: list[Trained] = []
    threads = torch.get_num_threads()
    try:
        for plan in plans(settings):
            progress(f"n = {plan.n}, W = {plan.width}: {plan.steps[-1]} steps")
            # Products this small lose more by sharing the work between threads than they gain.
            torch.set_num_threads(1 if plan.n * settings.seeds < 512 else threads)
            trained.append(_train(plan, settings, progress))
    finally:
        torch.set_num_threads(threads)
    onsets = [(r.n, r.width, tau) for r, taus in trained for tau in taus if tau is not None]
    n, width, tau = map(list, zip(*onsets)) if onsets else ([], [], [])
    law = power_law({"n": n, "width": width}, tau)
    fixed = (settings.dim, settings.lr, settings.momentum)
    published = fixed == (8, 6e-3, 0.95) and min(settings.n) >= 128 and 128 in settings.widths
    results = {
        "status": "published setting" if published else "published setting, reduced",
        "parameters": {str(r.width): r.size for r, _ in trained},
        "floor": reference,
        "runs": [{**asdict(r), "tau_mem": taus, "kl_min": least(r)} for r, taus in trained],
        "tau_mem": {
            "level": settings.level,
            **{f"exponent_{name}": None if e is None else (e.value, e.low, e.high) for name, e in law.items()},
            "points": len(onsets),
        },
    }
    title = "Two Gaussians: when does a trained network begin to copy?"
    shown = sections(trained, law, reference, settings.level, settings.samples, settings.loss_step)
    return Outcome(lead(law, trained, settings.level), results, shown, title)


def _train(plan: Plan, settings: Settings, progress: Progress) -> Trained:
    """A training and the onset of each member."""
    bar = progress.bar(plan.steps, "measurements")
    next(bar)
    run = train(plan, settings, lambda: next(bar, None))
    if not np.isfinite(run.kl[-1]).all():
        raise InputError("lr", settings.lr, f"diverged at n = {plan.n}, W = {plan.width}", "give a smaller one")
    taus = [crossing(run.steps, f_mem, settings.level, log_x=True) for f_mem in zip(*run.f_mem)]
    return run, taus
