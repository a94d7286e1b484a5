r"""Feature likelihood divergence (FLD) and its generalisation gap (Jiralerspong et al. 2023).

An isotropic Gaussian of its own variance sits on every sample; the variances are fitted to T with equal weights of the
components. The closer the samples lie to T, the smaller the variances and the less likely H becomes:

.. math:: FLD = 100 (NLL_H / F - baseline), \qquad gap = 100 (NLL_T - NLL_H) / F

in nats, features standardised by mean and standard deviation of H. A negative gap means overfitting.

Objective, starting values and clamps are those of the published program, with its background during the fit: a Gaussian
at the mean of T whose distance to every row counts 0.9 times, of weight 1, so that images far from every sample do not
widen the others. Different is the optimiser: EM, whose step for the variances has a closed form, which never lowers
the likelihood and has no learning rate (published: 50 epochs of Adam). T counts distinct images, unless weights are
given, and distances are float64, so near-copies keep their digits.

The likelihood has many maxima that are nearly as high, and the two programs end at different ones. On 800 CIFAR-10
images each the mean log densities of T differ by 0.0001 to 0.001 nats per feature, in favour of either, and that is
enough to move a gap by 0.2 to 0.5: -1.12 here, -1.37 there (pixels); 0.39 and 0.07 (64 components); -0.34 and -0.07 on
2,000 images. Copies of one image in ten, at -20, differ no more. So a gap of less than 1 means nothing by itself:
compare values of one program only, and with the gap of held-out images, which has the same offset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cdmem.errors import InputError
from cdmem.metrics.quality.feature_space import FeatureMetric, halves, squared_blocks, unique_rows

LOWEST, HIGHEST = -40.0, 20.0  # log variances, as published
START = 1e-3  # added to squared distances for the first variances
NEARER = 0.9**2  # squared distances to the background are multiplied by this
IDLE = 1e-8  # share of the rows below which a component keeps its variance; about where Adam's step vanishes as well
STEPS, TOLERANCE = 50, 1e-6  # of EM; nats per feature
CACHE_ENTRIES = 2**27  # a table of distances of up to 1 GiB is kept between steps


@dataclass(frozen=True)
class Mixture:
    """Equal-weight isotropic Gaussians: centres float64 (m, F) and log variances float64 (m,)."""

    centres: Tensor
    log_variances: Tensor

    def log_density(self, rows: Tensor) -> Tensor:
        """Log density in nats: (n, F) -> float64 (n,)."""
        parts = [table.logsumexp(1) - math.log(len(self.centres)) for _, table in self._components(rows)]
        return torch.cat(parts)

    def scores(self, rows: Tensor) -> Tensor:
        """O_j = max_i log N(y_i | x_j, s_j) / F of every centre, float64 (m,); large where x_j is a copy of a row."""
        best = torch.full((len(self.centres),), -torch.inf, dtype=torch.float64)
        for _, table in self._components(rows):
            best = torch.maximum(best, table.amax(0))
        return best / self.centres.shape[1]

    def _components(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for part, table in squared_blocks(rows, self.centres):
            yield part, _log_normal_(table, self.log_variances, self.centres.shape[1])


def _log_normal_(squared: Tensor, log_variances: Tensor, size: int) -> Tensor:
    """Log densities of ``size`` dimensions from squared distances (n, m), in place."""
    return squared.mul_(-0.5 * (-log_variances).exp()).sub_(0.5 * size * (log_variances + math.log(2 * math.pi)))


def fit_mixture(centres: Tensor, rows: Tensor, weights: Tensor | None = None) -> Mixture:
    """Variances of Gaussians at the centres (m, F) that maximise the likelihood of rows (n, F) of weights (n,), by
    default 1, with the background during the fit."""
    weights = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights.double()
    log_variances, _ = maximise_likelihood(centres, rows, weights)
    return Mixture(centres.double(), log_variances[:-1])


def maximise_likelihood(centres: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, list[float]]:
    """EM until a step gains less than 1e-6 nats per feature, or 50 steps.

    Centres are (m, F), rows (n, F), their weights float64 (n,). The first variances are those of the nearest row, and 1
    for the background. A component that is responsible for next to nothing keeps its variance.

    Returns:
        log variances float64 (m + 1,), the background's last, and the mean log density per feature before every step,
        which never falls.
    """
    size, total = centres.shape[1], float(weights.sum())
    origin = (weights[:, None] * rows.double()).sum(0, keepdim=True) / total
    kept = list(_tables(rows, centres, origin)) if len(rows) * len(centres) <= CACHE_ENTRIES else None
    least = torch.full((len(centres) + 1,), torch.inf, dtype=torch.float64)
    for _, table in kept or _tables(rows, centres, origin):
        least = torch.minimum(least, table.amin(0))
    log_variances = ((least + START) / size).log()
    log_variances[-1] = 0
    log_weights = torch.full_like(log_variances, -math.log(len(centres)))
    log_weights[-1] = 0
    trace: list[float] = []
    for _ in range(STEPS):
        mass, spread, reached = torch.zeros_like(least), torch.zeros_like(least), 0.0
        for part, table in kept or _tables(rows, centres, origin):
            logs = _log_normal_(table.clone(), log_variances, size).add_(log_weights)
            density = logs.logsumexp(1, keepdim=True)
            share = logs.sub_(density).exp_().mul_(weights[part, None])
            mass += share.sum(0)
            spread += share.mul_(table).sum(0)
            reached += float(weights[part] @ density[:, 0])
        step = (spread / (size * mass.clamp_min(1e-300))).log().clamp(LOWEST, HIGHEST)
        log_variances = torch.where(mass > IDLE * total, step, log_variances)
        trace.append(reached / total / size)
        if len(trace) > 1 and trace[-1] - trace[-2] < TOLERANCE:
            break
    return log_variances, trace


def _tables(rows: Tensor, centres: Tensor, origin: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of squared distances (n, m + 1) to the centres (m, F) and, shrunk, to the origin (1, F)."""
    for part, table in squared_blocks(rows, centres):
        background = NEARER * (rows[part].double() - origin).square().sum(1, keepdim=True)
        yield part, torch.cat([table, background], 1)


