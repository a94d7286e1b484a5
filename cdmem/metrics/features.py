"""Feature modules for quality metrics: any ``nn.Module`` from uint8 images (B, C, H, W) to floats (B, F).

A module may have a ``name`` (used in keys such as ``fd_<name>``) and a ``digest`` of its weights. Only Inception's
Frechet distance is called FID.
"""

from __future__ import annotations

from torch import Tensor, nn

from cdmem.images import to_float


class PixelFeatures(nn.Module):
    """The pixels themselves in [-1, 1]: exact, no weights, meaningful for small aligned images."""

    name = "pixels"
    digest = "exact"

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C*H*W)."""
        return to_float(images).flatten(1)


def features_name(module: nn.Module) -> str:
    """The name under which a module's distances are logged."""
    return str(getattr(module, "name", type(module).__name__.lower()))
