r"""Does the model denoise its training images better than held-out ones? Loss gap by noise level.

.. math:: G(\sigma) = E_{y \in H} |D(y + \sigma\epsilon) - y|^2 - E_{y \in T} |D(y + \sigma\epsilon) - y|^2

with the same noise for position k of T and of H. For a consistency student two losses are of interest: f in place of D,
and :func:`endpoint_losses`. The second is the fair one: D is a posterior mean and f the end of an ODE path, so f looks
sharper than any D by construction.

Losses are means over pixels, in units of [-1, 1]. Noise comes from one CPU generator per image, so a number does not
depend on the batch size beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from cdmem.diffusion.noise import SIGMA_MIN, sampler_sigmas
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.sampling import NoiseSource, sample_ode
from cdmem.diffusion.solvers import heun_step
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.metrics.statistics import Estimate
from cdmem.metrics.whitebox.roc import Separation, separation

# Within a sampling seed's million: samples start at 0, pools of teacher samples at 500,000.
SEED_OFFSET = 750_000


@dataclass(frozen=True)
class NoisyBatch:
    """Some images at one noise level.

    Attributes:
        rows: which images.
        level: which of the noise levels.
        clean: float64 (b, C, H, W) in [-1, 1].
        x: clean + sigma eps, float64.
        sigma: (b,), all equal.
        labels: int64 (b,) or None.
    """

    rows: slice
    level: int
    clean: Tensor
    x: Tensor
    sigma: Tensor
    labels: Tensor | None


class BatchOptions(TypedDict, total=False):
    """The options of :func:`batches`."""

    batch_size: int
    labels: Tensor | None
    device: torch.device | str


class NoiseOptions(BatchOptions, total=False):
    """The options of :func:`noisy_batches`."""

    seed: int
    draws: int


def batches(
    images: Tensor, batch_size: int = 256, labels: Tensor | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Positions of some images, these in [-1, 1], float64 (b, C, H, W), and their classes.

    Args:
        images: uint8 (n, C, H, W).
        batch_size: images at once.
        labels: classes int64 (n,), for conditional models.
        device: where the model is.

    Raises:
        InputError: no images.
    """
    if not len(images):
        raise InputError("images", 0, "there is nothing to measure on", "give at least one")
    for k in range(0, len(images), batch_size):
        rows = slice(k, min(k + batch_size, len(images)))
        yield rows, to_float(images[rows]).double().to(device), None if labels is None else labels[rows].to(device)


def noisy_batches(
    images: Tensor, sigmas: Sequence[float], seed: int = 0, draws: int = 1, **options: Unpack[BatchOptions]
) -> Iterator[NoisyBatch]:
    """Every image at every level; one noise per image and draw, shared by all levels (and by T and H at a position).

    Args:
        images: uint8 (n, C, H, W).
        sigmas: positive noise levels.
        seed: first sample seed of the run.
        draws: noises per image.
        options: of :func:`batches`.

    Raises:
        InputError: no images, or a level that is not positive.
    """
    if not len(sigmas) or min(sigmas) <= 0:
        raise InputError("sigmas", list(sigmas), "noise levels must be positive", "e.g. [0.1, 0.5, 2.0]")
    start = seed + SEED_OFFSET
    for rows, clean, classes in batches(images, **options):
        source = NoiseSource(range(start + rows.start, start + rows.stop), images.shape[1:])
        for _ in range(draws):
            eps = source.next().double().to(clean.device)
            for level, sigma in enumerate(sigmas):
                s = torch.full((len(clean),), float(sigma), dtype=torch.float64, device=clean.device)
                yield NoisyBatch(rows, level, clean, clean + sigma * eps, s, classes)


@torch.no_grad()
def _squared_errors(
    model: DenoiserLike,
    target: Callable[[NoisyBatch], Tensor],
    images: Tensor,
    sigmas: Sequence[float],
    options: NoiseOptions,
) -> Tensor:
    """Squared distance of a model's output to a target, float64 (n, levels), mean over pixels and draws."""
    losses = torch.zeros(len(images), len(sigmas), dtype=torch.float64)
    for batch in noisy_batches(images, sigmas, **options):
        error = model(batch.x, batch.sigma, batch.labels).double() - target(batch).double()
        losses[batch.rows, batch.level] += error.square().flatten(1).mean(1).cpu() / options.get("draws", 1)
    return losses


