r"""Frechet and kernel distances between generated and reference images, on any features.

KID is the unbiased squared maximum mean discrepancy with a cubic kernel (Binkowski et al. 2018): unlike the Frechet
distance it does not depend on the sample count, so it is the one to use with few images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdmem.data.subset import TrainingSet
from cdmem.metrics.quality.feature_space import FeatureMetric
from cdmem.metrics.quality.features import features_name
from cdmem.metrics.quality.frechet import (
    BLOCK,
    Moments,
    frechet_infinity,
    frechet_interval,
    least_for_infinity,
    moments,
    moments_distance,
    sampling_floor,
)
from cdmem.metrics.quality.kernel_variance import (
    Between,
    Within,
    jackknife_variance,
    variance_to_given,
    variance_to_sample,
)
from cdmem.metrics.statistics import Estimate, squared_distance_interval

MOST = 10_000  # rows of a reference that the kernel distance looks at, whose cost is quadratic
# A standard error from n images is itself known to a share 1 / sqrt(2 (n - 1)), a quarter at n = 9: with fewer than ten
# images no interval says anything, and a covariance has no ten directions.
LEAST = 10


@dataclass(frozen=True)
class Reference:
    """One side of the distances, with everything that does not depend on the other side.

    Attributes:
        features: (m, F).
        weights: rows that each stands for, float64 (m,).
        given: the rows are the whole distribution (T) rather than a sample of one (H).
        moments: of the rows.
        level: the kernel at the mean of the rows. KID does not change by a constant in the kernel, and without this one
            its small variance does not drown in the kernel's square.
        kernel_rows: sum over the other rows of the kernel less the level, float64 (m,); over all rows if ``given``.
        kernel_squares: the sum of squares over the same pairs.
    """

    features: Tensor
    weights: Tensor
    given: bool
    moments: Moments
    level: float
    kernel_rows: Tensor
    kernel_squares: float


def _kernel_sums(x: Tensor, y: Tensor, weights: Tensor, level: float) -> Between:
    """Sums of the kernel less the level between x (n, F) and y (m, F), over y with these weights (m,)."""
    y = y.double()
    rows, columns, squares = [], torch.zeros(len(y), dtype=torch.float64), 0.0
    for part in x.split(BLOCK):
        table = ((part.double() @ y.T) / y.shape[1] + 1) ** 3 - level
        rows.append(table @ weights)
        columns += table.sum(0)
        squares += float(table.square().sum())
    return Between(torch.cat(rows), columns, squares)


def _self_kernel(x: Tensor, level: float) -> Tensor:
    """The kernel of every row of x (n, F) with itself, less the level, (n,)."""
    return (x.double().square().sum(1) / x.shape[1] + 1) ** 3 - level


def _within(x: Tensor, level: float) -> Within:
    """Sums over the pairs of different rows of x (n, F)."""
    sums, alone = _kernel_sums(x, x, torch.ones(len(x), dtype=torch.float64), level), _self_kernel(x, level)
    return Within(sums.rows - alone, sums.squares - float(alone.square().sum()))


def reference_of(features: Tensor, weights: Tensor | None = None) -> Reference:
    """Everything about a reference that can be kept: features (m, F).

    Moments are of all rows; the kernel distance uses a fixed choice of 10,000 where there are more.

    Args:
        features: (m, F).
        weights: rows that each stands for, (m,). None: the rows are a *sample*, and KID leaves their diagonal out.
            Given: the rows *are* the distribution (the training set), and KID keeps it, so that a generator which
            draws from exactly these rows has expectation zero.
    """
    all_moments = moments(features, weights)
    w = torch.ones(len(features), dtype=torch.float64) if weights is None else weights.double()
    if len(features) > MOST:
        kept = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:MOST]
        features, w = features[kept], w[kept]
    mean = (w @ features.double()) / w.sum()
    level = float((mean.square().sum() / len(mean) + 1) ** 3)
    if weights is None:
        within = _within(features, level)
        return Reference(features, w, False, all_moments, level, within.rows, within.squares)
    sums = _kernel_sums(features, features, w, level)
    return Reference(features, w, True, all_moments, level, sums.rows, sums.squares)


def kernel_interval(generated: Tensor, reference: Reference) -> Estimate:
    """KID over all pairs, with its 95 % interval (:func:`squared_distance_interval`).

    Over generated and reference images if the reference is a sample, so that the interval is one of the distance to the
    *population* of H; two models' distances to one H share its part. Over the generated images alone if it is given.
    The variance is unbiased (`cdmem.metrics.quality.kernel_variance`), but at least half of the jackknife's, which is
    all of it where both sides have one distribution. In simulations 93 to 97 % of the intervals hold the truth.

    Args:
        generated: features (n, F), n at least 4.
        reference: from :func:`reference_of`, at least 4 rows if it is a sample.
    """
    n, w, total = len(generated), reference.weights, float(reference.weights.sum())
    x, between = _within(generated, reference.level), _kernel_sums(generated, reference.features, w, reference.level)
    sum_x, sum_xy, sum_y = x.rows.sum(), between.rows.sum(), w @ reference.kernel_rows
    alone = float(_self_kernel(generated, reference.level).sum())
    left_x = (sum_x - 2 * x.rows) / ((n - 1) * (n - 2)) - 2 * (sum_xy - between.rows) / ((n - 1) * total)
    jackknife = jackknife_variance(left_x)
    # With the pairs of a row with itself: a squared distance between the empirical distributions.
    biased = (sum_x + alone) / n**2 - 2 * sum_xy / (n * total)
    if reference.given:
        within_y = biased_y = sum_y / total**2
        variance = variance_to_given(x, between.rows / total)
    else:
        m, y = len(w), Within(reference.kernel_rows, reference.kernel_squares)
        within_y = sum_y / (m * (m - 1))
        biased_y = (sum_y + _self_kernel(reference.features, reference.level).sum()) / m**2
        left_y = (sum_y - 2 * y.rows) / ((m - 1) * (m - 2)) - 2 * (sum_xy - between.columns) / (n * (m - 1))
        jackknife = jackknife + jackknife_variance(left_y)
        variance = variance_to_sample(x, y, between)
    value = sum_x / (n * (n - 1)) + within_y - 2 * sum_xy / (n * total)
    spread = max(variance, float(jackknife) / 2)
    return squared_distance_interval(float(value), spread, float(jackknife), float(biased + biased_y))


class Fidelity(FeatureMetric):
    """Frechet and kernel distance of the samples to H and to T.

    Keys are ``fd_<features>``, ``kid_<features>``, ``kid_<features>_low`` and ``_high`` (``fid`` and ``kid`` for
    Inception) to H, and the same followed by ``_train`` to T, rows weighted by their multiplicities and, where training
    mirrors, with the mirror images. Without at least ten held-out images only those to T. Both references are
    computed once and kept over :meth:`reset`.

    Args:
        features: uint8 (B, C, H, W) -> (B, F); the pixels by default.
        interval: also ``<frechet key>_low`` and ``_high``, see :func:`frechet_interval`; another decomposition.
        infinity: also ``<frechet key>_infinity``, ``_low`` and ``_high`` to H, see :func:`frechet_infinity`; slow. With
            fewer images than it needs :meth:`unavailable` says so.
    """

    higher_is_better = False
    min_samples = LEAST

    def __init__(self, features: nn.Module | None = None, interval: bool = False, infinity: bool = False) -> None:
        super().__init__(features)
        self.interval, self.infinity = interval, infinity

    def prepare(self, training_set: TrainingSet) -> Fidelity:
        """Bind T and H and declare the states."""
        super().prepare(training_set)
        self._references: dict[str, Reference] = {}
        return self

    def references(self) -> dict[str, Reference]:
        """H under "" and T under ``_train``, with their features and moments; H only with ten or more images."""
        if not self._references:
            held_out = self.training_set.held_out_images
            if len(held_out) >= LEAST:
                self._references[""] = reference_of(self.features_of(held_out))
            train, _ = self.views(self.training_set.images)
            copies = self.training_set.multiplicities
            self._references["_train"] = reference_of(train, copies.repeat(len(train) // len(copies)))
        return self._references

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """The distances by key, see the class."""
        generated, key = self.features_of(rows["images"]), self.frechet_key
        values: dict[str, float] = {}
        for suffix, reference in self.references().items():
            found = {key: moments_distance(moments(generated), reference.moments)}
            found |= kernel_interval(generated, reference).columns(self.kernel_key)
            if self.interval:
                # The value is the same with and without an interval, whose decomposition is another one.
                found |= frechet_interval(generated, reference.moments)._replace(value=found[key]).columns(key)
            values |= {name + suffix: value for name, value in found.items()}
        if self.infinity and "" in self._references:
            limit = frechet_infinity(generated, self._references[""].moments, seed=0)
            values |= {} if limit is None else limit.columns(f"{key}_infinity")
        return values

    def controls(self, samples: int, seed: int = 0) -> dict[str, float]:
        """``<frechet key>_copycat``, FD of T itself to H, and ``_floor``, FD between two parts of H of ten or more.

        A model at the copycat's distance may only have copied; one at the floor could be H itself.

        Args:
            samples: size of the generated sets to compare with.
            seed: of the splits of H.

        Raises:
            InputError: fewer than ten held-out images.
        """
        self.need_held_out(LEAST)
        key, sides = self.frechet_key, self.references()
        copycat = moments_distance(sides["_train"].moments, sides[""].moments)
        held_out = sides[""].features
        # Long features cost minutes a split, and need fewer: their distances scatter little.
        repeats = 5 if held_out.shape[1] <= BLOCK else 1
        if min(samples, len(held_out) // 2) < LEAST:
            return {f"{key}_copycat": copycat}
        return {f"{key}_copycat": copycat, f"{key}_floor": sampling_floor(held_out, samples, seed, repeats)}

    def unavailable(self, images: int) -> str | None:
        """Why there is no distance, or none to H, or no extrapolated one, of so many images; None if there is."""
        keys, held_out = f"{self.frechet_key} and {self.kernel_key}", len(self.training_set.held_out_images)
        if images < LEAST:
            return f"{keys} of {images} images mean nothing: {LEAST} are needed"
        if 0 < held_out < LEAST:
            return f"{keys} to {held_out} held-out images mean nothing: {LEAST} are needed"
        return self._without_limit(images) if self.infinity else None

    def _without_limit(self, images: int) -> str | None:
        """Why there is no Frechet distance extrapolated from so many images; None if there is."""
        key = f"{self.frechet_key}_infinity"
        if "" not in self.references():
            return f"{key} is a distance to held-out images, and there are none"
        count = self.references()[""].features.shape[1]
        if images < least_for_infinity(count):
            return f"{key} of {images} images cannot be had: {count} features need {least_for_infinity(count)}"
        return None

    @property
    def frechet_key(self) -> str:
        """``fid`` for Inception, ``fd_<features>`` otherwise."""
        name = features_name(self._features[0])
        return "fid" if name == "inception" else f"fd_{name}"

    @property
    def kernel_key(self) -> str:
        """``kid`` for Inception, ``kid_<features>`` otherwise."""
        name = features_name(self._features[0])
        return "kid" if name == "inception" else f"kid_{name}"
