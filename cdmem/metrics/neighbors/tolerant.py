r"""Nearest training image up to a mirror, a shift, gain and offset, and how near a second image is.

A sample x is compared with a training image y over the overlap of both, when x is mirrored or not and moved by up to 2
pixels (a quarter of the side at most); every colour channel c has a gain of at least 0 and an offset of its own. The
distance is what y leaves unexplained of the contrast of x,

.. math:: d(x, y)^2 = \min_{mirror,\, shift} \frac{\sum_c \min_{g_c \ge 0,\, o_c} \|x_c - g_c y_c - o_c\|^2}
          {\sum_c \|x_c - \bar x_c\|^2} = \min_{mirror,\, shift} 1 - \frac{\sum_c s_c^2 \max(\rho_c, 0)^2}{\sum_c s_c^2}

with s_c^2 the variance of x and rho_c its correlation with y. What is flat in the overlap explains nothing and is
explained by nothing: d = 1.

The nearest image y_1 fixes mirror, shift and overlap. There d1 / d2 is taken *in the plane of two images*: d1 is what
y_2 adds to y_1, d2 what y_1 adds to y_2, and y_2 the image of another group for which the ratio is largest,

.. math:: \frac{d_1^2}{d_2^2} = \max_{y_2} \frac{\sum_c s_c^2 \max(\rho_2 - \rho_1 \rho_{12}, 0)^2 / (1 - \rho_{12}^2)}
          {\sum_c s_c^2 \max(\rho_1 - \rho_2 \rho_{12}, 0)^2 / (1 - \rho_{12}^2)}.

What neither image explains (noise, artefacts) is in neither distance. So a noisy copy keeps a small ratio, while a
blend (1 - a) y_1 + a y_2 of unrelated images of one contrast reads a / (1 - a) whatever its noise, as under the strict
ratio. An image that is y_1 up to gain and offset is no second image.

Every training image is compared where T is small (:data:`EXHAUSTIVE`). Otherwise the :data:`CANDIDATES` images with the
largest correlation at 7x7 pixels are, over both mirrors and nine shifts. The second image is sought in all of T always.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cdmem.data.subset import TrainingSet, first_rows, group_ids
from cdmem.errors import InputError
from cdmem.metrics.memorization.extraction import conformal_threshold
from cdmem.metrics.neighbors.index import GroupIndex, NearDuplicates, group_index
from cdmem.metrics.neighbors.pixels import full_float32
from cdmem.metrics.neighbors.shifts import Shifts, centred, exact_products, small_images

EXHAUSTIVE = 2**21  # values of all training images up to which every one is compared: 682 images of 32x32x3
CANDIDATES = 64
SAME = 1e-9  # 1 - rho^2 below which two images are one up to gain and offset
FALSE_POSITIVES = 0.01
TABLE = 2**20  # entries of a block of float64 numbers: 8 MiB
PIXELS = 2**22  # values of a block of images: 16 MiB in float32
QUERIES, ROWS = 256, 2048  # images of a block of the search for the second image


@dataclass(frozen=True)
class TolerantNeighbors:
    """The nearest group of each query.

    Attributes:
        ratio: d1 / d2 in the plane of the nearest image and of another group's, float64 (B,), in [0, 1].
        groups: the nearest group, int64 (B,); ties go to the lowest row.
        distance: d, the share of contrast that it leaves unexplained, float64 (B,), in [0, 1].
    """

    ratio: Tensor
    groups: Tensor
    distance: Tensor


class TolerantIndex:
    """Tolerant search over the groups of a training set.

    Args:
        training_images: uint8 (n, C, H, W).
        groups: group of every image, int64 (n,), or an index that has them; every content its own by default.
        flip: training mirrors images, so that the second image may be a mirrored one; an index says so itself.

    Attributes:
        compared: training images that each query is compared with for the nearest one.

    Raises:
        InputError: not uint8 (n, C, H, W), or fewer than two groups.
    """

    def __init__(
        self, training_images: Tensor, groups: GroupIndex | Tensor | None = None, *, flip: bool = False
    ) -> None:
        if training_images.dtype != torch.uint8 or training_images.ndim != 4:
            given = f"{training_images.dtype} {tuple(training_images.shape)}"
            raise InputError("images", given, "must be uint8 (n, C, H, W)", "round")
        content = group_ids(training_images)
        if isinstance(groups, GroupIndex):
            groups, flip = groups.index.row_groups, groups.flip
        groups = content if groups is None else groups
        if len(groups.unique()) < 2:
            problem = "a second neighbour needs two different images"
            raise InputError("data.n (training_set)", len(groups.unique()), problem, "use n >= 2 distinct images")
        first = first_rows(content)
        self.rows, self.groups, self.flip = centred(training_images[first]), groups[first], flip
        self.shape = tuple(training_images.shape[1:])
        self.shifts = Shifts(*self.shape[1:])
        # (C, S, n): of every channel and overlap.
        moments = [self.shifts.moments(part) for part in self.rows.split(ROWS)]
        self.sums, self.variances = (torch.cat(part).permute(1, 2, 0).contiguous() for part in zip(*moments))
        self.small: Tensor | None = None
        if self.rows.numel() > EXHAUSTIVE and len(self.rows) > CANDIDATES:
            self.small = torch.cat([small_images(self.shifts.inner(part)) for part in self.rows.split(ROWS)])
        self.compared = len(self.rows) if self.small is None else CANDIDATES
        self._last: tuple[weakref.ref[Tensor], int, TolerantNeighbors] | None = None

    def to(self, device: torch.device | str) -> TolerantIndex:
        """Move the search to a device."""
        for name in ("rows", "groups", "shifts", "sums", "variances"):
            setattr(self, name, getattr(self, name).to(device))
        self.small = None if self.small is None else self.small.to(device)
        return self

    def query(self, images: Tensor) -> TolerantNeighbors:
        """The nearest groups of uint8 images (B, C, H, W), on the CPU; those of the same tensor object are kept.

        Raises:
            InputError: another shape or type than the training images'.
        """
        if tuple(images.shape[1:]) != self.shape or images.dtype != torch.uint8:
            given = f"{images.dtype} {tuple(images.shape[1:])}"
            raise InputError("images", given, f"the training images are uint8 {self.shape}", "resize or quantise them")
        version = -1 if images.is_inference() else images._version
        if self._last is not None and version >= 0 and self._last[0]() is images and self._last[1] == version:
            return self._last[2]
        parts = [self._query(centred(some.to(self.rows.device))) for some in images.split(QUERIES) if len(some)]
        empty = torch.zeros(0, dtype=torch.float64)
        neighbors = TolerantNeighbors(*(torch.cat(part).cpu() for part in zip((empty, empty.long(), empty), *parts)))
        self._last = (weakref.ref(images), version, neighbors)
        return neighbors

    def _query(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ratio, group and distance of int8 images (B, C, H, W)."""
        both = torch.stack([x, x.flip(-1)], 1)
        nearest, place, explained = (torch.cat(part) for part in zip(*self._nearest(both)))
        x = both[torch.arange(len(x)), place // len(self.shifts)]
        ratio = self._plane_ratio(x, place % len(self.shifts), nearest).masked_fill(explained == 0, 1.0)
        return ratio.cpu(), self.groups[nearest].cpu(), (1 - explained).clamp(0, 1).sqrt().cpu()

    # ---- the nearest image ------------------------------------------------------------------------------------------

    def _nearest(self, both: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For blocks of int8 (B, 2, C, H, W), images and their mirror images: the nearest row, its place among 2 S
        mirrors and shifts, int64 (b,), and the share of contrast that it explains there, float64 (b,)."""
        places, values = 2 * len(self.shifts), both[0, 0].numel()
        images = places + (0 if self.small is None else self.compared)
        for x in both.split(max(min(TABLE // (places * self.compared), PIXELS // (images * values)), 1)):
            rows = None if self.small is None else self._candidates(x)
            best, place = self._explained(x, rows).max(1)
            explained, k = best.max(1)
            place = place.gather(1, k[:, None])[:, 0]
            yield (k if rows is None else rows.gather(1, k[:, None])[:, 0]), place, explained

    def _candidates(self, x: Tensor) -> Tensor:
        """Rows to compare with int8 (b, 2, C, H, W), ascending, int64 (b, K): the largest sums of correlations."""
        assert self.small is not None
        crops = self.shifts.crops(x).movedim(-3, 2).flatten(0, 2)
        with full_float32(x.device):
            score = (small_images(crops) @ self.small.T).unflatten(0, (len(x), -1)).amax(1)
        # Equal scores go to the lowest row.
        key = score.long() * len(self.rows) - torch.arange(len(self.rows), device=x.device)
        return key.topk(CANDIDATES, 1).indices.sort(1).values

    def _explained(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Share of the contrast of int8 (b, 2, C, H, W) that rows explain at every place, float64 (b, 2 S, K): all
        rows, or those of int64 (b, K)."""
        shifts = torch.arange(len(self.shifts))
        moved = self.shifts.move(x, shifts).movedim(2, 1).flatten(2, 3)  # (b, C, 2 S, P)
        sums, contrast = (v.movedim(2, 1).flatten(2) for v in self._moving_moments(x))
        area = self.shifts.area.repeat(2)[:, None]
        total = torch.zeros(*moved.shape[::2], self.compared, dtype=torch.float64, device=x.device)
        for c in range(self.shape[0]):
            y = (self.rows[:, c] if rows is None else self.rows[rows, c]).flatten(-2).float()
            products = exact_products(moved[:, c], y.mT)
            y_sums, y_variances = (
                (v[c] if rows is None else v[c][:, rows].movedim(1, 0)) for v in (self.sums, self.variances)
            )
            y_sums, y_variances = (torch.cat([v, v], -2) for v in (y_sums, y_variances))
            covariance = products.mul_(area).sub_(sums[:, c, :, None] * y_sums).clamp_min_(0)
            # Where a row is flat both are 0.
            total += covariance.square_().div_(y_variances.clamp_min_(1))
        return total.div_(contrast.sum(1)[..., None].clamp_min(1))

    def _moving_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and variances of int8 (b, 2, C, H, W) over its part of every overlap, float64 (b, 2, C, S)."""
        sums, variances = self.shifts.moments(x.flatten(0, 1), moving=True)
        return sums.unflatten(0, (-1, 2)), variances.unflatten(0, (-1, 2))

    # ---- the second image -------------------------------------------------------------------------------------------

    def _plane_ratio(self, x: Tensor, shift: Tensor, nearest: Tensor) -> Tensor:
        """d1 / d2 in the plane of the nearest row (B,) and another group's image, of int8 (B, C, H, W), each at its
        own shift (B,): float64 (B,)."""
        moved = self.shifts.move_each(x, shift)
        first = self.rows[nearest].flatten(2) * self.shifts.masks[shift].float()[:, None]
        pair = torch.stack([moved, first], 2)  # (B, C, 2, P)
        every = torch.arange(len(x), device=x.device)
        of_x = [v[every, :, shift] for v in self.shifts.moments(x, moving=True)]
        of_first = [v[:, shift, nearest].T for v in (self.sums, self.variances)]
        sums, variances = (torch.stack(v, 2)[..., None] for v in zip(of_x, of_first))  # (B, C, 2, 1)
        area = self.shifts.area[shift][:, None]
        cross = area * (moved.double() * first).sum(2) - sums[:, :, 0, 0] * sums[:, :, 1, 0]
        inverse = _inverse_root(variances)
        near = cross * inverse[:, :, 0, 0] * inverse[:, :, 1, 0]  # (B, C)
        largest = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for some in torch.arange(len(self.rows), device=x.device).split(ROWS):
            other = self.groups[some] != self.groups[nearest][:, None]
            for mirror in (False, True) if self.flip else (False,):
                rows = self.rows[some].flip(-1) if mirror else self.rows[some]
                place = self.shifts.mirrored[shift] if mirror else shift
                d1, d2 = torch.zeros_like(other, dtype=torch.float64), torch.zeros_like(other, dtype=torch.float64)
                for c in range(self.shape[0]):
                    products = exact_products(pair[:, c].flatten(0, 1), rows[:, c].flatten(1).float().T)
                    covariance = products.unflatten(0, (-1, 2)).mul_(area[..., None])
                    covariance -= sums[:, c] * self.sums[c][place[:, None], some][:, None]
                    covariance *= inverse[:, c]
                    covariance *= _inverse_root(self.variances[c][place[:, None], some])[:, None]
                    adds, leaves = _in_plane(near[:, c, None], *covariance.unbind(1))
                    d1 += adds.mul_(variances[:, c, 0])
                    d2 += leaves.mul_(variances[:, c, 0])
                ratio = torch.where(d1 < d2, d1 / d2, (d1 > 0).double())
                largest = torch.maximum(largest, ratio.mul_(other).amax(1))
        return largest.sqrt()


def _inverse_root(variance: Tensor) -> Tensor:
    """variance^-1/2, and 0 where it is 0."""
    return torch.where(variance > 0, 1 / variance.clamp_min(1).sqrt(), 0.0)


def _in_plane(near: Tensor, other: Tensor, between: Tensor) -> tuple[Tensor, Tensor]:
    """Squared parts of a unit vector in the plane of two others: what the second adds to the first, and the first to
    the second, each with a weight of at least 0, from the correlations rho_1, rho_2 and rho_12."""
    free = 1 - between.square()
    weight = torch.where(free > SAME, 1 / free.clamp_min(SAME), 0.0)
    adds = (other - near * between).clamp_min_(0).square_().mul_(weight)
    return adds, (near - other * between).clamp_min_(0).square_().mul_(weight)


# ---- of a training set, with its held-out images --------------------------------------------------------------------


@dataclass(frozen=True)
class TolerantSearch:
    """The search of one training set.

    Attributes:
        index: over the groups of T.
        control: neighbours of the held-out images.
        threshold: of the ratio, see :func:`tolerant_threshold`.
    """

    index: TolerantIndex
    control: TolerantNeighbors
    threshold: float | None


_searches: weakref.WeakKeyDictionary[TrainingSet, dict[NearDuplicates, TolerantSearch]] = weakref.WeakKeyDictionary()


def tolerant_search(training_set: TrainingSet, near_duplicates: NearDuplicates = "off") -> TolerantSearch:
    """The search of a training set and of its held-out images, made once per grouping.

    Raises:
        InputError: fewer than two groups; a ratio of near-duplicates outside (0, 1).
    """
    known = _searches.setdefault(training_set, {})
    if near_duplicates not in known:
        search = group_index(training_set, near_duplicates)
        index = TolerantIndex(training_set.images, search).to(search.index.rows.device)
        control = index.query(training_set.held_out_images)
        known[near_duplicates] = TolerantSearch(index, control, tolerant_threshold(control.ratio))
    return known[near_duplicates]


def tolerant_threshold(control_ratios: Tensor) -> float | None:
    """Copies have a ratio strictly below it, held-out images in at most 1 % of draws.

    Args:
        control_ratios: of the held-out images under the same search, (h,).

    Returns:
        None with fewer than 99 held-out images.
    """
    return conformal_threshold(control_ratios, FALSE_POSITIVES)
