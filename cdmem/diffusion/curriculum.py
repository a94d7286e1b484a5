"""Curricula of consistency training: how many grid points when, and the adaptive target rate."""

from __future__ import annotations

import math
from typing import Literal

Curriculum = Literal["fixed", "doubling", "sqrt"]


def num_points(step: int, total_steps: int, curriculum: Curriculum, start: int, end: int) -> int:
    """Grid points N at an optimizer step: a pure function of the step, so a resumed run and all ranks agree.

    Args:
        step: optimizer steps taken so far.
        total_steps: K, the planned number of steps.
        curriculum: ``fixed`` keeps ``end`` points. ``doubling`` is iCT:
            N = min(s0 2^floor(k/K'), s1) + 1 with K' = floor(K / (log2 floor(s1/s0) + 1)). ``sqrt`` is Song et al.
            2023, app. C: N = ceil(sqrt(k/K ((s1+1)^2 - s0^2) + s0^2) - 1) + 1.
        start: s0.
        end: s1; for ``fixed`` the number of points itself.
    """
    if curriculum == "fixed":
        return end
    step = min(step, total_steps)
    if curriculum == "doubling":
        stages = math.log2(max(end // start, 1)) + 1
        length = max(int(total_steps / stages), 1)
        # The exponent is capped so that a long run cannot overflow into huge integers.
        return min(start * 2 ** min(step // length, 30), end) + 1
    if curriculum == "sqrt":
        inside = step / max(total_steps, 1) * ((end + 1) ** 2 - start**2) + start**2
        return max(math.ceil(math.sqrt(inside) - 1) + 1, 2)
    raise ValueError(f"unknown curriculum {curriculum!r}")


def adaptive_mu(points: int, start: int, mu_start: float) -> float:
    """Target rate mu(k) = exp(s0 ln mu0 / N(k)) of Song et al. 2023 (the paper's form; their code divides by N - 1)."""
    return math.exp(start * math.log(mu_start) / points)
