"""Metrics on features against the packages that compute them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import prdc
import torch
from cleanfid import fid
from scipy import linalg
from sklearn.metrics import pairwise_distances
from speed.harness import Row
from torch_fidelity import metric_fid, metric_prc
from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel

from cdmem.metrics.memorization.authenticity import authentic
from cdmem.metrics.quality.fidelity import kernel_interval, reference_of
from cdmem.metrics.quality.frechet import frechet_infinity, moments, moments_distance
from cdmem.metrics.quality.prdc import precision_recall_density_coverage

REAL, FAKE = 0, 1  # seeds


def features(count: int, size: int, seed: int) -> torch.Tensor:
    """Correlated, skewed and non-negative, like a network's: float32 (count, size); the fakes are shifted."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(64, size, generator=torch.Generator().manual_seed(99)) / 8
    hidden = torch.randn(count, 64, generator=draw) + 0.2 * (seed == FAKE)
    return (hidden @ mixing + 0.3 * torch.randn(count, size, generator=draw)).relu_()


def close(relative: float, *keys: str) -> Callable[[Any, Any], None]:
    """Numbers, or those of some keys, that differ by so little."""

    def check(a: Any, b: Any) -> None:
        for x, y in [(a[k], b[k]) for k in keys] if keys else [(a, b)]:
            assert abs(float(x) - float(y)) <= relative * abs(float(y)), (float(x), float(y))

    return check


def quiet_prdc(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """The package prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return prdc.compute_prdc(real, fake, 5)


def auth_pct(real: np.ndarray, fake: np.ndarray) -> float:
    """fld's formula: one table of distances within T, one to the samples."""
    among = pairwise_distances(real)
    np.fill_diagonal(among, np.inf)
    to = pairwise_distances(real, fake)
    nearest = to.argmin(0)
    return float((among.min(1)[nearest] < to[nearest, np.arange(len(fake))]).mean())


def fd_infinity(fake: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """dgm-eval's formula: 15 sizes, one random sample of each, a line in 1 / N; no interval."""
    draw, values = np.random.default_rng(0), []
    sizes = np.linspace(len(fake) // 10, len(fake), 15).astype(int)
    for size in sizes:
        rows = fake[draw.choice(len(fake), size, replace=False)]
        own = np.cov(rows, rowvar=False)
        root = linalg.sqrtm(own @ covariance).real
        values.append(((rows.mean(0) - mean) ** 2).sum() + np.trace(own + covariance - 2 * root))
    return float(np.polyfit(1 / sizes, values, 1)[1])


def kid_of_all(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """torchmetrics' estimator on all rows at once."""
    return maximum_mean_discrepancy(poly_kernel(fake, fake), poly_kernel(fake, real), poly_kernel(real, real))


def frechet_rows(size: int, goal: float) -> Iterator[Row]:
    real, fake = features(5000, size, REAL), features(5000, size, FAKE)
    r, f = real.numpy(), fake.numpy()

    def ours() -> float:
        return moments_distance(moments(real), moments(fake))

    yield Row(f"FD, 5,000 x {size:,}", "clean-fid", ours, lambda: fid.fid_from_feats(r, f), close(1e-4), goal, 2)
    if size == 1280:
        yield Row(
            f"FD, 5,000 x {size:,}",
            "torch-fidelity",
            ours,
            lambda: metric_fid.fid_statistics_to_metric(
                *map(metric_fid.fid_features_to_statistics, (real, fake)), False
            )["frechet_inception_distance"],
            close(1e-4),
            0.8,
            2,
        )


def rows() -> Iterator[Row]:
    """All of them, made one by one."""
    real, fake = features(2000, 1280, REAL), features(2000, 1280, FAKE)
    r, f = real.numpy(), fake.numpy()
    yield Row(
        "precision, recall, density, coverage, k = 5",
        "prdc",
        lambda: precision_recall_density_coverage(real, fake, 5),
        lambda: quiet_prdc(r, f),
        close(2e-3, "precision", "recall", "density", "coverage"),
        1.0,
    )
    yield Row(
        "precision, recall (density, coverage), k = 3",
        "torch-fidelity",
        lambda: precision_recall_density_coverage(real, fake, 3),
        lambda: metric_prc.prc_features_to_metric(
            fake, real, prc_neighborhood=3, prc_batch_size=10_000, save_cpu_ram=False, verbose=False
        ),
        close(2e-3, "precision", "recall"),
        1.0,
    )
    yield Row(
        "authentic share",
        "fld (formula)",
        lambda: authentic(fake, real).double().mean(),
        lambda: auth_pct(r, f),
        close(1e-3),
        1.0,
    )
    few, small = features(1500, 32, FAKE), moments(features(1500, 32, REAL))
    mean, covariance = small.mean.numpy(), (small.root.T @ small.root).numpy()
    yield Row(
        "FD-infinity with interval, 1,500 x 32",
        "dgm-eval (formula, no interval)",
        lambda: frechet_infinity(few, small, 0).value,
        lambda: fd_infinity(few.numpy(), mean, covariance),
        close(0.15),
        2.0,
    )
    yield from frechet_rows(1280, 0.3)
    yield from frechet_rows(2048, 1 / 6)
    reference = reference_of(real)
    yield Row(
        "KID with interval, reference known",
        "clean-fid (100 subsets)",
        lambda: kernel_interval(fake, reference).value,
        lambda: fid.kernel_distance(r, f, num_subsets=100, max_subset_size=1000),
        close(0.1),
        1.0,
        3,
    )
    yield Row(
        "KID with interval",
        "torchmetrics (all pairs)",
        lambda: kernel_interval(fake, reference_of(real)).value,
        lambda: kid_of_all(real, fake),
        close(1e-2),
        1.0,
    )
