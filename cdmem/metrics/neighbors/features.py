"""Nearest training images in feature space: float32 products to find candidates, float64 differences to rank them.

|a|^2 + |b|^2 - 2 a.b subtracts large numbers to get a small one, so near copies drown in rounding. Here features are
centred, products are float32 (no TF32, no autocast), the nearest candidates are recomputed as sum (a - b)^2 in float64,
and every answer carries a *certificate*: all rows that are no candidates are farther, even if their products are as
wrong as they can be, than the last group that is returned. What is not certified is tried with more candidates, then
against all rows. So the answer is that of brute force in float64, whatever the blocks.

The rounding of one product form is at most e (|a| + |b|)^2 <= 2 e (|a|^2 + |b|^2), with e = F 2^-24 and a few more, so
(1 - 2e) (|a|^2 + |b|^2) - 2 a.b bounds the distance from below, row by row: a far row loosens its own bound only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cdmem.errors import InputError
from cdmem.metrics.neighbors.pixels import full_float32

TABLE_ENTRIES = 2**22  # of a block of distances: 16 MiB in float32
PAIR_ENTRIES = 2**18  # of a block of differences: 2 MiB in float64 stay in the cache
CANDIDATES = 16
WIDER = 16  # times as many for a second attempt
HALF_ULP = 2.0**-24
LARGEST = 1e37  # squares beyond it could overflow float32


@dataclass(frozen=True)
class FeatureNeighbors:
    """The nearest groups of each query.

    Attributes:
        squared: squared distances, float64 (B, K), ascending; infinite where there is no further group.
        groups: their groups, int64 (B, K); ties go to the group of the lowest row; -1 where there is none.
        nearest: the nearest row, int64 (B,); 0 where there is none.
        certified: the candidates sufficed, bool (B,); the others were compared with all rows in float64.
    """

    squared: Tensor
    groups: Tensor
    nearest: Tensor
    certified: Tensor


def block_rows(rows: Tensor) -> int:
    """How many rows (n, F) make a block of differences."""
    return max(PAIR_ENTRIES // max(rows.shape[1], 1), 1)


def direct_squared(a: Tensor, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Squared distances of rows a[i] to b[j] from differences: (n, F), (m, F), int64 (B,) twice -> float64 (B,).

    Equal rows are at 0. Rows are gathered a block at a time.
    """
    step = block_rows(a)
    return torch.cat([(a[p].double() - b[q]).square_().sum(1) for p, q in zip(i.split(step), j.split(step))])


