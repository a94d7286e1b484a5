"""Nearest training images in feature space: float32 products to find candidates, float64 differences to rank them.

|a|^2 + |b|^2 - 2 a.b subtracts large numbers to get a small one, so near copies drown in rounding. Here features are
centred, products are float32 (no TF32, no autocast), the nearest candidates are recomputed as sum (a - b)^2 in float64,
and every answer carries a *certificate*: the first row that is no candidate is farther, by more than the products can
be wrong, than the last group that is returned. What is not certified is searched again in float64 altogether. So the
answer is that of brute force in float64, whatever the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdmem.errors import InputError
from cdmem.metrics.precision import full_float32

TABLE_ENTRIES = 2**22  # of a block of distances: 16 MiB in float32
CANDIDATES = 16
HALF_ULP = 2.0**-24


@dataclass(frozen=True)
class FeatureNeighbors:
    """The nearest groups of each query.

    Attributes:
        squared: squared distances, float64 (B, K), ascending; infinite where there is no further group.
        groups: their groups, int64 (B, K); ties go to the group of the lowest row; -1 where there is none.
        nearest: the nearest row, int64 (B,); 0 where there is none.
        certified: answered by the candidates, bool (B,); the others were searched in float64.
    """

    squared: Tensor
    groups: Tensor
    nearest: Tensor
    certified: Tensor


def direct_squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of paired rows from differences, float64: (B, F), (B, F) -> (B,); 0 for equal rows."""
    step = max(TABLE_ENTRIES // max(a.shape[1], 1), 1)
    parts = [(x.double() - y.double()).square().sum(1) for x, y in zip(a.split(step), b.split(step))]
    return torch.cat(parts) if parts else a.new_zeros(0, dtype=torch.float64)


class FeatureIndex:
    """Search over groups of feature vectors.

    Args:
        features: float (n, F), n at least 1.
        groups: group of every row, int64 (n,); every row its own by default.
        candidates: rows that are ranked in float64.
    """

    def __init__(self, features: Tensor, groups: Tensor | None = None, candidates: int = CANDIDATES) -> None:
        if features.ndim != 2 or not len(features) or not features.is_floating_point():
            raise InputError("features", tuple(features.shape), "must be float (n, F) with n >= 1", "extract them")
        self.features = features
        self.groups = torch.arange(len(features)) if groups is None else groups
        self.candidates = candidates
        self.centre = features.double().mean(0)
        step = max(TABLE_ENTRIES // features.shape[1], 1)
        self.centred = torch.cat([(part.double() - self.centre).float() for part in features.split(step)])
        self.squares = torch.cat([part.double().square().sum(1) for part in self.centred.split(step)])
        self.farthest = float(self.squares.max().sqrt())

    def query(self, features: Tensor, k: int = 2, exclude: Tensor | None = None) -> FeatureNeighbors:
        """The k nearest groups of float features (B, F).

        Args:
            features: queries.
            k: groups wanted.
            exclude: a group per query to leave out, int64 (B,).

        Raises:
            InputError: features of another length.
        """
        if features.shape[1:] != self.features.shape[1:]:
            problem = f"the index holds features of length {self.features.shape[1]}"
            raise InputError("features", tuple(features.shape), problem, "use one extractor for both")
        count = len(features)
        squared = torch.full((count, k), torch.inf, dtype=torch.float64)
        groups = torch.full((count, k), -1)
        nearest, certified = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
        step = max(TABLE_ENTRIES // max(len(self.features), 1), 1)
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            skip = None if exclude is None else exclude[part]
            rows, beyond = self._candidates(features[part], k, skip)
            found = self._rank(features[part], rows, k, skip)
            # Fewer groups than asked for: only all rows can prove that there are no more.
            sure = found.squared[:, -1] < beyond
            for j in (~sure).nonzero().flatten().tolist():
                everything = torch.arange(len(self.features))[None]
                one = self._rank(features[part][j : j + 1], everything, k, None if skip is None else skip[j : j + 1])
                found.squared[j], found.groups[j], found.nearest[j] = one.squared[0], one.groups[0], one.nearest[0]
            squared[part], groups[part], nearest[part] = found.squared, found.groups, found.nearest
            certified[part] = sure
        return FeatureNeighbors(squared, groups, nearest, certified)

    def _candidates(self, queries: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows to rank (b, c), ascending, and a lower bound on the squared distance of all others, float64 (b,)."""
        centred = (queries.double() - self.centre).float()
        squares = centred.double().square().sum(1)
        with full_float32(queries.device):
            table = torch.addmm(self.squares.float()[None], centred, self.centred.T, alpha=-2)
        if exclude is not None:
            table.masked_fill_(exclude[:, None] == self.groups, torch.inf)
        wanted = min(max(self.candidates, k) + 1, table.shape[1])
        values, rows = table.topk(wanted, dim=1, largest=False)
        # Inputs rounded to float32, F products and sums, one more sum: twice the classical bound, to be generous.
        error = 2 * (queries.shape[1] + 4) * HALF_ULP * (squares.sqrt() + self.farthest).square()
        if wanted == table.shape[1]:
            return rows.sort(1).values, torch.full_like(squares, torch.inf)
        return rows[:, :-1].sort(1).values, values[:, -1].double() + squares - error

    def _rank(self, queries: Tensor, rows: Tensor, k: int, exclude: Tensor | None) -> FeatureNeighbors:
        """The k nearest groups among ``rows`` (b, c), by float64 differences; rows ascend, so ties go to the lowest."""
        b, c = len(queries), rows.shape[1]
        pairs = rows.expand(b, c).reshape(-1)
        squared = torch.empty(b * c, dtype=torch.float64)
        step = max(TABLE_ENTRIES // max(queries.shape[1], 1), 1)
        owner = torch.arange(b).repeat_interleave(c)
        for start in range(0, b * c, step):
            part = slice(start, start + step)
            squared[part] = direct_squared(queries[owner[part]], self.features[pairs[part]])
        squared, groups = squared.reshape(b, c), self.groups[pairs].reshape(b, c)
        if exclude is not None:
            squared = squared.masked_fill(groups == exclude[:, None], torch.inf)
        values = torch.full((b, k), torch.inf, dtype=torch.float64)
        ids = torch.full((b, k), -1)
        nearest = torch.zeros(b, dtype=torch.int64)
        for rank in range(k):
            least, column = squared.min(1)
            group = groups.gather(1, column[:, None])
            there = least.isfinite()
            values[:, rank], ids[:, rank] = least, torch.where(there, group.flatten(), -1)
            if rank == 0:
                nearest = torch.where(there, rows.expand(b, c).gather(1, column[:, None]).flatten(), 0)
            squared = squared.masked_fill(groups == group, torch.inf)
        return FeatureNeighbors(values, ids, nearest, torch.ones(b, dtype=torch.bool))
