"""Feature extractors of the quality metrics: any ``nn.Module`` from uint8 images (B, C, H, W) to floats (B, F).

A module may have

- ``name``: used in keys such as ``fd_<name>``; by default its class's name in lower case;
- ``digest``: identifies its weights; by default the SHA-256 of its ``state_dict``;
- ``channels``: with 3, grey images are repeated to three channels.

Only Inception's Frechet distance is called FID.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cdmem.errors import InputError
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


def digest_of(module: nn.Module) -> str:
    """``module.digest``, or the SHA-256 of its class name and ``state_dict``."""
    if hasattr(module, "digest"):
        return str(module.digest)
    total = hashlib.sha256(type(module).__qualname__.encode())
    for key, value in sorted(module.state_dict().items()):
        total.update(f"\n{key} ".encode())
        if isinstance(value, Tensor):
            total.update(f"{value.dtype} {tuple(value.shape)} ".encode())
            # Bytes rather than numbers: numpy has no bfloat16.
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            total.update(repr(value).encode())
    return total.hexdigest()


def extract(module: nn.Module, images: Tensor, batch_size: int = 256, device: torch.device | str = "cpu") -> Tensor:
    """Features of images in the module's own precision: eval mode, no autocast, no gradients; modes are restored.

    Args:
        module: uint8 (B, C, H, W) -> (B, F); moved to ``device``.
        images: uint8 (m, C, H, W).
        batch_size: images at once.
        device: where the module runs.

    Returns:
        float32 or float64 (m, F), on the CPU.

    Raises:
        InputError: the module does not give one finite float vector per image.
    """
    if getattr(module, "channels", None) == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    # No images: the features of a black one tell type and length.
    batches = images.split(batch_size) if len(images) else [images.new_zeros(1, *images.shape[1:])]
    parts = []
    module.to(device)
    with _evaluation_mode(module), torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
        for batch in batches:
            features = module(batch.to(device))
            _check(module, features, len(batch))
            parts.append(features.cpu() if features.dtype == torch.float64 else features.float().cpu())
    return torch.cat(parts)[: len(images)]


_recent: OrderedDict[tuple[str, str, str], Tensor] = OrderedDict()
RECENT = 6  # sets of images whose features are kept: T, H, and some samples
FEW = 64


def cached_features(module: nn.Module, images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """:func:`extract`, but kept for several metrics that need the same images under the same weights.

    Pixels and small sets are cheaper to make than to look up.
    """
    if isinstance(module, PixelFeatures) or len(images) < FEW:
        return extract(module, images, device=device)
    content = hashlib.sha256(f"{tuple(images.shape)}".encode())
    content.update(images.cpu().contiguous().numpy().data)
    key = (features_name(module), digest_of(module), content.hexdigest())
    if key not in _recent:
        _recent[key] = extract(module, images, device=device)
        if len(_recent) > RECENT:
            _recent.popitem(last=False)
    _recent.move_to_end(key)
    return _recent[key]


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule has the mode it had, also where they differed."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _check(module: nn.Module, features: Tensor, count: int) -> None:
    if not isinstance(features, Tensor):
        problem = f"gives {type(features).__name__} instead of a tensor"
    elif features.ndim != 2 or len(features) != count or not features.shape[1]:
        problem = f"gives {tuple(features.shape)} for {count} images"
    elif not features.is_floating_point():
        problem = f"gives {str(features.dtype).removeprefix('torch.')} instead of floats"
    elif not bool(features.isfinite().all()):
        problem = "gives infinite or undefined features"
    else:
        return
    raise InputError("features", features_name(module), problem, "return finite floats (B, F) for B images")
