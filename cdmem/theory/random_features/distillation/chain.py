"""The moments of every distillation pair: all that students under any ridge or training time need."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from cdmem.theory.random_features.constants import delta
from cdmem.theory.random_features.distillation.leakage import BATCH, ddim
from cdmem.theory.random_features.flow import Filter, Modes
from cdmem.theory.random_features.model import Features, noised


@dataclass(frozen=True)
class Level:
    """One time t_k > t_0, in the basis Q of its U.

    Attributes:
        t: OU time.
        eigenvalues: (p,), ascending.
        Q: (p, p), eigenvectors as columns.
        x: E[x phi^T] Q, (d, p).
        target: E[x^ phi^T] Q, (d, p), where x^ is the teacher's step to t_(k-1); at k = 1 its clean estimate.
        after: E[phi(x^) phi(x)^T] Q, (p, p); None at k = 1, where the target is no student.
    """

    t: float
    eigenvalues: np.ndarray
    Q: np.ndarray
    x: np.ndarray
    target: np.ndarray
    after: np.ndarray | None


@dataclass(frozen=True)
class Chain:
    """A teacher on a grid of times and the pairs between them.

    Attributes:
        times: (K,), ascending.
        modes: of the teacher at every time.
        readouts: M_k (d, p) of the teacher that is distilled.
        levels: for k = 1 .. K - 1.
    """

    features: Features
    data: np.ndarray
    times: np.ndarray
    modes: list[Modes]
    readouts: list[np.ndarray]
    levels: list[Level]

    def score(self, k: int, x: np.ndarray) -> np.ndarray:
        """The teacher's score at t_k."""
        return self.features(x) @ self.readouts[k].T

    def c_skip(self, k: int) -> float:
        """e^-t (assumed)."""
        return math.exp(-self.times[k])

    def c_out(self, k: int) -> float:
        """sqrt(Delta) (assumed)."""
        return math.sqrt(delta(self.times[k]))


def build(
    features: Features, data: np.ndarray, times: np.ndarray, teacher: Filter, draws: int, rng: np.random.Generator
) -> Chain:
    """Fresh noise for every level, and the same draws within a level for teacher and pair.

    Args:
        features: shared by all times; each time has a readout of its own.
        data: training points (n, d), for teacher and student.
        times: ascending, (K,).
        teacher: filter of the teacher's readouts.
        draws: noise draws per training point and level; draws * n should be several times p.
    """
    modes, readouts, levels = [], [], []
    for k, t in enumerate(map(float, times)):
        noise = rng.standard_normal((draws, *data.shape))
        x = noised(data, t, noise).reshape(-1, features.d)
        phi, xi = features(x), noise.reshape(-1, features.d)
        eigenvalues, Q = eigh(phi.T @ phi / len(x), check_finite=False)
        modes.append(Modes(t, eigenvalues, Q, Q.T @ (phi.T @ xi) / len(x)))
        readouts.append(modes[-1].readout(teacher))
        if k == 0:
            continue
        earlier = float(times[k - 1])
        seen = x.T @ phi / len(x)
        target, after = np.zeros_like(seen), np.zeros((features.p, features.p)) if k > 1 else None
        for b in range(0, len(x), BATCH):
            part = slice(b, b + BATCH)
            stepped = ddim(x[part], t, earlier, phi[part] @ readouts[k].T)
            arrived = features(stepped)
            if after is None:  # the consistency function at t_0 is the teacher's clean estimate (assumed)
                stepped = ddim(stepped, earlier, 0.0, arrived @ readouts[0].T)
            else:
                after += arrived.T @ phi[part] / len(x)
            target += stepped.T @ phi[part] / len(x)
        levels.append(Level(t, eigenvalues, Q, seen @ Q, target @ Q, None if after is None else after @ Q))
    return Chain(features, data, times, modes, readouts, levels)
