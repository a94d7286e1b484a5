r"""Frechet and kernel distances between generated and reference images, on any features.

KID is the unbiased squared maximum mean discrepancy with a cubic kernel (Binkowski et al. 2018): unlike the Frechet
distance it does not depend on the sample count, so it is the one to use with few images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdmem.data.subset import TrainingSet
from cdmem.metrics.quality.feature_space import FeatureMetric
from cdmem.metrics.quality.features import features_name
from cdmem.metrics.quality.frechet import (
    BLOCK,
    NORMAL_95,
    Moments,
    frechet_infinity,
    frechet_interval,
    moments,
    moments_distance,
    sampling_floor,
)
from cdmem.metrics.statistics import Estimate

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
        kernel_rows: sum over the other rows of the kernel, float64 (m,); over all rows if ``given``.
    """

    features: Tensor
    weights: Tensor
    given: bool
    moments: Moments
    kernel_rows: Tensor


def _kernel_sums(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel sums over the other side: float64 (n,), over y with weights wy (m,), and (m,), over x with wx (n,)."""
    y = y.double()
    rows, columns = [], torch.zeros(len(y), dtype=torch.float64)
    for part, weight in zip(x.split(BLOCK), wx.split(BLOCK)):
        table = ((part.double() @ y.T) / y.shape[1] + 1) ** 3
        rows.append(table @ wy)
        columns += weight @ table
    return torch.cat(rows), columns


def _self_kernel(x: Tensor) -> Tensor:
    return (x.double().square().sum(1) / x.shape[1] + 1) ** 3


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
    rows = _kernel_sums(features, features, w, w)[0]
    rows = rows if weights is not None else rows - _self_kernel(features)
    return Reference(features, w, weights is not None, all_moments, rows)


def kernel_interval(generated: Tensor, reference: Reference) -> Estimate:
    """KID over all pairs, with the normal 95 % interval of its jackknife standard error.

    Leaving one image out changes only its row sums, so all leave-one-out values come in closed form from the sums that
    the value needs anyway. Over generated and reference images if the reference is a sample, over the generated images
    alone if it is given. Near zero, where KID is degenerate, the interval is too wide (about sqrt 2), not too narrow.

    Args:
        generated: features (n, F), n at least 3: the jackknife leaves one out.
        reference: from :func:`reference_of`, at least 3 rows if it is a sample.
    """
    n, w = len(generated), reference.weights
    ones, total = torch.ones(n, dtype=torch.float64), float(w.sum())
    within = _kernel_sums(generated, generated, ones, ones)[0] - _self_kernel(generated)
    across, back = _kernel_sums(generated, reference.features, ones, w)
    sum_x, sum_xy, sum_y = within.sum(), across.sum(), w @ reference.kernel_rows
    within_y = sum_y / (total**2 if reference.given else total * (total - 1))
    within_x = sum_x / (n * (n - 1))
    value = float(within_x + within_y - 2 * sum_xy / (n * total))
    less_x = (sum_x - 2 * within) / ((n - 1) * (n - 2)) - 2 * (sum_xy - across) / ((n - 1) * total)
    variance = (n - 1) / n * (less_x - less_x.mean()).square().sum()
    if not reference.given:
        m = total
        less_y = (sum_y - 2 * reference.kernel_rows) / ((m - 1) * (m - 2)) - 2 * (sum_xy - back) / (n * (m - 1))
        variance = variance + (m - 1) / m * (less_y - less_y.mean()).square().sum()
    return Estimate.around(value, NORMAL_95 * math.sqrt(float(variance)))


class Fidelity(FeatureMetric):
    """Frechet and kernel distance of the samples to H and to T.

    Keys are ``fd_<features>``, ``kid_<features>``, ``kid_<features>_low`` and ``_high`` (``fid`` and ``kid`` for
    Inception) to H, and the same followed by ``_train`` to T, rows weighted by their multiplicities and, where training
    mirrors, with the mirror images. Without at least ten held-out images only those to T. Both references are
    computed once and kept over :meth:`reset`.

    Args:
        features: uint8 (B, C, H, W) -> (B, F); the pixels by default.
        interval: also ``<frechet key>_low`` and ``_high``, see :func:`frechet_interval`; another decomposition.
        infinity: also ``<frechet key>_infinity``, ``_low`` and ``_high`` to H, see :func:`frechet_infinity`; slow.
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
        """Why there is no distance, or none to H, of so many images; None if there is."""
        keys, held_out = f"{self.frechet_key} and {self.kernel_key}", len(self.training_set.held_out_images)
        if images < LEAST:
            return f"{keys} of {images} images mean nothing: {LEAST} are needed"
        if 0 < held_out < LEAST:
            return f"{keys} to {held_out} held-out images mean nothing: {LEAST} are needed"
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
