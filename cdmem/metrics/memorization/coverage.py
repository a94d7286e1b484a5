r"""Which training images come back: hits, unique images, how many more there are, and whether duplication explains it.

A memorised fraction of 60 % can mean 60 images or 6,000. With hits_i the memorised samples whose nearest group is i:

* unique S, and Chao's lower bound :math:`S + f_1 (f_1 - 1) / (2 (f_2 + 1))` on the number that a longer run would find
  (Chao 1984; f_k groups were hit k times): *at least* so many, however many more there are;
* Good and Turing's covered mass :math:`1 - f_1 / m_{mem}`: the chance that the next memorised sample is a known image;
* effective number :math:`\exp H(hits / m_{mem})`;
* the response to duplication, see `cdmem.metrics.memorization.duplication`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from cdmem.metrics.memorization.duplication import duplication_slope
from cdmem.metrics.memorization.fraction import RatioMetric
from cdmem.metrics.statistics import fraction

ONE_SIDED_95 = 1.6448536269514722


def hit_counts(groups: Tensor, hit: Tensor, num_groups: int) -> Tensor:
    """Memorised samples per group, int64 (G,): ``groups`` int64 (m,) nearest group, ``hit`` bool (m,)."""
    return torch.bincount(groups[hit], minlength=num_groups)


def coverage(hits: Tensor) -> dict[str, float]:
    """How much of T came back, from hits per group int64 (G,).

    Returns:
        ``unique``, ``unique_share``, ``chao1`` and ``chao1_low`` (:func:`chao1`), ``good_turing`` (NaN without hits),
        ``effective``, ``most_hits``.
    """
    unique, total = int((hits > 0).sum()), int(hits.sum())
    once, (estimate, low) = int((hits == 1).sum()), chao1(hits)
    share = hits[hits > 0].double() / max(total, 1)
    return {
        "unique": float(unique),
        "unique_share": unique / len(hits),
        "chao1": estimate,
        "chao1_low": low,
        "good_turing": 1 - once / total if total else math.nan,
        "effective": float(torch.exp(-(share * share.log()).sum())) if total else 0.0,
        "most_hits": float(hits.max()),
    }


def chao1(hits: Tensor) -> tuple[float, float]:
    """Chao's estimate of how many groups a longer run would hit, and its one-sided 95 % lower bound, a whole number.

    The estimate is itself a lower bound of the expected total: images that are hit rarely enough leave no trace in f_1
    and f_2. So there is no upper bound. The lower one is log-normal in the part that was not seen (Chao 1987), with the
    variance of f_2 taken as f_2 + 1, so that f_2 = 0 is not certain; it covers >= 94 % (docs/metrics.md).

    Args:
        hits: int64 (G,).
    """
    unique, once, twice = (int(found.sum()) for found in (hits > 0, hits == 1, hits == 2))
    a, b = once, twice + 1
    extra = a * (a - 1) / (2 * b)
    if extra == 0:
        return float(unique), float(unique)
    variance = extra + a * (2 * a - 1) ** 2 / (4 * b**2) + a**2 * (a - 1) ** 2 / (4 * b**3)
    factor = math.exp(ONE_SIDED_95 * math.sqrt(math.log1p(variance / extra**2)))
    return unique + extra, float(min(math.floor(unique + extra / factor), len(hits)))


def hits_by_multiplicity(hits: Tensor, copies: Tensor, samples: int) -> list[dict[str, Any]]:
    """One row per multiplicity: ``copies``, ``groups``, ``p_hit`` (share hit at least once) with ``ci95`` (Wilson),
    ``hits_per_sample`` (mean over its groups of hits / samples)."""
    table = []
    for c in torch.unique(copies).tolist():
        mine = hits[copies == c]
        p_hit, low, high = fraction(int((mine > 0).sum()), len(mine))
        rate = float(mine.double().mean()) / samples
        row = {"copies": c, "groups": len(mine), "p_hit": p_hit, "ci95": [low, high], "hits_per_sample": rate}
        table.append(row)
    return table


def hits_against_spacing(hits: Tensor, spacing: Tensor, bins: int = 4) -> dict[str, Any]:
    """Are isolated images memorised first? Spearman's rho of hits against the distance to the nearest other group.

    Args:
        hits: int64 (G,).
        spacing: float64 (G,), grey levels.
        bins: groups of equal size by spacing.

    Returns:
        ``spearman``, ``p_value`` (None where a side is constant), and ``bins``: ``spacing`` (mean), ``groups``,
        ``hits``.
    """
    constant = len(torch.unique(hits)) < 2 or len(torch.unique(spacing)) < 2
    rho = None if constant else stats.spearmanr(hits.numpy(), spacing.numpy())
    order = torch.argsort(spacing, stable=True)
    parts = [p for p in torch.tensor_split(order, min(bins, len(order))) if len(p)]
    table = [
        {"spacing": float(spacing[p].mean()), "groups": len(p), "hits": float(hits[p].double().mean())} for p in parts
    ]
    return {
        "spearman": None if rho is None else float(rho.statistic),
        "p_value": None if rho is None else float(rho.pvalue),
        "bins": table,
    }


class HitCoverage(RatioMetric):
    """Unique memorised images, estimates of how many there are, and the response to duplication and isolation.

    Args:
        threshold: memorised means d1 / d2 below it.
        near_duplicates: grouping.
    """

    def hits_by_group(self, rows: dict[str, Tensor]) -> Tensor:
        """Memorised samples per group of T, int64 (G,)."""
        return hit_counts(rows["groups"][:, 0], self.hits(rows), self.search.index.num_groups)

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """:func:`coverage`, and ``duplication_slope`` with ``_low`` and ``_high`` where multiplicities differ; infinite
        where only images of the largest, or of the smallest, came back."""
        hits = self.hits_by_group(rows)
        values, slope = coverage(hits), duplication_slope(hits, self.search.multiplicities)
        return values if slope is None else values | slope.columns("duplication_slope")

    def detail(self, rows: dict[str, Tensor]) -> dict[str, Any]:
        """What a report shows beyond single numbers: ``by_multiplicity``, ``by_spacing``, ``top`` (most-hit groups) and
        ``histogram`` (hits -> how many groups have so many)."""
        hits = self.hits_by_group(rows)
        order = torch.argsort(hits, descending=True, stable=True)[:20]
        first = self.search.index.representatives.cpu()
        top = [{"image": int(first[g]), "hits": int(hits[g])} for g in order.tolist() if hits[g] > 0]
        return {
            "by_multiplicity": hits_by_multiplicity(hits, self.search.multiplicities, len(rows["squared"])),
            "by_spacing": hits_against_spacing(hits, self.search.spacing()),
            "top": top,
            "histogram": {int(h): int((hits == h).sum()) for h in torch.unique(hits)},
        }