def denoising_losses(
    denoiser: DenoiserLike, images: Tensor, sigmas: Sequence[float], **options: Unpack[NoiseOptions]
) -> Tensor:
    """Per-image |D(y + sigma eps, sigma) - y|^2: float64 (n, levels), mean over pixels and draws.

    Also for a student's f in place of D. Options and errors as in :func:`noisy_batches`.
    """
    return _squared_errors(denoiser, lambda batch: batch.clean, images, sigmas, options)


@dataclass(frozen=True)
class OdeEndpoint:
    """Phi(x, sigma): where the probability-flow ODE of D leads from (x, sigma); called like a denoiser.

    Heun steps down a Karras grid of ``points`` levels from sigma to ``sigma_min``, then one step to 0 (EDM, alg. 1).
    """

    denoiser: DenoiserLike
    sigma_min: float = SIGMA_MIN
    points: int = 18

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), sigma (B,) all equal; float32 (B, C, H, W).

        Raises:
            InputError: different levels in one batch, which a common grid cannot start from.
        """
        start = float(sigma[0])
        if not bool((sigma == sigma[0]).all()):
            raise InputError("sigma", "several levels", "an ODE grid has one start", "solve one level at a time")
        grid = torch.tensor([start, 0.0], dtype=torch.float64)
        if start > self.sigma_min:
            grid = sampler_sigmas(self.points, self.sigma_min, start)
        return sample_ode(self.denoiser, x, grid, heun_step, labels)


def endpoint_losses(
    consistency: DenoiserLike,
    teacher_endpoint: DenoiserLike,
    images: Tensor,
    sigmas: Sequence[float],
    **options: Unpack[NoiseOptions],
) -> Tensor:
    """Per-image |f(y + sigma eps, sigma) - Phi(y + sigma eps, sigma)|^2: float64 (n, levels), mean over pixels, draws.

    A student equal to the ODE's solution at its own sigma_min reads about sigma_min^2, the noise that Phi removes.

    Args:
        consistency: the student's f.
        teacher_endpoint: Phi, see :class:`OdeEndpoint`.

    Options and errors as in :func:`noisy_batches`.
    """
    return _squared_errors(
        consistency, lambda batch: teacher_endpoint(batch.x, batch.sigma, batch.labels), images, sigmas, options
    )


@dataclass(frozen=True)
class LossGap:
    """T against H at one noise level: mean loss on H minus that on T (Welch's interval), and AUC and TPR of -loss."""

    train: float
    held_out: float
    gap: Estimate
    separation: Separation


def loss_gap(train_losses: Tensor, heldout_losses: Tensor) -> list[LossGap]:
    """Gap, AUC and TPR at 1 % FPR for every noise level; a positive gap and an AUC above 1/2 mean memorisation.

    The gap's interval is Welch's. Noise shared by position only makes it wider than needed.

    Args:
        train_losses: (n, levels).
        heldout_losses: (h, levels).

    Raises:
        InputError: fewer than two images on a side, or losses that are not finite.
    """
    if min(len(train_losses), len(heldout_losses)) < 2:
        sizes = f"{len(train_losses)} and {len(heldout_losses)}"
        raise InputError("data.held_out", sizes, "a gap with an interval needs two images of each", "use 2 or more")
    levels = zip(train_losses.double().numpy().T, heldout_losses.double().numpy().T)
    return [LossGap(float(t.mean()), float(h.mean()), welch(h, t), separation(-t, -h)) for t, h in levels]


def welch(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Estimate:
    """mean(first) - mean(second) of independent samples with Welch's t interval (Welch 1947); two values of each."""
    difference = float(first.mean() - second.mean())
    parts = [float(v.var(ddof=1)) / len(v) for v in (first, second)]
    total = sum(parts)
    if total == 0:
        return Estimate.around(difference, 0.0)
    # Relative parts: their squares could underflow otherwise.
    freedom = 1 / sum((p / total) ** 2 / (len(v) - 1) for p, v in zip(parts, (first, second)))
    return Estimate.around(difference, float(stats.t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(total))
