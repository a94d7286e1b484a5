"""Nearest images and nearest features against faiss, and a sampler against a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
import torch
from neighbors import one_over_f
from speed.harness import Row
from speed.metrics import FAKE, REAL, features

from cdmem.metrics.neighbors.features import FeatureIndex
from cdmem.metrics.neighbors.pixels import NeighborIndex


def flat(rows: np.ndarray, queries: np.ndarray) -> Any:
    """faiss on one thread, building included, as for one audit."""
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)
    return index.search(queries, 2)


def same_nearest(at_least: float) -> Callable[[Any, Any], None]:
    """The same nearest row, but for ties and what faiss' float32 confuses."""

    def check(a: Any, b: Any) -> None:
        share = float((a.nearest == torch.from_numpy(b[1][:, 0])).double().mean())
        assert share >= at_least, share

    return check


def rows() -> Iterator[Row]:
    """Pixels of two sizes, and features with their certificate."""
    for count, goal in ((50_000, 0.5), (1_700, 1.0)):
        train, asked = one_over_f(count, 0), one_over_f(2_000, 1)
        r, q = train.flatten(1).float().numpy(), asked.flatten(1).float().numpy()
        yield Row(
            f"nearest images, 2,000 x {count:,} of 32x32x3",
            "faiss IndexFlatL2",
            lambda train=train, asked=asked: NeighborIndex(train).query(asked),
            lambda r=r, q=q: flat(r, q),
            same_nearest(0.99),
            goal,
            3,
        )
    real, fake = features(1_700, 1280, REAL), features(2_000, 1280, FAKE)
    yield Row(
        "nearest features, 2,000 x 1,700 x 1,280",
        "faiss IndexFlatL2",
        lambda: FeatureIndex(real).query(fake),
        lambda: flat(real.numpy(), fake.numpy()),
        same_nearest(0.999),
        1.5,
    )
