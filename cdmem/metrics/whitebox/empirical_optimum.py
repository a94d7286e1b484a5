r"""How far is the model from the optimum of its training loss, which copies? By noise level.

.. math:: \frac{E|D_\theta(x;\sigma) - D^*(x;\sigma)|^2}{E|x_0 - D^*(x;\sigma)|^2},\qquad x = x_0 + \sigma\epsilon

with D* the denoiser of the weighted training set (Gu et al. 2023). Near 0 the model *is* the memorising solution; 1 is
as far as the clean image itself. A student's f is compared with the ODE endpoint of D*, not with D*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from cdmem.data.subset import TrainingSet
from cdmem.diffusion.analytic import EmpiricalDenoiser
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.metrics.whitebox.loss_gap import NoiseOptions, noisy_batches

# Variance of rounding to grey levels: an optimum that is nearer to the clean image than this reproduces it. The mean
# over images is then one of rare exceptions, or of nothing but floating-point error.
LEAST_REFERENCE = (2 / 255) ** 2 / 12


class EmpiricalOptimum(EmpiricalDenoiser):
    """D* by matrix products, for many queries, and of each class alone for conditional models.

    Distances are expanded, |x|^2 - 2 x.y + |y|^2 in float64: off by some 1e-12, which sigma >= 0.001 does not notice.

    Args:
        x0: images in [-1, 1], (n, C, H, W).
        multiplicities: weight of each, (n,).
        classes: int64 (n,); with them the posterior of a query with a label has images of that class only.
    """

    classes: Tensor | None

    def __init__(self, x0: Tensor, multiplicities: Tensor | None = None, classes: Tensor | None = None) -> None:
        super().__init__(x0, multiplicities)
        self.register_buffer("classes", classes)

    def responsibilities(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Posterior probability of each image, float64 (B, n).

        Raises:
            InputError: a label of which the training set has no image.
        """
        means = self.means.flatten(1)
        # Centred, so that what cancels is small.
        centre = means.mean(0)
        flat, centred = x.double().flatten(1) - centre, means - centre
        squared = flat.square().sum(1)[:, None] + centred.square().sum(1) - 2 * flat @ centred.T
        logits = self.log_weights - squared / (2 * sigma.double()[:, None] ** 2)
        if labels is not None and self.classes is not None:
            other = labels[:, None] != self.classes
            if bool(other.all(1).any()):
                raise InputError("labels", labels.tolist(), "a class without training images", "leave it out")
            logits = logits.masked_fill(other, -torch.inf)
        return torch.softmax(logits, 1)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), sigma (B,) positive; labels (B,) count where the classes were given."""
        return (self.responsibilities(x, sigma, labels) @ self.means.flatten(1)).reshape(x.shape)


def training_optimum(training_set: TrainingSet, conditional: bool) -> EmpiricalOptimum:
    """D* of what the model sees: repetitions, mirror images where training mirrors, classes for conditional models."""
    images, copies = training_set.images, training_set.multiplicities
    classes = training_set.labels if conditional else None
    if training_set.flip:
        images, copies = torch.cat([images, images.flip(-1)]), copies.repeat(2)
        classes = None if classes is None else classes.repeat(2)
    return EmpiricalOptimum(to_float(images), copies, classes)


@dataclass(frozen=True)
class OptimumDistance:
    """Distance at one noise level, squares per pixel in units of [-1, 1].

    Attributes:
        absolute: E|model - optimum|^2.
        reference: E|x0 - optimum|^2.
        ratio: absolute / reference; None where the reference is below the images' own rounding (on T at little noise);
            just above that it is large by its denominator: read ``absolute``.
    """

    absolute: float
    reference: float
    ratio: float | None


@torch.no_grad()
def distance_to_optimum(
    model: DenoiserLike,
    optimum: DenoiserLike,
    images: Tensor,
    sigmas: Sequence[float],
    **options: Unpack[NoiseOptions],
) -> list[OptimumDistance]:
    """One distance per noise level, on noisy versions of ``images`` (from T, or from H).

    Args:
        model: a teacher's D, or a student's f.
        optimum: D* for a D, ``OdeEndpoint(D*)`` for an f.

    Options and errors as in :func:`~cdmem.metrics.whitebox.loss_gap.noisy_batches`.
    """
    absolute, reference = torch.zeros(2, len(sigmas), dtype=torch.float64)
    count = len(images) * options.get("draws", 1)
    for batch in noisy_batches(images, sigmas, **options):
        best = optimum(batch.x, batch.sigma, batch.labels).double()
        error = model(batch.x, batch.sigma, batch.labels).double() - best
        absolute[batch.level] += float(error.square().flatten(1).mean(1).sum()) / count
        reference[batch.level] += float((batch.clean - best).square().flatten(1).mean(1).sum()) / count
    pairs = zip(absolute.tolist(), reference.tolist())
    return [OptimumDistance(a, r, a / r if r >= LEAST_REFERENCE else None) for a, r in pairs]