class FeatureIndex:
    """Search over groups of feature vectors.

    Args:
        features: float (n, F), n at least 1, finite.
        groups: group of every row, int64 (n,); every row its own by default.
        candidates: rows that are ranked in float64, besides the k nearest.

    Raises:
        InputError: not float (n, F), or not finite.
    """

    def __init__(self, features: Tensor, groups: Tensor | None = None, candidates: int = CANDIDATES) -> None:
        if features.ndim != 2 or not len(features) or not features.is_floating_point():
            raise InputError("features", tuple(features.shape), "must be float (n, F) with n >= 1", "extract them")
        self.features = features
        self.groups = torch.arange(len(features)) if groups is None else groups
        self.candidates = candidates
        step = block_rows(features)
        self.centre = torch.stack([part.double().sum(0) for part in features.split(step)]).sum(0) / len(features)
        _need_finite(self.centre)
        self.centred = torch.cat([(part.double() - self.centre).float() for part in features.split(step)])
        self.squares = torch.cat([part.double().square().sum(1) for part in self.centred.split(step)])
        # Products of F terms, features rounded to float32, squares rounded, one more sum: twice that, to be generous.
        self.shrink = 1 - 4 * (features.shape[1] + 4) * HALF_ULP
        self.lowered = (self.squares * self.shrink).float()

    def query(self, features: Tensor, k: int = 2, exclude: Tensor | None = None) -> FeatureNeighbors:
        """The k nearest groups of float features (B, F).

        Args:
            features: queries.
            k: groups wanted.
            exclude: a group per query to leave out, int64 (B,).

        Raises:
            InputError: features of another length, or not finite.
        """
        if features.shape[1:] != self.features.shape[1:]:
            problem = f"the index holds features of length {self.features.shape[1]}"
            raise InputError("features", tuple(features.shape), problem, "use one extractor for both")
        _need_finite(features)
        total, count = len(self.features), len(features)
        answer = FeatureNeighbors(
            torch.full((count, k), torch.inf, dtype=torch.float64),
            torch.full((count, k), -1),
            torch.zeros(count, dtype=torch.int64),
            torch.zeros(count, dtype=torch.bool),
        )
        left = torch.arange(count)
        # Fewer groups than asked for end with all rows: only these can prove that there are no more.
        for width in (k + self.candidates, k + WIDER * self.candidates, total):
            width = min(width, total)
            for some in left.split(max(TABLE_ENTRIES // (total if width < total else 8 * total), 1)):
                skip = None if exclude is None else exclude[some]
                rows, beyond = self._candidates(features[some], width, skip)
                squared, answer.groups[some], answer.nearest[some] = self._rank(features[some], rows, k, skip)
                answer.squared[some] = squared
                answer.certified[some] = (squared[:, -1] < beyond) & (width < total)
            left = left[~answer.certified[left]] if width < total else left[:0]
        return answer

    def inside(self, queries: Tensor, of_rows: Tensor, of_queries: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Which rows lie inside balls around queries and the other way round, a block of queries at a time, exactly.

        Args:
            queries: float features (B, F).
            of_rows: squared radii around the rows, float64 (n,); a point at the radius is outside.
            of_queries: squared radii around the queries, float64 (B,).

        Returns:
            positions among the queries; which queries lie inside balls of rows, and which rows inside balls of queries,
            bool (b, n) each.
        """
        # Twice the bound of a product form (see the module), for sums rounded once more.
        wrong = 4 * (self.features.shape[1] + 4) * HALF_ULP
        step = max(TABLE_ENTRIES // len(self.features), 1)
        for start in range(0, len(queries), step):
            part = slice(start, min(start + step, len(queries)))
            centred = (queries[part].double() - self.centre).float()
            scale = centred.double().square().sum(1)[:, None] + self.squares
            with full_float32(queries.device):
                table = torch.addmm(scale.float(), centred, self.centred.T, alpha=-2)
            in_rows, in_queries = table < of_rows.float(), table < of_queries[part, None].float()
            near = (table - of_rows.float()).abs_() <= (wrong * scale).float()
            near |= (table - of_queries[part, None].float()).abs_() <= (wrong * scale).float()
            near |= scale > LARGEST
            i, j = torch.nonzero(near, as_tuple=True)
            squared = direct_squared(queries[part], self.features, i, j)
            in_rows[i, j], in_queries[i, j] = squared < of_rows[j], squared < of_queries[part][i]
            yield part, in_rows, in_queries

    def _candidates(self, queries: Tensor, width: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows to rank (b, width), ascending, and a bound from below on the squared distance of all others, (b,)."""
        total = len(self.features)
        if width >= total:
            return torch.arange(total)[None], torch.full((len(queries),), torch.inf, dtype=torch.float64)
        centred = (queries.double() - self.centre).float()
        squares = centred.double().square().sum(1)
        with full_float32(queries.device):
            table = torch.addmm(self.lowered[None], centred, self.centred.T, alpha=-2)
        if exclude is not None:
            table.masked_fill_(exclude[:, None] == self.groups, torch.inf)
        values, rows = table.topk(width + 1, dim=1, largest=False)
        # Below the smallest normal number rounding is absolute.
        beyond = values[:, -1].double() + self.shrink * squares - 4 * queries.shape[1] * torch.finfo(torch.float32).tiny
        overflow = torch.maximum(squares, self.squares.max()) > LARGEST
        return rows[:, :-1].sort(1).values, beyond.masked_fill(overflow, -torch.inf)

    def _rank(self, queries: Tensor, rows: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Distances and ids of the k nearest groups, and the nearest row, among ``rows`` (b, c), as in the answer.

        By float64 differences; rows ascend, so ties go to the lowest.
        """
        b, c = len(queries), rows.shape[1]
        rows = rows.expand(b, c)
        owner = torch.arange(b).repeat_interleave(c)
        squared = direct_squared(queries, self.features, owner, rows.reshape(-1)).reshape(b, c)
        groups = self.groups[rows]
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
                nearest = torch.where(there, rows.gather(1, column[:, None]).flatten(), 0)
            squared = squared.masked_fill(groups == group, torch.inf)
        return values, ids, nearest


def _need_finite(features: Tensor) -> None:
    if not bool(features.isfinite().all()):
        raise InputError("features", "nan or inf", "distances need finite numbers", "check the extractor's weights")
