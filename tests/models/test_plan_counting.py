"""FLOPs, activations and optimizer state against closed forms and real batches on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cdmem.diffusion.preconditioning import Denoiser, EDMScaling
from cdmem.models.flops import build_on_meta, forward_flops, noisy, optimizer_bytes, saved_bytes, training_pass
from cdmem.networks.mlp import MLP
from cdmem.networks.unet import UNet

PLAIN = UNet(channels=[8, 16], layers=1)
ATTENTION = UNet(channels=[8, 16], layers=1, attention=[4])

# ---- FLOPs ----------------------------------------------------------------------------------------------------------


def denoiser(network: nn.Module) -> Denoiser:
    return Denoiser(network, EDMScaling(0.5, 0.002))


def loss_of(function: Denoiser, shape: tuple[int, ...], device: str = "meta"):
    def loss(batch: int) -> torch.Tensor:
        x, sigma, labels = noisy(shape, 0, batch, device)
        return function(x, sigma, labels).square().mean()

    return loss


def mlp_linears(size: int, width: int, depth: int) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear layer, by hand."""
    return (
        [(size, width), (width, width), (width, width)]
        + depth * [(width, 2 * width), (2 * width, width)]
        + [(width, size)]
    )


def test_mlp_in_closed_form():
    shape, width, depth = (1, 4, 4), 12, 3
    function = denoiser(build_on_meta(MLP(width=width, depth=depth), shape, 0))
    layers = mlp_linears(16, width, depth)
    forward = sum(2 * m * n for m, n in layers)
    assert forward_flops(function, shape) == forward
    # Backward: a product for the weights and one for the input, which images and noise levels do not ask for.
    backward = 2 * forward - 2 * 16 * width - 2 * width * width
    assert training_pass(loss_of(function, shape), function).flops == forward + backward
    assert sum(p.numel() for p in function.parameters()) == sum(m * n + n for m, n in layers) + (depth + 1) * 2 * width


def unet_layers() -> list[tuple[int, int, int, int]]:
    """(kernel side, inputs, outputs, pixels) of ``PLAIN`` on 1x8x8, by hand from the diagram of a U-Net.

    A linear layer is a 1x1 convolution of one pixel. The time embedding has 4 x 8 channels.
    """

    def block(inputs: int, outputs: int, pixels: int) -> list[tuple[int, int, int, int]]:
        shortcut = [(1, inputs, outputs, pixels)] if inputs != outputs else []
        return [(3, inputs, outputs, pixels), (1, 32, outputs, 1), (3, outputs, outputs, pixels), *shortcut]

    layers = [(3, 1, 8, 64), (1, 8, 32, 1), (1, 32, 32, 1)]
    layers += [*block(8, 8, 64), (3, 8, 8, 16)]  # down, with its strided convolution
    layers += block(8, 16, 16)
    layers += block(16, 16, 16) + block(16, 16, 16)  # bottleneck
    layers += [*block(16 + 16, 16, 16), *block(16 + 8, 16, 16), (3, 16, 16, 64)]  # up, with its convolution
    layers += block(16 + 8, 8, 64) + block(8 + 8, 8, 64)
    return [*layers, (3, 8, 1, 64)]


def test_unet_in_closed_form():
    function = denoiser(build_on_meta(PLAIN, (1, 8, 8), 0))
    costs = [2 * k * k * m * n * pixels for k, m, n, pixels in unet_layers()]
    assert forward_flops(function, (1, 8, 8)) == sum(costs)
    # The first convolution's input and the noise level's embedding want no gradient.
    assert training_pass(loss_of(function, (1, 8, 8)), function).flops == 3 * sum(costs) - costs[0] - costs[1]


@pytest.mark.parametrize("config", [MLP(width=12), PLAIN, ATTENTION], ids=["mlp", "unet", "attention"])
def test_counts_of_real_batches_are_linear_in_the_batch(config):
    shape = (1, 8, 8)
    on_meta = denoiser(build_on_meta(config, shape, 0))
    real = denoiser(config.build(shape, 0, 0))
    forward, made = forward_flops(on_meta, shape), training_pass(loss_of(on_meta, shape), on_meta)
    for batch in (1, 2, 5):
        # The CPU's fused attention is unknown to torch's counter.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            value = loss_of(real, shape, "cpu")(batch)
            assert counter.get_total_flops() == batch * forward
            value.backward()
        assert counter.get_total_flops() == batch * made.flops


# ---- memory ---------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """second(exp(w) * SiLU(first(x))): what its backward pass needs can be told by looking."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.w = nn.Linear(6, 10), nn.Linear(10, 4), nn.Parameter(torch.zeros(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.w.exp() * nn.functional.silu(self.first(x)))


def test_activations_in_closed_form():
    module = Scaled()
    made = training_pass(lambda batch: module(torch.zeros(batch, 6)).square().mean(), module)
    # The inputs of: the first layer, SiLU, the product, the second layer, the square. Once: exp(w). The second layer's
    # weight is needed too, but it is there anyway.
    assert made.activations == 4 * (6 + 10 + 10 + 10 + 4)
    assert made.fixed == 4 * 10
    assert made.kept(5) == 4 * 10 + 5 * made.activations
    # x wants no gradient.
    assert made.flops == 2 * (2 * 6 * 10) + 3 * (2 * 10 * 4)


@pytest.mark.parametrize("config", [MLP(width=12), PLAIN, ATTENTION], ids=["mlp", "unet", "attention"])
def test_activations_are_those_of_a_real_batch(config):
    shape = (1, 8, 8)
    on_meta = denoiser(build_on_meta(config, shape, 0))
    real = denoiser(config.build(shape, 0, 0))
    made = training_pass(loss_of(on_meta, shape), on_meta)
    for batch in (2, 7, 64):
        with sdpa_kernel(SDPBackend.MATH):
            size, _ = saved_bytes(lambda b=batch: loss_of(real, shape, "cpu")(b), real)
        assert made.kept(batch) == size
    # Fused attention keeps no scores: the plan is an upper bound.
    fused, _ = saved_bytes(lambda: loss_of(real, shape, "cpu")(64), real)
    assert fused <= made.kept(64) <= 1.15 * fused


@pytest.mark.parametrize("config", [PLAIN, ATTENTION], ids=["unet", "attention"])
def test_activations_under_autocast_stay_below_the_plan(config):
    real = denoiser(config.build((1, 8, 8), 0, 0))
    made = training_pass(loss_of(real, (1, 8, 8), "cpu"), real)
    copies = 2 * sum(p.numel() for p in real.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, _ = saved_bytes(lambda: loss_of(real, (1, 8, 8), "cpu")(16), real)
    assert low <= made.kept(16) + copies


@pytest.mark.parametrize(
    "factory",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.RAdam(p, lr=0.1),
    ],
)
def test_optimizer_state_is_that_of_a_real_optimizer(factory):
    network = PLAIN.build((1, 8, 8), 0, 0)
    optimizer = factory(network.parameters())
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = [t for s in optimizer.state_dict()["state"].values() for t in s.values() if isinstance(t, torch.Tensor)]
    on_meta = list(build_on_meta(PLAIN, (1, 8, 8), 0).parameters())
    assert optimizer_bytes(factory, on_meta) == sum(t.nbytes for t in state)
