"""Simulated coverage of the 95 % intervals: how often each holds a truth that is known.

    python benchmarks/coverage.py                     # all, 1,000 repetitions; half an hour on one core
    python benchmarks/coverage.py slope --repetitions 200

`fd`: a Gaussian with features of variance k^-p, moved by `shift` standard deviations, against a fixed one; the truth is
the mean over the repetitions. `kid`: both sides drawn anew, N(0, I) and N(shift, I); the truth in closed form. `slope`:
hits in proportion to copies times an image's own factor. `chao1`: the lower bound against the number of images, and the
median bound as a share of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cdmem.metrics.memorization.coverage import chao1
from cdmem.metrics.memorization.duplication import duplication_slope
from cdmem.metrics.quality.fidelity import kernel_interval, reference_of
from cdmem.metrics.quality.frechet import frechet_interval, moments
from cdmem.metrics.statistics import Estimate

FRECHET = [  # images, features, p, shift
    *((300, 6, 0.0, 0.0), (300, 6, 0.0, 0.2), (40, 20, 0.5, 0.0), (200, 30, 0.5, 0.2), (60, 60, 0.5, 0.0)),
    *((60, 60, 0.5, 0.3), (200, 60, 0.0, 0.0), (30, 60, 0.5, 0.5), (200, 150, 0.5, 0.0)),
    *((300, 60, 1.0, 0.2), (120, 60, 1.0, 0.3), (60, 60, 1.0, 0.3)),
]
KERNEL = [  # images of both sides, features, shift
    *((100, 100, 8, 0.0), (100, 100, 8, 0.1), (100, 100, 8, 0.3), (100, 100, 8, 1.0), (30, 30, 8, 0.0)),
    *((30, 30, 8, 0.3), (100, 300, 64, 0.1), (300, 100, 64, 0.1), (400, 400, 8, 0.1), (100, 100, 3, 0.0)),
]
DESIGNS = {
    "10 of 256 images x 50": [1] * 246 + [50] * 10,
    "3 of 64 x 8": [1] * 61 + [8] * 3,
    "6, 3, 3 images x 1, 2, 8": [1] * 6 + [2] * 3 + [8] * 3,
    "16 each x 1, 2, 4, 8": [c for c in (1, 2, 4, 8) for _ in range(16)],
}
FACTORS = {"equal": None, "gamma, shape 2": (2, "all"), "exponential": (1, "all"), "of duplicates only": (2, "most")}
IMAGES, SAMPLES = (50, 300, 2000), (50, 400, 2000)
SKEWS = {"uniform": None, "gamma, shape 5": 5.0, "gamma, shape 1": 1.0, "gamma, shape 0.3": 0.3}


def normal(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=draw, dtype=torch.float64)


def frechet(repetitions: int) -> Iterator[tuple[str, list[Estimate], float]]:
    for images, features, power, shift in FRECHET:
        draw = torch.Generator().manual_seed(0)
        scale = torch.arange(1, features + 1, dtype=torch.float64) ** (-power / 2)
        reference = moments(normal(4000, features, draw) * scale)
        found = [
            frechet_interval((normal(images, features, draw) + shift) * scale, reference) for _ in range(repetitions)
        ]
        name = f"{images} images, {features} features of variance k^-{power:g}, shift {shift:g}"
        yield name, found, float(np.mean([f.value for f in found]))


def squared_mmd(shift: float, d: int) -> float:
    """Of N(0, I) and N(shift, I) in d dimensions, for the kernel (a.b / d + 1)^3."""

    def kernel(ab: float, aa: float, bb: float) -> float:
        second, third = ab**2 + aa + bb + d, ab**3 + 3 * ab * (aa + bb + d + 2)
        return third / d**3 + 3 * second / d**2 + 3 * ab / d + 1

    s = d * shift**2
    return kernel(0, 0, 0) + kernel(s, s, s) - 2 * kernel(0, 0, s)


def kernel(repetitions: int) -> Iterator[tuple[str, list[Estimate], float]]:
    for n, m, features, shift in KERNEL:
        draw = torch.Generator().manual_seed(0)
        found = [
            kernel_interval(normal(n, features, draw), reference_of(normal(m, features, draw) + shift))
            for _ in range(repetitions)
        ]
        yield f"{n} and {m} images, {features} features, shift {shift:g}", found, squared_mmd(shift, features)


def slope(repetitions: int) -> Iterator[tuple[str, list[Estimate], float]]:
    for design, numbers in DESIGNS.items():
        copies = np.array(numbers)
        for law, factor in FACTORS.items():
            for samples in (100, 1000):
                rng, found = np.random.default_rng(0), []
                for _ in range(repetitions):
                    weights = copies.astype(float)
                    if factor is not None:
                        own = rng.gamma(factor[0], 1 / factor[0], len(copies))
                        weights = np.where((copies > 1) | (factor[1] == "all"), weights * own, weights)
                    hits = rng.multinomial(samples, weights / weights.sum())
                    estimate = duplication_slope(torch.from_numpy(hits), torch.from_numpy(copies))
                    found += [estimate] if estimate else []
                yield f"{design}, {samples:,} hits, factors {law}", found, 1.0


def lower_bound(repetitions: int) -> Iterator[tuple[str, list[Estimate], float]]:
    for images in IMAGES:
        for samples in SAMPLES:
            for law, shape in SKEWS.items():
                rng, found = np.random.default_rng(0), []
                for _ in range(repetitions):
                    weights = np.ones(images) if shape is None else rng.gamma(shape, 1, images)
                    hits = rng.multinomial(samples, weights / weights.sum())
                    value, low = chao1(torch.from_numpy(np.append(hits, np.zeros(10 * images, dtype=np.int64))))
                    found.append(Estimate(value, low, np.inf))
                yield f"{images:,} images, {samples:,} hits, {law}", found, float(images)


SIMULATIONS = {"fd": frechet, "kid": kernel, "slope": slope, "chao1": lower_bound}


def main(names: list[str], repetitions: int) -> None:
    """Print a table a simulation."""
    for name in names or SIMULATIONS:
        last = "median bound" if name == "chao1" else "median width"
        print(f"\n| {name} | held the truth | truth below | truth above | {last} |\n|---|---|---|---|---|")
        for case, found, truth in SIMULATIONS[name](repetitions):
            _, low, high = np.array(found).T
            size = low / truth if name == "chao1" else high - low
            held = np.mean((low <= truth) & (truth <= high))
            misses = f"{np.mean(truth < low):.3f} | {np.mean(truth > high):.3f}"
            print(f"| {case} | {held:.3f} | {misses} | {np.median(size):.3g} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join(SIMULATIONS))
    parser.add_argument("--repetitions", type=int, default=1000)
    main(**vars(parser.parse_args()))