@dataclass(frozen=True)
class Likelihood:
    """FLD, the gap and its standard error in 100 nats per feature; the NLL in nats per feature; O_j of the samples.

    The standard error takes the images of T and H as random and the fitted mixture as given. ``unbounded``: every
    sample is a training image, so that no likelihood is the largest; the numbers are then those of the clamp.
    """

    fld: float
    gap: float
    gap_se: float
    nll_train: float
    nll_held_out: float
    baseline: float
    scores: Tensor
    unbounded: bool = False


def feature_likelihood(
    generated: Tensor, train: Tensor, held_out: Tensor, weights: Tensor | None = None, seed: int = 0
) -> Likelihood:
    """FLD and generalisation gap of samples, see the module.

    The baseline is NLL_H / F of a mixture on half of T, but at most m images, fitted to the rest of T.

    Args:
        generated: features (m, F).
        train: (n, F).
        held_out: (h, F).
        weights: of the training rows, (n,); by default every distinct row counts once, however often it is repeated.
        seed: of the split of T for the baseline.

    Raises:
        InputError: no samples, or fewer than two distinct training rows or held-out rows.
    """
    if not len(generated):
        raise InputError("samples", 0, "a mixture needs centres", "give at least one sample")
    if len(held_out) < 2:
        raise InputError("data.held_out", len(held_out), "FLD needs two held-out images", "use 2 or more")
    rows = unique_rows(train) if weights is None else train
    if len(rows) < 2:
        raise InputError("data.n", len(rows), "FLD needs two different training images", "use n >= 2")
    counts = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights.double()
    samples, rows, test = _standardised(generated, rows, held_out)
    size = test.shape[1]
    mixture = fit_mixture(samples, rows, counts)
    on_train, on_test = -mixture.log_density(rows) / size, -mixture.log_density(test) / size
    share = counts / counts.sum()
    nll_train, nll_test = float(share @ on_train), float(on_test.mean())
    variance = share.square() @ (on_train - nll_train).square() + on_test.var() / len(on_test)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    one, other = order.tensor_split([min(len(samples), len(rows) // 2)])
    baseline = -float(fit_mixture(rows[one], rows[other], counts[other]).log_density(test).mean()) / size
    return Likelihood(
        fld=100 * (nll_test - baseline),
        gap=100 * (nll_train - nll_test),
        gap_se=100 * math.sqrt(float(variance)),
        nll_train=nll_train,
        nll_held_out=nll_test,
        baseline=baseline,
        scores=mixture.scores(rows),
        unbounded=bool((mixture.log_variances <= LOWEST).all()),
    )


def _standardised(generated: Tensor, train: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All in float64, by mean and standard deviation of the held-out rows; constant features are only centred."""
    mean, deviation = held_out.double().mean(0), held_out.double().std(0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    samples, rows, test = ((side.double() - mean) / deviation for side in (generated, train, held_out))
    return samples, rows, test


def _without_clamp(at_clamp: Likelihood) -> Likelihood:
    """What the numbers of vanishing variances tend to; a training image that nobody copied is impossible as well."""
    nll_train = math.copysign(math.inf, at_clamp.nll_train)
    return replace(at_clamp, fld=math.inf, gap=-math.inf, gap_se=math.nan, nll_train=nll_train, nll_held_out=math.inf)


class FeatureLikelihood(FeatureMetric):
    """FLD and generalisation gap, beside those of one half of H as samples and the other half as test images.

    Where training mirrors, mirrored samples are centres too, so a mirrored copy counts as a copy. Where every sample is
    a training image the variances vanish and H becomes impossible: FLD is inf and the gap -inf, not what the clamp
    makes of them.

    Args:
        features: uint8 (B, C, H, W) -> (B, F); the pixels by default.
        weighted: weigh training images by their multiplicity, instead of each once.
        most: training images that are used, drawn by ``seed``, as in the published protocol.
        seed: of the splits of T and H.
    """

    higher_is_better = False

    def __init__(
        self, features: nn.Module | None = None, weighted: bool = False, most: int = 10_000, seed: int = 0
    ) -> None:
        super().__init__(features)
        self.weighted, self.most, self.seed = weighted, most, seed

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """``fld``, ``fld_gap``, ``fld_gap_se``, ``fld_nll_train``, ``fld_nll_heldout``, ``fld_baseline``; and with at
        least 4 held-out images ``fld_heldout``, ``fld_gap_heldout``, ``fld_gap_heldout_se``."""
        held_out, kept = self.need_held_out(2), self._kept()
        train = self.features_of(self.training_set.images[kept])
        weights = self.training_set.multiplicities[kept] if self.weighted else None

        def against(images: Tensor, test: Tensor) -> Likelihood:
            return feature_likelihood(self.views(images)[0], train, self.features_of(test), weights, self.seed)

        likelihood = against(rows["images"], held_out)
        if likelihood.unbounded:
            likelihood = _without_clamp(likelihood)
        values = {
            "fld": likelihood.fld,
            "fld_gap": likelihood.gap,
            "fld_gap_se": likelihood.gap_se,
            "fld_nll_train": likelihood.nll_train,
            "fld_nll_heldout": likelihood.nll_held_out,
            "fld_baseline": likelihood.baseline,
            "fld_train_images": float(len(kept)),
        }
        if len(held_out) >= 4:
            control = self.once("baseline", lambda: against(*halves(held_out, self.seed)))
            values |= {
                "fld_heldout": control.fld,
                "fld_gap_heldout": control.gap,
                "fld_gap_heldout_se": control.gap_se,
            }
        return values

    def _kept(self) -> Tensor:
        """Positions in T of the images that are used, int64."""
        count = len(self.training_set.images)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return torch.arange(count) if count <= self.most else order[: self.most].sort().values
