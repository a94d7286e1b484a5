"""The random-feature laboratory against a plain numpy transcription of the formulas, both in one run.

    python benchmarks/random_features.py                 # d 30, psi_p 32, psi_n 4: seconds
    python benchmarks/random_features.py --d 50 --draws 400

Compared are the same quantities on the same weights and points: U and V (exact against a mean over noise draws), the
losses and the score error along training (one eigen-decomposition and p^2 per time against products of p x p matrices
at every time, and 200,000 fresh points for the test side), and the spectrum of the Gaussian equivalent (by its rank
n + d against p). The transcription is what the formulas say, vectorised, without their structure. It is not exact: its
largest differences from the laboratory are printed, and shrink with --draws.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from cdmem.theory.random_features.flow import curve, modes
from cdmem.theory.random_features.model import constants, gaussian_data, make_features
from cdmem.theory.random_features.moments import population_moments, training_moments
from cdmem.theory.random_features.spectrum import equivalent_eigenvalues

T = TypeVar("T")
FRESH = 200_000


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work returns, and its seconds."""
    began = time.perf_counter()
    found = work()
    return found, time.perf_counter() - began


def plain_moments(
    W: np.ndarray, X: np.ndarray, t: float, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """(2.2) by ``draws`` noises per point: U, V and E[phi x_t^T]."""
    p, d = W.shape
    U, V, Y = np.zeros((p, p)), np.zeros((p, d)), np.zeros((p, d))
    for _ in range(draws):
        xi = rng.standard_normal(X.shape)
        x = math.exp(-t) * X + math.sqrt(1 - math.exp(-2 * t)) * xi
        phi = np.tanh(x @ W.T / math.sqrt(d))
        U += phi.T @ phi / len(X) / draws
        V += phi.T @ xi / len(X) / draws
        Y += phi.T @ x / len(X) / draws
    return U, V, Y


def plain_curve(
    U: np.ndarray, V: np.ndarray, fresh: tuple[np.ndarray, ...], t: float, taus: np.ndarray
) -> list[tuple[float, ...]]:
    """(2.3), (2.4) and (2.6) as they are printed: two products of p x p matrices per time. Unit covariance."""
    p, d = V.shape
    noise = 1 - math.exp(-2 * t)
    lam, Q = np.linalg.eigh(U)
    start = -V.T @ np.linalg.inv(U) / math.sqrt(noise)
    found = []
    for tau in taus:
        M = start - start @ (Q @ np.diag(np.exp(-2 * noise * lam * tau / (p / d))) @ Q.T)
        losses = []
        for u, v in ((U, V), fresh[:2]):
            losses.append(1 + noise / d * np.trace(M @ u @ M.T) + 2 * math.sqrt(noise) / d * np.trace(M @ v))
        score = (np.trace(M @ fresh[0] @ M.T) + 2 * np.trace(M @ fresh[2]) + d) / d
        found.append((*losses, score))
    return found


def main() -> None:
    """Time both and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=30)
    parser.add_argument("--psi_p", type=int, default=32)
    parser.add_argument("--psi_n", type=int, default=4)
    parser.add_argument("--t", type=float, default=0.1)
    parser.add_argument("--draws", type=int, default=200, help="noises per point of the transcription")
    parser.add_argument("--times", type=int, default=60, help="training times")
    args = parser.parse_args()
    d, p, n, t = args.d, args.d * args.psi_p, args.d * args.psi_n, args.t
    rng = np.random.default_rng(0)
    features, data, spectrum = make_features(p, d, rng), gaussian_data(n, np.ones(d), rng), np.ones(d)
    taus = np.geomspace(1, 1e6, args.times)
    record: dict[str, float] = {"d": d, "p": p, "n": n, "t": t, "draws": args.draws, "times": args.times}

    (U, V, _), plain = timed(lambda: plain_moments(features.weights, data, t, args.draws, rng))
    exact, ours = timed(lambda: training_moments(features, data, t))
    record |= {"moments_plain_s": plain, "moments_cdmem_s": ours}
    record["largest_difference_of_U"] = float(np.abs(U - exact.U).max())

    X = gaussian_data(FRESH // 10, spectrum, rng)
    fresh, plain = timed(lambda: plain_moments(features.weights, X, t, 10, rng))
    population, ours = timed(lambda: population_moments(features, spectrum, t))
    record |= {"population_plain_s": plain, "population_cdmem_s": ours}

    transcribed, plain = timed(lambda: plain_curve(U, V, fresh, t, taus))
    path, ours = timed(lambda: curve(modes(exact, t), population, features.psi_p, taus))
    record |= {"curve_plain_s": plain, "curve_cdmem_s": ours}
    for k, name in enumerate(("train", "test", "score")):
        mine, theirs = np.array(getattr(path, name)), np.array([row[k] for row in transcribed])
        record[f"largest_difference_of_{name}"] = float(np.abs(mine / theirs - 1).max())

    c = constants(t)

    def whole() -> np.ndarray:
        W = features.weights
        G = math.exp(-t) * c.a * W @ data.T / math.sqrt(d) + math.sqrt(c.v2) * rng.standard_normal((p, n))
        return np.linalg.eigvalsh(G @ G.T / n + c.b**2 * W @ W.T / d + c.s2 * np.eye(p))

    _, plain = timed(whole)
    _, ours = timed(lambda: equivalent_eigenvalues(features, data, c, rng))
    record |= {"equivalent_plain_s": plain, "equivalent_cdmem_s": ours}
    for name in ("moments", "population", "curve", "equivalent"):
        record[f"{name}_ratio"] = record[f"{name}_cdmem_s"] / record[f"{name}_plain_s"]
    total = [sum(v for k, v in record.items() if k.endswith(f"{who}_s")) for who in ("plain", "cdmem")]
    record |= {"plain_s": total[0], "cdmem_s": total[1], "ratio": total[1] / total[0]}
    print(json.dumps({k: v if isinstance(v, int) else float(f"{v:.4g}") for k, v in record.items()}))


if __name__ == "__main__":
    main()
