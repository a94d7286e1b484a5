r"""Frechet and kernel distances between generated and reference images, on any features.

.. math:: FD = \|\mu_1-\mu_2\|^2 + \mathrm{tr}\left(S_1 + S_2 - 2 (S_1 S_2)^{1/2}\right)

from float64 sums and the eigenvalue form; no matrix square root, so it neither fails nor turns complex when there are
fewer images than features. FD depends on the sample count; KID (unbiased) does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from cdmem.errors import InputError


def frechet_distance(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> float:
    """Distance between two Gaussians, in float64.

    tr (S1 S2)^(1/2) is the sum of the square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric.

    Args:
        mu1: (F,).
        cov1: (F, F).
        mu2: (F,).
        cov2: (F, F).
    """
    values, vectors = torch.linalg.eigh(cov1.double())
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    middle = root @ cov2.double() @ root
    cross = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp_min(0).sqrt().sum()
    shift = (mu1.double() - mu2.double()).square().sum()
    return float(shift + cov1.double().trace() + cov2.double().trace() - 2 * cross)


def kernel_distance(x: Tensor, y: Tensor, block: int = 1024) -> float:
    """KID: unbiased MMD^2 over all pairs with k(a, b) = (a.b / F + 1)^3 (Binkowski et al. 2018); may be negative.

    Args:
        x: features (n, F).
        y: features (m, F).
        block: rows at a time, which bounds memory.
    """
    x, y = x.double(), y.double()

    def total(a: Tensor, b: Tensor) -> float:
        parts = (((part @ b.T) / a.shape[1] + 1) ** 3 for part in a.split(block))
        return float(sum(part.sum() for part in parts))

    def diagonal(a: Tensor) -> float:
        return float(((a.square().sum(1) / a.shape[1] + 1) ** 3).sum())

    n, m = len(x), len(y)
    within = (total(x, x) - diagonal(x)) / (n * (n - 1)) + (total(y, y) - diagonal(y)) / (m * (m - 1))
    return within - 2 * total(x, y) / (n * m)


def _enough(reference: int, generated: int) -> None:
    for name, count in (("held-out", reference), ("generated", generated)):
        if count < 2:
            raise InputError("samples", count, f"a distance needs at least 2 {name} images", "give more")


class FrechetDistance(Metric):
    """Streaming Frechet distance: sums only, so it adds up exactly over batches and processes.

    Args:
        features: uint8 (B, C, H, W) -> (B, F).
        keep_reference: :meth:`reset` forgets the generated images only.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    def __init__(self, features: nn.Module, keep_reference: bool = False) -> None:
        super().__init__()
        # In a list: not a submodule, so no weights of the extractor reach a checkpoint.
        self._features = [features]
        self.keep_reference = keep_reference
        for side in ("reference", "generated"):
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, images: Tensor, reference: bool) -> None:
        """Add uint8 images (B, C, H, W) to the reference or to the generated side."""
        f = self._features[0](images).double().to(self.device)
        side = "reference" if reference else "generated"
        for name, value in (("count", f.new_tensor(len(f))), ("sum", f.sum(0)), ("outer", f.T @ f)):
            setattr(self, f"{side}_{name}", getattr(self, f"{side}_{name}") + value)

    def _moments(self, side: str) -> tuple[Tensor, Tensor]:
        count, total = getattr(self, f"{side}_count"), getattr(self, f"{side}_sum")
        mean = total / count
        cov = (getattr(self, f"{side}_outer") - count * torch.outer(mean, mean)) / (count - 1)
        return mean, cov

    def compute(self) -> Tensor:
        """The distance, float64 scalar.

        Raises:
            InputError: fewer than two images on a side.
        """
        _enough(int(self.reference_count), int(self.generated_count))
        value = frechet_distance(*self._moments("reference"), *self._moments("generated"))
        return torch.tensor(value, dtype=torch.float64)

    def reset(self) -> None:
        kept = {n: getattr(self, f"reference_{n}") for n in ("count", "sum", "outer")} if self.keep_reference else {}
        super().reset()
        for name, value in kept.items():
            setattr(self, f"reference_{name}", value)


class KernelDistance(Metric):
    """KID over all features of both sides, which are kept.

    Args:
        features: uint8 (B, C, H, W) -> (B, F).
        keep_reference: :meth:`reset` forgets the generated images only.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    def __init__(self, features: nn.Module, keep_reference: bool = False) -> None:
        super().__init__()
        self._features = [features]
        self.keep_reference = keep_reference
        # Flat, because an empty share of a 2-D state breaks the gathering over processes.
        self.add_state("reference", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")
        self.add_state("size", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    @torch.no_grad()
    def update(self, images: Tensor, reference: bool) -> None:
        """Add uint8 images (B, C, H, W) to the reference or to the generated side."""
        f = self._features[0](images).double().to(self.device)
        self.size = torch.maximum(self.size, self.size.new_tensor(f.shape[1]))
        (self.reference if reference else self.generated).append(f.flatten())

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # torchmetrics would send float32 for a share without images, which the other ranks read as float64.
        for name in ("reference", "generated"):
            if not len(getattr(self, name)):
                setattr(self, name, [torch.zeros(0, dtype=torch.float64, device=self.device)])
        super()._sync_dist(*args, **kwargs)

    def compute(self) -> Tensor:
        """The distance, float64 scalar; see :func:`kernel_distance`.

        Raises:
            InputError: fewer than two images on a side.
        """
        sides = []
        for value in (self.reference, self.generated):
            flat = dim_zero_cat(value) if len(value) else torch.zeros(0, dtype=torch.float64)
            sides.append(flat.reshape(-1, max(int(self.size), 1)))
        _enough(len(sides[0]), len(sides[1]))
        return torch.tensor(kernel_distance(*sides), dtype=torch.float64)

    def reset(self) -> None:
        # A copy, because torchmetrics clears the list itself.
        kept, size = (list(self.reference), self.size) if self.keep_reference else ([], None)
        super().reset()
        if size is not None:
            self.reference, self.size = kept, size
