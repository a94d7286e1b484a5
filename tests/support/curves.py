"""Simulated students along distillation whose limit is known."""

from __future__ import annotations

import numpy as np
from scipy import stats

TEACHER = 0.859


def simulate(
    rng: np.random.Generator, steps: np.ndarray, gap: np.ndarray, seeds: int = 2_000, noise: float = 0.0075
) -> np.ndarray:
    """Paired differences (K, m) of a student whose f_mem lies ``gap`` from a teacher's of .859.

    A fifth of the seeds switch sides between two evaluations at f_mem = .7; ``noise`` is common to all seeds of a step.
    """
    teacher, own = rng.normal(size=(2, seeds))
    character = np.sqrt(0.75) * (0.6 * teacher + 0.8 * own)
    latent = character + 0.5 * rng.normal(size=(len(steps), seeds))
    share = np.clip(TEACHER + gap + noise * rng.normal(size=len(steps)), 0.001, 0.999)
    return (latent < stats.norm.ppf(share)[:, None]).astype(float) - (teacher < stats.norm.ppf(TEACHER))
