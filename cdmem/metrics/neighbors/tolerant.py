r"""Nearest training image up to a mirror, a shift, gain and offset, and how near a second image is.

A sample x is compared with a training image y over the overlap of both, when x is mirrored or not and moved by up to 2
pixels (a quarter of the side at most); every colour channel c has a gain of at least 0 and an offset of its own. The
distance is what y leaves unexplained of the contrast of x,

.. math:: d(x, y)^2 = \min_{mirror,\, shift} \frac{\sum_c \min_{g_c \ge 0,\, o_c} \|x_c - g_c y_c - o_c\|^2}
          {\sum_c \|x_c - \bar x_c\|^2} = \min_{mirror,\, shift} 1 - \frac{\sum_c s_c^2 \max(\rho_c, 0)^2}{\sum_c s_c^2}

with s_c^2 the variance of x and rho_c its correlation with y. What is flat in the overlap explains nothing and is
explained by nothing: d = 1.

The nearest image y_1 fixes mirror, shift and overlap. There R(y) is the sum of squares that an image leaves, and
R(y_1, y_2) what two leave together, in a fit with gains of at least 0. The ratio is taken over images of other groups:

.. math:: \frac{d_1^2}{d_2^2} = \max_{y_2} \frac{R(y_1) - (1 - \kappa) R(y_1, y_2)}{R(y_2) - (1 - \kappa) R(y_1, y_2)}

With kappa = 1 it would be R(y_1) / R(y_2), to both of which noise and artefacts add alike: a noisy copy would look like
a blend, and by a threshold from held-out images half of the even blends of two training images would be copies. With
kappa = 0 an image would be a copy that resembles one of few training images only. With a small kappa (:data:`REST`) a
copy keeps a small ratio under noise, and a blend (1 - a) y_1 + a y_2 of unrelated images of one contrast reads about
a / (1 - a), noisy or not, as under the strict ratio. An image within d = 0.1 of y_1 in that overlap is the same
picture, and no second image.

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
REST = 0.05  # weight in both distances of what neither image explains
SAME = 0.01  # d^2 of two training images below which they are one picture up to gain and offset
FALSE_POSITIVES, LEAST_HELD_OUT = 0.01, 99
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
        if isinstance(groups, GroupIndex):
            groups, flip = groups.index.row_groups, bool(groups.flip)
        content = group_ids(training_images)
        first = first_rows(content)
        self.groups = (content if groups is None else groups)[first]
        if (count := len(self.groups.unique())) < 2:
            problem = "a second neighbour needs two different images"
            raise InputError("data.n (training_set)", count, problem, "use n >= 2 distinct images")
        self.rows, self.flip = centred(training_images[first]), flip
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
        neighbors = TolerantNeighbors(*(torch.cat(part) for part in zip((empty, empty.long(), empty), *parts)))
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
        """d1 / d2 of int8 (B, C, H, W), each at its own shift (B,), with its nearest row (B,): float64 (B,)."""
        frame = self._frame(x, shift, nearest)
        largest = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for some in torch.arange(len(self.rows), device=x.device).split(ROWS):
            other = self.groups[some] != self.groups[nearest][:, None]
            for mirror in (False, True) if self.flip else (False,):
                ratio = self._ratio(frame, some, mirror).mul_(other)
                largest = torch.maximum(largest, ratio.amax(1))
        return largest.sqrt()

    def _frame(self, x: Tensor, shift: Tensor, nearest: Tensor) -> _Frame:
        moved = self.shifts.move_each(x, shift)
        first = self.rows[nearest].flatten(2) * self.shifts.masks[shift].float()[:, None]
        of_x = [v[torch.arange(len(x)), :, shift] for v in self.shifts.moments(x, moving=True)]
        of_first = [v[:, shift, nearest].T for v in (self.sums, self.variances)]
        sums, variances = (torch.stack(v, 2)[..., None] for v in zip(of_x, of_first))
        area, inverse = self.shifts.area[shift][:, None], _inverse_root(variances)
        covariance = area * (moved.double() * first).sum(2) - sums.prod(2)[..., 0]
        return _Frame(
            torch.stack([moved, first], 2),
            shift,
            area,
            sums,
            variances[:, :, 0, 0],
            inverse,
            covariance * inverse.prod(2)[..., 0],
        )

    def _ratio(self, frame: _Frame, some: Tensor, mirror: bool) -> Tensor:
        """(d1 / d2)^2 with each of some rows (k,) as the second image, 0 with the same picture: float64 (B, k)."""
        place = self.shifts.mirrored[frame.shift] if mirror else frame.shift
        rows = self.rows[some].flip(-1) if mirror else self.rows[some]
        d1, d2, apart = torch.zeros(3, len(place), len(some), dtype=torch.float64, device=some.device)
        for c in range(self.shape[0]):
            products = exact_products(frame.pair[:, c].flatten(0, 1), rows[:, c].flatten(1).float().T)
            correlation = products.unflatten(0, (-1, 2)).mul_(frame.area[..., None])
            correlation -= frame.sums[:, c] * self.sums[c][place[:, None], some][:, None]
            correlation *= frame.inverse[:, c]
            correlation *= _inverse_root(self.variances[c][place[:, None], some])[:, None]
            second, between = correlation.unbind(1)
            first, contrast = frame.near[:, c, None], frame.contrast[:, c, None]
            free = 1 - between.square()
            adds, leaves = _nonnegative_fit(first, second, between, free)
            d1 += adds.mul_(contrast)
            d2 += leaves.mul_(contrast)
            apart += (1 - between.clamp_min_(0).square_()).mul_(contrast)
        rest = (frame.unexplained[:, None] - d1).clamp_min_(0).mul_(REST)
        d1, d2 = d1.add_(rest), d2.add_(rest)
        ratio = torch.where(d1 < d2, d1 / d2, (d1 > 0).double())
        return ratio.mul_(apart > SAME * frame.contrast.sum(1)[:, None])


@dataclass(frozen=True)
class _Frame:
    """Samples moved onto their nearest image.

    Attributes:
        pair: the sample and that image in the overlap, zero elsewhere, float32 (B, C, 2, P).
        shift: index of the shift, int64 (B,).
        area: pixels of the overlap, float64 (B, 1).
        sums, inverse: of both images in the overlap their sum and variance^-1/2, float64 (B, C, 2, 1).
        contrast: the sample's variance, float64 (B, C).
        near: correlation of the two, float64 (B, C).
    """

    pair: Tensor
    shift: Tensor
    area: Tensor
    sums: Tensor
    contrast: Tensor
    inverse: Tensor
    near: Tensor

    @property
    def unexplained(self) -> Tensor:
        """Contrast that the nearest image leaves, float64 (B,)."""
        left = (1 - self.near.clamp_min(0).square()) * self.contrast
        return sum(left.unbind(1)[1:], left[:, 0])


def _inverse_root(variance: Tensor) -> Tensor:
    """variance^-1/2, and 0 where it is 0."""
    return torch.where(variance > 0, 1 / variance.clamp_min(1).sqrt(), 0.0)


def _nonnegative_fit(first: Tensor, second: Tensor, between: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """What the second of two unit vectors adds to the square that the first explains of a third, and the first to the
    second, with weights of at least 0: from their correlations rho_1, rho_2, rho_12 and 1 - rho_12^2."""
    adds, leaves = second - first * between, first - second * between
    both = (adds > 0) & (leaves > 0)
    free = free.clamp_min(1e-9)
    # Where only one has a positive weight, the better one alone is the fit.
    better = second.clamp_min(0).square() - first.clamp_min(0).square()
    # A negative correlation alone explains nothing.
    adds = torch.where(both, adds.square_().div_(free).add_(first.clamp_max(0).square()), better.clamp_min(0))
    return adds, torch.where(
        both, leaves.square_().div_(free).add_(second.clamp_max(0).square_()), (-better).clamp_min_(0)
    )


# ---- of a training set, with its held-out images --------------------------------------------------------------------


@dataclass(frozen=True)
class TolerantSearch:
    """The search of one training set.

    Attributes:
        index: over the groups of T.
        control: neighbours of the held-out images.
        control_squared: strict squared distances of the held-out images to their two nearest groups, int64 (h, 2).
        threshold: of the ratio, see :func:`tolerant_threshold`.
    """

    index: TolerantIndex
    control: TolerantNeighbors
    control_squared: Tensor
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
        held_out = training_set.held_out_images
        control, squared = index.query(held_out), search.query(held_out, 2).squared
        known[near_duplicates] = TolerantSearch(index, control, squared, tolerant_threshold(control.ratio))
    return known[near_duplicates]


def tolerant_threshold(control_ratios: Tensor) -> float | None:
    """Copies have a ratio strictly below it, held-out images in at most 1 % of draws.

    Args:
        control_ratios: of the held-out images under the same search, (h,).

    Returns:
        None with fewer than 99 held-out images.
    """
    return conformal_threshold(control_ratios, FALSE_POSITIVES)
