"""Tests of whether samples lie nearer to the training images than fresh images do.

C_T and Z_U (Meehan et al. 2020), the train-preference rate, and leave-one-out 1-nearest-neighbour two-sample accuracy
(Lopez-Paz & Oquab 2017; Xu et al. 2018). All look at the nearest row only and count an image once, however often
it is repeated; exact copies stay at distance 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor, nn

from cdmem.data.subset import first_rows
from cdmem.errors import InputError
from cdmem.metrics.quality.feature_space import (
    FeatureMetric,
    choose_groups,
    content_groups,
    halves,
    nearest,
    unique_rows,
)

MIN_PER_CELL = 20  # tau = 20 / m: a cell counts from 20 samples on


def z_u(generated_distances: Tensor, held_out_distances: Tensor) -> float:
    r"""Mann-Whitney statistic of distances to the training set, as a standard normal; negative means copying.

    .. math:: Z_U = (U - m h / 2) / \sqrt{\frac{m h}{12} \left(N + 1 - \sum_t \frac{t^3 - t}{N (N - 1)}\right)}

    U counts the pairs in which the sample is farther, ties 1/2; N = m + h; t are the sizes of ties. No continuity
    correction (Meehan et al. add 1/2 to U) and, unlike there, the variance is corrected for ties. 0 if all are equal.

    Raises:
        InputError: an empty side.
    """
    m, h = len(generated_distances), len(held_out_distances)
    if not m or not h:
        raise InputError("samples", f"{m} against {h}", "a rank test needs both sides", "give at least one of each")
    joint = torch.cat([generated_distances, held_out_distances]).double().numpy()
    u = rankdata(joint)[:m].sum() - m * (m + 1) / 2
    ties = np.unique(joint, return_counts=True)[1].astype(np.float64)
    variance = m * h / 12 * (m + h + 1 - (ties**3 - ties).sum() / ((m + h) * (m + h - 1)))
    return 0.0 if variance <= 0 else float((u - m * h / 2) / math.sqrt(variance))


@dataclass(frozen=True)
class Cell:
    """One cell of C_T: samples and held-out images in it, and Z_U or None where the cell does not count."""

    generated: int
    held_out: int
    z_u: float | None


@dataclass(frozen=True)
class CopyScore:
    """C_T over the cells that count (None if no cell does), and all cells."""

    c_t: float | None
    cells: tuple[Cell, ...]

    @property
    def cells_used(self) -> int:
        """Number of cells that count."""
        return sum(cell.z_u is not None for cell in self.cells)


class Cells:
    """Cells of T for C_T: first principal components, and k-means in them.

    As in Meehan et al. 2020 a sample's nearest neighbour is sought among the training images *of its cell*. A nearest
    image beyond the cell's border does not count: over all of T the distances are shorter, those of the side that lies
    nearer to the borders most (for copies of CIFAR-10 images C_T is then -21.3, within the cells -20.5).

    Args:
        train: features (n, F); repeated rows count once.
        cells: number of cells, fewer if T has fewer images.
        components: number of principal components, min(components, n - 1, F) of them.
        seed: of k-means and the randomised PCA, below 2**32.

    Raises:
        InputError: T has fewer than two different rows.
    """

    def __init__(self, train: Tensor, cells: int = 3, components: int = 64, seed: int = 0) -> None:
        rows = unique_rows(train.double())
        if len(rows) < 2:
            raise InputError("data.n", len(rows), "C_T needs two different images", "use n >= 2")
        self.pca = PCA(min(components, len(rows) - 1, rows.shape[1]), random_state=seed).fit(rows.numpy())
        low = self.pca.transform(rows.numpy())
        self.kmeans = KMeans(min(cells, len(rows)), n_init=10, random_state=seed).fit(low)
        self.spaces = [torch.from_numpy(low[self.kmeans.labels_ == k]) for k in range(self.kmeans.n_clusters)]

    def _distances(self, side: Tensor) -> list[Tensor]:
        """By cell, the distances of its rows of a side (m, F) to the nearest training image of the cell."""
        if not len(side):
            return [torch.zeros(0, dtype=torch.float64) for _ in self.spaces]
        low = self.pca.transform(side.double().numpy())
        cells = self.kmeans.predict(low)
        return [nearest(torch.from_numpy(low[cells == k]), space)[0] for k, space in enumerate(self.spaces)]

    def score(self, held_out: Tensor, generated: Tensor) -> CopyScore:
        """C_T of Meehan et al. 2020, generated (m, F) against held-out features (h, F): Z_U averaged by held-out mass.

        A cell counts if at least 20 samples (tau = 20/m) and one held-out image fall into it. Far below 0: copying; far
        above: underfitting. Values grow with the square root of the number of samples, so compare only equal numbers.
        """
        cells = []
        for p, q in zip(self._distances(held_out), self._distances(generated)):
            cells.append(Cell(len(q), len(p), z_u(q, p) if len(q) >= MIN_PER_CELL and len(p) else None))
        used = [(cell.held_out, cell.z_u) for cell in cells if cell.z_u is not None]
        total = sum(mass * z for mass, z in used) / sum(mass for mass, _ in used) if used else None
        return CopyScore(total, tuple(cells))


@dataclass(frozen=True)
class Preference:
    """Share of samples nearer to T than to H, its null standard deviation and two-sided p value; 1/2 is the null."""

    rate: float
    sd: float
    p: float
    size: int


def train_preference(
    generated: Tensor,
    train: Tensor,
    held_out: Tensor,
    train_groups: Tensor | None = None,
    held_out_groups: Tensor | None = None,
    repetitions: int = 200,
    seed: int = 0,
) -> Preference:
    """Share of samples nearer to T than to H, with as many images of each; equal distances count 1/2.

    If the samples know nothing of T, T and H are exchangeable and the rate is 1/2 on average. Its spread is not
    binomial, because samples share their nearest images: for hits a_i of image i and a random half of the N images as
    T, the variance is sum_i (a_i - mean)^2 N / (4 (N - 1)) / m^2. The p value is by random re-splits of T and
    H together, (1 + as extreme) / (1 + repetitions).

    Args:
        generated: features (m, F).
        train: (n, F).
        held_out: (h, F).
        train_groups: image of every training row, int64 (n,); by default rows of equal content are one image.
        held_out_groups: the same for H, int64 (h,).
        repetitions: number of re-splits.
        seed: of the choice of equally many images and of the re-splits.

    Raises:
        InputError: no samples, or an empty side.
    """
    if not len(generated):
        raise InputError("samples", 0, "a rate is a share of samples", "give at least one")
    groups = [
        content_groups(rows) if given is None else given
        for rows, given in ((train, train_groups), (held_out, held_out_groups))
    ]
    size = min(len(g.unique()) for g in groups)
    if size < 1:
        raise InputError("data.held_out", len(held_out), "the rate compares T with H", "hold out as many images as T")
    hits = torch.zeros(2 * size, dtype=torch.float64)
    near = []
    for rows, group in zip((train, held_out), groups):
        kept, number = choose_groups(rows, group, size, seed)
        distance, index = nearest(generated, kept)
        near.append((distance, number[index]))
    (to_train, i), (to_held, j) = near
    share = torch.where(to_train == to_held, 0.5, (to_train < to_held).double())
    hits.index_add_(0, i, share)
    hits.index_add_(0, size + j, 1 - share)
    # The nearest of all decides, so a re-split only relabels hits.
    m, images = len(generated), 2 * size
    rate = float(hits[:size].sum()) / m
    sd = math.sqrt(float((hits - hits.mean()).square().sum()) * images / (4 * (images - 1))) / m
    generator = torch.Generator().manual_seed(seed)
    null = [float(hits[torch.randperm(images, generator=generator)[:size]].sum()) / m for _ in range(repetitions)]
    extreme = sum(abs(value - 0.5) >= abs(rate - 0.5) - 1e-12 for value in null)
    return Preference(rate, sd, (1 + extreme) / (1 + repetitions), size)


@dataclass(frozen=True)
class TwoSample:
    """Leave-one-out 1-NN accuracy, in all, on real and on fake, for ``size`` images of each."""

    accuracy: float
    real: float
    fake: float
    size: int


def two_sample_accuracy(
    real: Tensor,
    fake: Tensor,
    real_groups: Tensor | None = None,
    fake_groups: Tensor | None = None,
    size: int | None = None,
    seed: int = 0,
) -> TwoSample:
    """Leave-one-out accuracy of telling real from fake by the nearest other image (Xu et al. 2018).

    1/2: indistinguishable; below: samples crowd the real images; 0: copies; 1: different or collapsed. An image is
    right if its own side is *strictly* nearer, so exact copies are wrong also where a sample is generated twice.

    Args:
        real: features (n, F).
        fake: (m, F).
        real_groups: image of every real row, int64 (n,); by default rows of equal content are one image.
        fake_groups: sample of every fake row, int64 (m,); by default every row is a sample.
        size: images of each side, chosen at random; by default as many as the smaller side has.
        seed: of that choice.

    Raises:
        InputError: fewer than two images on a side.
    """
    real_groups = content_groups(real) if real_groups is None else real_groups
    fake_groups = torch.arange(len(fake)) if fake_groups is None else fake_groups
    most = min(len(real_groups.unique()), len(fake_groups.unique()))
    size = most if size is None else min(size, most)
    if size < 2:
        raise InputError("samples", size, "leaving one out needs two images on each side", "give more")
    sides = [choose_groups(real, real_groups, size, seed), choose_groups(fake, fake_groups, size, seed)]
    right = []
    for (rows, groups), (others, _) in (sides, sides[::-1]):
        first = first_rows(groups)
        own, _ = nearest(rows[first], rows, groups[first], groups)
        other, _ = nearest(rows[first], others)
        right.append(int((own < other).sum()) / size)
    return TwoSample(sum(right) / 2, right[0], right[1], size)


class CopyTest(FeatureMetric):
    """C_T (in principal components) and Z_U (in all features), beside the same with half of H as samples.

    Both are already in units of their null standard deviation; needs two held-out images.

    Args:
        features: uint8 (B, C, H, W) -> (B, F); the pixels by default.
        cells: k-means cells of C_T.
        components: principal components of C_T.
        seed: of k-means and the split of H.
    """

    def __init__(self, features: nn.Module | None = None, cells: int = 3, components: int = 64, seed: int = 0) -> None:
        super().__init__(features)
        self.cells, self.components, self.seed = cells, components, seed

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """``z_u``, ``c_t``, ``cells_used``, and each with ``_heldout``; ``c_t`` is left out if no cell counts."""
        held_out = self.features_of(self.need_held_out(2))
        values = self._scores(self.features_of(rows["images"]), held_out, "")
        return values | self.once("baseline", lambda: self._scores(*halves(held_out, self.seed), "_heldout"))

    def _scores(self, q: Tensor, p: Tensor, suffix: str) -> dict[str, float]:
        """Samples q (m, F) against held-out features p (h, F)."""
        train, _ = self.views(self.training_set.images)
        cells = self.once("cells", lambda: Cells(train, self.cells, self.components, self.seed))
        values = {f"z_u{suffix}": z_u(nearest(q, train)[0], nearest(p, train)[0])}
        score = cells.score(p, q)
        values[f"cells_used{suffix}"] = float(score.cells_used)
        if score.c_t is not None:
            values[f"c_t{suffix}"] = score.c_t
        return values


class TrainPreference(FeatureMetric):
    """Share of samples nearer to T than to H, see :func:`train_preference`, beside the same for one half of H.

    The half of H that takes the place of the samples is left out of H, so that T and H are smaller there.

    Args:
        features: uint8 (B, C, H, W) -> (B, F); the pixels by default.
        repetitions: number of re-splits for the p value.
        seed: of all choices.
    """

    def __init__(self, features: nn.Module | None = None, repetitions: int = 200, seed: int = 0) -> None:
        super().__init__(features)
        self.repetitions, self.seed = repetitions, seed

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """``train_preference`` and its null ``_sd``, ``_p`` and ``_size``; each after ``train_preference_heldout``."""
        held_out, name = self.need_held_out(2), "train_preference"
        values = self._share(rows["images"], held_out, name)
        return values | self.once("baseline", lambda: self._share(*halves(held_out, self.seed), f"{name}_heldout"))

    def _share(self, q: Tensor, p: Tensor, key: str) -> dict[str, float]:
        """Samples q against held-out images p, uint8."""
        train, groups = self.views(self.training_set.images)
        other, other_groups = self.views(p)
        share = train_preference(self.features_of(q), train, other, groups, other_groups, self.repetitions, self.seed)
        return {key: share.rate, f"{key}_sd": share.sd, f"{key}_p": share.p, f"{key}_size": float(share.size)}


class TwoSampleAccuracy(FeatureMetric):
    """Leave-one-out 1-NN accuracy of T against the samples, and of T against H with as many images.

    No interval: the answers of neighbours depend on each other. Without H there is no baseline.

    Args:
        features: uint8 (B, C, H, W) -> (B, F); the pixels by default.
        seed: of the choice of equally many images.
    """

    min_samples = 2

    def __init__(self, features: nn.Module | None = None, seed: int = 0) -> None:
        super().__init__(features)
        self.seed = seed

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """``two_sample``, ``two_sample_real``, ``two_sample_fake``, ``two_sample_size``; with H (at least 2 images) the
        first three also after ``two_sample_heldout``."""
        held_out = self.training_set.held_out_images
        least = min(len(self.training_set.images), len(rows["images"]))
        size = min(least, len(held_out)) if len(held_out) >= 2 else least
        values = {"two_sample_size": float(size)} | self._accuracy(rows["images"], size, "two_sample")
        if len(held_out) >= 2:
            name = "two_sample_heldout"
            values |= self.once(f"baseline {size}", lambda: self._accuracy(held_out, size, name))
        return values

    def _accuracy(self, images: Tensor, size: int, name: str) -> dict[str, float]:
        real, groups = self.views(self.training_set.images)
        fake, fake_groups = self.views(images)
        accuracy = two_sample_accuracy(real, fake, groups, fake_groups, size, self.seed)
        return {name: accuracy.accuracy, f"{name}_real": accuracy.real, f"{name}_fake": accuracy.fake}
