"""Costs of a network by torch's own FLOP counter, on the meta device: shapes without numbers, so in a second.

A multiply-add is two FLOPs; only matrix products, convolutions and attention count, as usual; norms, activations and
sums do not. Every count is that of one image: all counted operations are linear in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.errors import InputError
from cdmem.networks.config import NetworkConfig

META = torch.device("meta")


def build_on_meta(config: NetworkConfig, shape: Sequence[int], num_classes: int) -> nn.Module:
    """The network of a config for images (C, H, W), without memory for its weights.

    Raises:
        InputError: the config does not fit the images.
    """
    with META:
        return config.build(shape, num_classes, 0)


def noisy(shape: Sequence[int], num_classes: int, batch: int, device: str = "meta") -> tuple[Tensor, ...]:
    """Images (B, C, H, W), levels (B,) and labels (B,) or None, as a denoiser takes them."""
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if num_classes else None
    return torch.zeros(batch, *shape, device=device), torch.ones(batch, device=device), labels


def count(run: Callable[[], object]) -> int:
    """FLOPs of a call, backward passes in it included."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@torch.no_grad()
def forward_flops(function: DenoiserLike, shape: Sequence[int], num_classes: int = 0) -> int:
    """FLOPs of one evaluation per image, without gradient."""
    x, sigma, labels = noisy(shape, num_classes, 1)
    return count(lambda: function(x, sigma, labels))


def product_flops(function: DenoiserLike, shape: Sequence[int], num_classes: int = 0) -> int:
    """FLOPs per image of one v^T J of D(x): a backward pass to the image, not to the weights."""
    x, sigma, labels = noisy(shape, num_classes, 1)
    out = function(x.requires_grad_(True), sigma, labels)
    return count(lambda: torch.autograd.grad(out, x, torch.ones_like(out)))


@dataclass(frozen=True)
class TrainingPass:
    """One micro-batch of one device.

    Attributes:
        flops: of everything in the loss and its backward pass, per image.
        activations: bytes that the backward pass keeps, per image.
        fixed: bytes kept whatever the batch.
    """

    flops: int
    activations: int
    fixed: int

    def kept(self, images: int) -> int:
        """Bytes that the backward pass of so many images keeps."""
        return self.fixed + self.activations * images


def saved_bytes(loss: Callable[[], Tensor], module: nn.Module) -> tuple[int, Tensor]:
    """Bytes of all tensors that autograd keeps for the backward pass of ``loss``, weights aside, and the loss."""
    own = {t.untyped_storage()._cdata for t in [*module.parameters(), *module.buffers()]}
    # Storages, since views of one tensor are kept once; held here, so that no address is used twice.
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    return sum(storage.nbytes() for storage in kept.values()), value


def training_pass(loss: Callable[[int], Tensor], module: nn.Module) -> TrainingPass:
    """Measure a loss and its backward pass.

    Args:
        loss: batch size -> scalar loss.
        module: whose parameters and buffers are no activations.
    """
    # From two images on: a lone one lets transpositions be views where any other batch needs copies.
    with FlopCounterMode(display=False) as counter:
        two, graph = saved_bytes(lambda: loss(2), module)
        graph.backward()
    module.zero_grad(set_to_none=True)
    three, _ = saved_bytes(lambda: loss(3), module)
    return TrainingPass(counter.get_total_flops() // 2, three - two, max(0, 3 * two - 2 * three))


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def optimizer_bytes(factory: OptimizerCallable, parameters: Sequence[Tensor]) -> int:
    """Bytes of an optimizer's state, from a step of it on a parameter of 15 numbers.

    State of the parameter's shape grows with it; whatever else there is (step counts) is kept once a parameter.

    Raises:
        InputError: the optimizer cannot be stepped like this.
    """
    probe = nn.Parameter(torch.zeros(3, 5))
    probe.grad = torch.zeros_like(probe)
    try:
        optimizer = factory([probe])
        optimizer.step()
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        problem = f"its state cannot be sized ({type(error).__name__}: {error})"
        raise InputError("model.optimizer", factory, problem, "use one of torch.optim") from None
    state = [t for t in optimizer.state[probe].values() if isinstance(t, Tensor)]
    alike = sum(t.element_size() for t in state if t.shape == probe.shape)
    other = sum(t.numel() * t.element_size() for t in state if t.shape != probe.shape)
    return sum(alike * p.numel() + other for p in parameters)
