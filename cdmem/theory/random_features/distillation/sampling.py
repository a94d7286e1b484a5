"""Samples of teacher, empirical score and student, and what is measured on them."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import softmax

from cdmem.theory.random_features.constants import delta
from cdmem.theory.random_features.distillation.chain import Chain
from cdmem.theory.random_features.distillation.leakage import ddim
from cdmem.theory.random_features.distillation.student import Readouts


def visited(count: int, nfe: int) -> list[int]:
    """Indices of the times that a sampler with ``nfe`` evaluations visits, from the last one down."""
    return [count - 1 - (j * count) // nfe for j in range(nfe)]


def teacher_samples(chain: Chain, x: np.ndarray, nfe: int, readouts: list[np.ndarray] | None = None) -> np.ndarray:
    """DDIM from noise x (S, d), the last step to the clean estimate; with other ``readouts`` than the chain's own if
    given."""
    order = visited(len(chain.times), nfe)
    for k, after in zip(order, [*order[1:], None]):
        M = (readouts or chain.readouts)[k]
        t_next = 0.0 if after is None else float(chain.times[after])
        x = ddim(x, float(chain.times[k]), t_next, chain.features(x) @ M.T)
    return x


def empirical_samples(chain: Chain, x: np.ndarray) -> np.ndarray:
    """The same walk over all times with the exact score of the training points."""
    order = visited(len(chain.times), len(chain.times))
    for k, after in zip(order, [*order[1:], None]):
        t = float(chain.times[k])
        means = math.exp(-t) * chain.data
        square = (x**2).sum(1)[:, None] + (means**2).sum(1) - 2 * x @ means.T
        score = (softmax(-square / (2 * delta(t)), axis=1) @ means - x) / delta(t)
        x = ddim(x, t, 0.0 if after is None else float(chain.times[after]), score)
    return x


def student_samples(chain: Chain, B: Readouts, x: np.ndarray, renoise: np.ndarray | None = None) -> np.ndarray:
    """One step from the last time; with ``renoise`` (S, d) a second one from the middle time."""

    def f(k: int, y: np.ndarray) -> np.ndarray:
        return chain.c_skip(k) * y + chain.c_out(k) * chain.features(y) @ B[k - 1].T

    clean = f(len(chain.times) - 1, x)
    if renoise is None:
        return clean
    middle = len(chain.times) // 2
    return f(middle, chain.c_skip(middle) * clean + chain.c_out(middle) * renoise)


def f_mem(samples: np.ndarray, data: np.ndarray, ratio: float = 1 / 3) -> float:
    """Share of samples (S, d) nearer to a training point (n, d) than ``ratio`` times the second-nearest, unsquared."""
    square = (samples**2).sum(1)[:, None] + (data**2).sum(1) - 2 * samples @ data.T
    two = np.sqrt(np.clip(np.partition(square, 1, axis=1)[:, :2], 0, None))
    return float((two.min(1) < ratio * two.max(1)).mean())


def variance_ratio(samples: np.ndarray) -> float:
    """tr Cov / d: 1 for the truth N(0, I)."""
    return float(samples.var(axis=0, ddof=1).mean())
