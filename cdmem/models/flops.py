"""Costs of a model: FLOPs by torch's own counter, numbers of parameters, memory.

A multiply-add is two FLOPs; only matrix products, convolutions and attention count, as usual; norms, activations and
sums do not. Every count is that of one image: all counted operations are linear in the batch. On the meta device, which
knows shapes and no numbers, a count takes a second.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cdmem.diffusion.losses import denoising_loss
from cdmem.diffusion.preconditioning import DenoiserLike

if TYPE_CHECKING:
    from cdmem.training.module import DiffusionModule


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """Count the FLOPs of a block; the CPU's fused attention, which torch does not count, is taken apart for it."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def on_meta(module: nn.Module) -> nn.Module:
    """A copy without numbers."""
    return copy.deepcopy(module).to("meta")


def noisy(shape: Sequence[int], num_classes: int, batch: int, device: str = "meta") -> tuple[Tensor, ...]:
    """Images (B, C, H, W), levels (B,) and labels (B,) or None, as a denoiser takes them."""
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if num_classes else None
    return torch.zeros(batch, *shape, device=device), torch.ones(batch, device=device), labels


@torch.no_grad()
def forward_flops(function: DenoiserLike, shape: Sequence[int], num_classes: int = 0) -> int:
    """FLOPs of one evaluation per image, without gradient; the function is on the meta device."""
    x, sigma, labels = noisy(shape, num_classes, 1)
    with counting_flops() as counter:
        function(x, sigma, labels)
    return counter.get_total_flops()


def saved_bytes(loss: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes of all tensors that autograd keeps for the backward pass of ``loss``, weights aside."""
    own = {t.untyped_storage()._cdata for t in [*module.parameters(), *module.buffers()]}
    # Storages, since views of one tensor are kept once; held here, so that no address is used twice.
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(storage.nbytes() for storage in kept.values())


def activations(function: nn.Module, shape: Sequence[int], num_classes: int, images: int) -> int:
    """Bytes that a denoising loss of ``function``, on the meta device, keeps for the backward pass of so many images.

    A student's target and teacher run without gradient and keep nothing.
    """

    def loss(batch: int) -> Tensor:
        x, sigma, labels = noisy(shape, num_classes, batch)
        return denoising_loss(function, x, sigma, x, torch.ones_like(sigma), labels).mean()

    # From two images on: a lone one lets transpositions be views where any other batch needs copies.
    two, three = (saved_bytes(partial(loss, batch), function) for batch in (2, 3))
    return max(0, 3 * two - 2 * three) + (three - two) * images


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def parameters(model: DiffusionModule, teacher: nn.Module | None = None) -> dict[str, int]:
    """Numbers of a prepared model by part; ``network`` is what is trained, ``teacher`` all that a student was given."""
    parts = {"network": model.raw.network, "averages": model.ema}
    if model.role == "student":
        parts |= {"target": model.target, "teacher": teacher}
    return {name: sum(p.numel() for p in part.parameters()) if part else 0 for name, part in parts.items()}


def memory(model: DiffusionModule, devices: int, precision: str, optimizer: int) -> dict[str, int]:
    """Bytes of a prepared model on each of so many devices by part, activations aside; ``optimizer`` is its state's."""
    size = sum(p.numel() * p.element_size() for p in model.raw.network.parameters())
    parts = {"weights": tensor_bytes(model.raw), "gradients": size}
    if devices > 1:
        parts["gradient buckets of DDP"] = size
    parts |= {"optimizer": optimizer, "averages": tensor_bytes(model.ema)}
    if model.role == "student":
        held = {"target": model.target, "teacher": model.teacher_denoiser}
        parts |= {name: tensor_bytes(part) if part else 0 for name, part in held.items()}
    if precision in ("bf16-mixed", "16-mixed"):
        parts["16-bit copies of the weights"] = size // 2
    return parts
