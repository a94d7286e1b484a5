r"""The memorised fraction: share of samples much closer to one training image than to any other.

.. math:: f_{mem} = \frac1m \sum_x 1\left[d_1(x) / d_2(x) < c\right]

with d_1, d_2 the L2 distances to the nearest and second-nearest *group* of T and c = 1/3 (Yoon et al. 2023).
Groups, not rows: with duplicated rows d_1 = d_2 and a perfect copier would read 0 %. A blend of a training image with a
share a of its nearest other image has d_1 / d_2 = a / (1 - a), so 1/3 means "at most a quarter of another image".
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cdmem.errors import InputError
from cdmem.metrics.memorization.ratio import memorized, ratios
from cdmem.metrics.neighbors.index import NearDuplicates, NeighborMetric
from cdmem.metrics.statistics import fraction as estimated
from cdmem.metrics.statistics import median, share

THRESHOLDS = (1 / 2, 1 / 3, 1 / 4)
CDF_GRID = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)


def ratio_cdf(ratio: Tensor, grid: Tensor = CDF_GRID) -> Tensor:
    """Share of samples with d1 / d2 < g for every g of ``grid`` (sorted), float64 of the grid's length."""
    return torch.searchsorted(ratio.sort().values, grid, right=False).double() / max(len(ratio), 1)


def fraction(hits: Tensor) -> dict[str, float | list[float]]:
    """A share with its 95 % Wilson interval: ``value`` and ``ci95``."""
    return estimated(int(hits.sum()), len(hits)).record()


def disk_rows(rows: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Rows as they are stored: ``seeds``, ``squared1``, ``squared2``, ``group1``, int64 (m,); where tolerant copies
    were looked for ``tolerant_ratio``, float64 (m,), and ``tolerant_group``, int64 (m,)."""
    columns = {"seeds": rows["seeds"], "squared1": rows["squared"][:, 0], "squared2": rows["squared"][:, 1]}
    columns |= {"group1": rows["groups"][:, 0]}
    columns |= {name: rows[name] for name in ("tolerant_ratio", "tolerant_group") if name in rows}
    return {name: value.numpy() for name, value in columns.items()}


class RatioMetric(NeighborMetric):
    """Base of metrics on which samples are memorised.

    Args:
        threshold: memorised means d1 / d2 below it.
        near_duplicates: grouping.
    """

    def __init__(self, threshold: float = 1 / 3, near_duplicates: NearDuplicates = "off") -> None:
        super().__init__(2, near_duplicates)
        if not 0 < threshold <= 1:
            raise InputError("threshold", threshold, "must be in (0, 1]", "1/3 is customary")
        self.threshold = threshold

    def hits(self, rows: dict[str, Tensor]) -> Tensor:
        """Which samples are memorised, bool (m,)."""
        return memorized(rows["squared"][:, 0], rows["squared"][:, 1], self.threshold)


class MemorizedFraction(RatioMetric):
    """f_mem with its 95 % Wilson interval, at the chosen threshold and at 1/2, 1/3, 1/4, and the CDF of d1 / d2.

    Args:
        threshold: c.
        near_duplicates: ``off``, ``auto`` or a ratio: which training images count as one, see
            `cdmem.metrics.neighbors.near_duplicates`.
    """

    higher_is_better = False

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """``f_mem``, ``f_mem_low``, ``f_mem_high``, ``samples``, ``unique`` (groups hit), ``median_ratio``,
        ``f_mem_1/2``, ``f_mem_1/3``, ``f_mem_1/4`` and ``cdf_area`` (1 minus the mean ratio)."""
        hit, ratio = self.hits(rows), ratios(rows["squared"])
        values = {
            **share("f_mem", int(hit.sum()), len(hit)),
            "samples": float(len(hit)),
            "unique": float(len(torch.unique(rows["groups"][:, 0][hit]))),
            "median_ratio": median(ratio),
            "cdf_area": float(1 - ratio.mean()),
        }
        for threshold in THRESHOLDS:
            at = memorized(rows["squared"][:, 0], rows["squared"][:, 1], threshold)
            values[f"f_mem_1/{round(1 / threshold)}"] = int(at.sum()) / len(at)
        return values
