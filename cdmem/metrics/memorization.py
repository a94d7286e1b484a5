r"""The memorised fraction: share of samples much closer to one training image than to any other.

.. math:: f_{mem} = \frac1m \sum_x 1\left[d_1(x) / d_2(x) < c\right]

with d_1, d_2 the L2 distances to the nearest and second-nearest *group* of T and c = 1/3 (Yoon et al. 2023).
Groups, not rows: with duplicated rows d_1 = d_2 and a perfect copier would read 0 %.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from cdmem.errors import InputError
from cdmem.metrics.neighbors import NeighborIndex
from cdmem.metrics.statistics import wilson_interval

ROWS = ("seeds", "squared1", "squared2", "group1")


def memorized(squared1: Tensor, squared2: Tensor, threshold: float = 1 / 3) -> Tensor:
    """d1 / d2 < threshold from exact squared distances, bool (m,); a bit-exact copy is memorised."""
    return squared1.double() < threshold**2 * squared2.double()


class MemorizedFraction(Metric):
    """f_mem with its 95 % Wilson interval.

    Args:
        index: search over T.
        threshold: c.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    seeds: list[Tensor]
    squared1: list[Tensor]
    squared2: list[Tensor]
    group1: list[Tensor]

    def __init__(self, index: NeighborIndex, threshold: float = 1 / 3) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise InputError("threshold", threshold, "must be in (0, 1]", "1/3 is customary")
        self.index, self.threshold = index, threshold
        for name in ROWS:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, images: Tensor, seeds: Tensor) -> None:
        """Add uint8 images (B, C, H, W) and their seeds, int64 (B,)."""
        found = self.index.query(images)
        self.seeds.append(seeds.to(self.device, torch.int64))
        self.squared1.append(found.squared1.to(self.device))
        self.squared2.append(found.squared2.to(self.device))
        self.group1.append(found.group1.to(self.device))

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # torchmetrics would send float32 for a share without samples, which the other ranks read as int64.
        for name in ROWS:
            if not len(getattr(self, name)):
                setattr(self, name, [torch.zeros(0, dtype=torch.int64, device=self.device)])
        super()._sync_dist(*args, **kwargs)

    def _state(self, name: str) -> Tensor:
        value = getattr(self, name)
        return dim_zero_cat(value) if len(value) else torch.zeros(0, dtype=torch.int64)

    def rows(self) -> dict[str, Tensor]:
        """One row a seed, sorted by seed: ``seeds``, ``squared1``, ``squared2``, ``group1``, int64 (m,) on the CPU.

        Under several processes this gathers; seeds that a sampler padded are counted once.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=True):
            return self._unique_rows()

    def _unique_rows(self) -> dict[str, Tensor]:
        columns = {name: self._state(name).cpu() for name in ROWS}
        seeds = columns["seeds"]
        order = torch.argsort(seeds, stable=True)
        keep = torch.ones(len(seeds), dtype=torch.bool)
        keep[1:] = seeds[order][1:] != seeds[order][:-1]
        return {name: column[order][keep] for name, column in columns.items()}

    def compute(self) -> dict[str, float]:
        """``f_mem``, ``f_mem_low``, ``f_mem_high``, ``samples``, ``unique`` (training images hit), ``median_ratio``.

        Raises:
            InputError: no samples.
        """
        rows = self._unique_rows()
        hit = memorized(rows["squared1"], rows["squared2"], self.threshold)
        count, total = int(hit.sum()), len(hit)
        low, high = wilson_interval(count, total)
        ratio = (rows["squared1"].double() / rows["squared2"].double().clamp_min(1e-300)).sqrt()
        return {
            "f_mem": count / total,
            "f_mem_low": low,
            "f_mem_high": high,
            "samples": float(total),
            "unique": float(len(torch.unique(rows["group1"][hit]))),
            "median_ratio": float(ratio.median()),
        }
