r"""Local intrinsic dimension of a model around an image (FLIPD; Kamkari et al. 2024, Ross et al. 2025).

.. math:: LID(x;\sigma) = D + \sigma^2 (\mathrm{tr} \nabla s + |s|^2)
          = \mathrm{tr} J_D(x;\sigma) + |D(x;\sigma) - x|^2 / \sigma^2

with the score s = (D(x) - x) / sigma^2 at the image itself, without noise. An isolated memorised image has LID 0: there
D is constant. Images that are simple have a low LID in the data as well, so compare with held-out images. A network's
Jacobian need not be that of a posterior mean, and its LID can be negative.

With a student's f in place of D this is another quantity, ``lid_f``: the Jacobian of the ODE's solution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.sampling import NoiseSource
from cdmem.errors import InputError


@dataclass(frozen=True)
class Dimension:
    """LID of every image, float64 (B,).

    Attributes:
        value: trace + residual.
        standard_error: of the trace over random probes; 0 where it is exact.
        trace: tr J.
        residual: |D(x) - x|^2 / sigma^2.
    """

    value: Tensor
    standard_error: Tensor
    trace: Tensor
    residual: Tensor


def lid(
    denoiser: DenoiserLike,
    x: Tensor,
    sigma: float,
    seeds: Sequence[int] = (),
    probes: int | None = None,
    batch_size: int = 64,
    labels: Tensor | None = None,
) -> Dimension:
    """LID of images at one noise level.

    The trace needs v^T J v, which one backward pass gives: forward mode would too, but not through every attention.

    Args:
        denoiser: D, or a student's f (then the result is ``lid_f``).
        x: images in [-1, 1], float (B, C, H, W), on the model's device.
        sigma: noise level.
        seeds: one per image; of its Rademacher probes.
        probes: random probes per image (Hutchinson); None sums the diagonal exactly by C*H*W backward passes.
        batch_size: images at once.
        labels: classes (B,).

    Raises:
        InputError: no images, sigma not positive, one probe (no standard error), or not one seed per image.
    """
    if sigma <= 0 or not len(x):
        raise InputError("sigma", sigma, f"needs a positive level, and images ({len(x)})", "e.g. 0.1")
    if probes is not None and probes < 2:
        raise InputError("probes", probes, "a standard error needs two", "use 2 or more, or None for the exact trace")
    if probes is not None and len(seeds) != len(x):
        raise InputError("seeds", len(seeds), f"there are {len(x)} images", "give one seed per image")
    parts = []
    for k in range(0, len(x), batch_size):
        rows = slice(k, k + batch_size)
        classes = None if labels is None else labels[rows]
        parts.append(_lid(denoiser, x[rows], sigma, list(seeds[rows]), probes, classes))
    return Dimension(*(torch.cat(column) for column in zip(*parts)))


def _lid(
    denoiser: DenoiserLike, x: Tensor, sigma: float, seeds: list[int], probes: int | None, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Evaluation runs without gradients, Lightning's in inference mode, whose tensors must be copied to be used here.
    with torch.inference_mode(False), torch.enable_grad():
        point = x.detach().clone().double().requires_grad_(True)
        level = torch.full((len(x),), float(sigma), dtype=torch.float64, device=x.device)
        output = denoiser(point, level, None if labels is None else labels.clone()).double()

        def product(v: Tensor) -> Tensor:
            """v^T J as a row of every image; a D that does not depend on x has no graph and J = 0."""
            if not output.requires_grad:
                return torch.zeros_like(point)
            grad = torch.autograd.grad(output, point, v, retain_graph=True, allow_unused=True)[0]
            return torch.zeros_like(point) if grad is None else grad.double()

        trace, error = _exact(product, point) if probes is None else _hutchinson(product, point, seeds, probes)
    residual = (output.detach() - point.detach()).square().flatten(1).sum(1) / sigma**2
    return tuple(t.cpu() for t in (trace + residual, error, trace, residual))


def _exact(product: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    """tr J (B,) from the rows of J, and its error 0."""
    flat = point.detach().flatten(1)
    trace = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
    for j in range(flat.shape[1]):
        unit = torch.zeros_like(flat)
        unit[:, j] = 1
        trace += product(unit.reshape(point.shape)).flatten(1)[:, j]
    return trace, torch.zeros_like(trace)


def _hutchinson(
    product: Callable[[Tensor], Tensor], point: Tensor, seeds: list[int], probes: int
) -> tuple[Tensor, Tensor]:
    """Mean of v^T J v over random signs v, (B,), and its standard error (Hutchinson 1990)."""
    source = NoiseSource(seeds, point.shape[1:])
    values = []
    for _ in range(probes):
        signs = torch.where(source.next() < 0, -1.0, 1.0).to(point)
        values.append((product(signs) * signs).flatten(1).sum(1))
    stacked = torch.stack(values)
    return stacked.mean(0), stacked.std(0) / probes**0.5
