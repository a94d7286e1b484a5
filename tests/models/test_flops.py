"""FLOPs, activations, optimizer state and step times against closed forms, real batches and a clock of our own."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cdmem.diffusion.losses import denoising_loss
from cdmem.diffusion.preconditioning import Denoiser, EDMScaling
from cdmem.errors import InputError
from cdmem.models.flops import (
    activations,
    counting_flops,
    forward_flops,
    noisy,
    on_meta,
    saved_bytes,
)
from cdmem.models.speed import measure, step_costs
from cdmem.networks.mlp import MLP
from cdmem.networks.unet import UNet
from cdmem.training.datamodule import MemorizationDataModule
from cdmem.training.settings import Optimization
from cdmem.training.teacher import DiffusionTeacher

PLAIN = UNet(channels=[8, 16], layers=1)
ATTENTION = UNet(channels=[8, 16], layers=1, attention=[4])

# ---- FLOPs ----------------------------------------------------------------------------------------------------------


def denoiser(network: nn.Module) -> Denoiser:
    return Denoiser(network, EDMScaling(0.5, 0.002))


def loss_of(function: Denoiser, shape: tuple[int, ...], batch: int) -> torch.Tensor:
    x, sigma, labels = noisy(shape, 0, batch, "cpu")
    return denoising_loss(function, x, sigma, x, torch.ones_like(sigma), labels).mean()


def training_flops(function: Denoiser, shape: tuple[int, ...], batch: int) -> int:
    with counting_flops() as counter:
        loss_of(function, shape, batch).backward()
    return counter.get_total_flops()


def mlp_linears(size: int, width: int, depth: int) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear layer, by hand."""
    return (
        [(size, width), (width, width), (width, width)]
        + depth * [(width, 2 * width), (2 * width, width)]
        + [(width, size)]
    )


def test_mlp_in_closed_form():
    shape, width, depth = (1, 4, 4), 12, 3
    function = denoiser(MLP(width=width, depth=depth).build(shape, 0, 0))
    layers = mlp_linears(16, width, depth)
    forward = sum(2 * m * n for m, n in layers)
    assert forward_flops(on_meta(function), shape) == forward
    # Backward: a product for the weights and one for the input, which images and noise levels do not ask for.
    backward = 2 * forward - 2 * 16 * width - 2 * width * width
    assert training_flops(function, shape, 1) == forward + backward
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
    function = denoiser(PLAIN.build((1, 8, 8), 0, 0))
    costs = [2 * k * k * m * n * pixels for k, m, n, pixels in unet_layers()]
    assert forward_flops(on_meta(function), (1, 8, 8)) == sum(costs)
    # The first convolution's input and the noise level's embedding want no gradient.
    assert training_flops(function, (1, 8, 8), 1) == 3 * sum(costs) - costs[0] - costs[1]


@pytest.mark.parametrize("config", [MLP(width=12), PLAIN, ATTENTION], ids=["mlp", "unet", "attention"])
def test_counts_of_real_batches_are_linear_in_the_batch(config):
    shape = (1, 8, 8)
    real = denoiser(config.build(shape, 0, 0))
    forward, training = forward_flops(on_meta(real), shape), training_flops(real, shape, 1)
    for batch in (2, 5):
        with counting_flops() as counter, torch.no_grad():
            real(*noisy(shape, 0, batch, "cpu"))
        assert counter.get_total_flops() == batch * forward
        assert training_flops(real, shape, batch) == batch * training


# ---- memory ---------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """x + second(exp(w) * SiLU(first(x))): what its backward pass needs can be told by looking."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.w = nn.Linear(6, 10), nn.Linear(10, 6), nn.Parameter(torch.zeros(10))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: None = None) -> torch.Tensor:
        return self.second(self.w.exp() * nn.functional.silu(self.first(x)))


def test_activations_in_closed_form():
    # The inputs of: the first layer, SiLU, the product, the second layer, the square; and the loss's weight. Once:
    # exp(w). The second layer's weight is needed too, but it is there anyway.
    each = 4 * (6 + 10 + 10 + 10 + 6 + 1)
    assert activations(on_meta(Scaled()), (6,), 0, 5) == 4 * 10 + 5 * each


@pytest.mark.parametrize("config", [MLP(width=12), PLAIN, ATTENTION], ids=["mlp", "unet", "attention"])
def test_activations_are_those_of_a_real_batch(config):
    shape = (1, 8, 8)
    real = denoiser(config.build(shape, 0, 0))
    kept = partial(activations, on_meta(real), shape, 0)
    for batch in (2, 7, 64):
        with sdpa_kernel(SDPBackend.MATH):
            assert kept(batch) == saved_bytes(lambda b=batch: loss_of(real, shape, b), real)
    # Fused attention keeps no scores, 16 bit half of everything: the plan is an upper bound.
    assert saved_bytes(lambda: loss_of(real, shape, 64), real) <= kept(64)
    copies = 2 * sum(p.numel() for p in real.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert saved_bytes(lambda: loss_of(real, shape, 16), real) <= kept(16) + copies


def test_an_optimizer_that_takes_no_step_is_named():
    data = MemorizationDataModule(n=8, held_out=4, batch_size=4)
    data.stand_in(labels=False)
    optimization = Optimization(lambda p: torch.optim.SparseAdam(list(p)))
    teacher = DiffusionTeacher(MLP(width=8, depth=1), optimization=optimization)
    teacher.prepare(data.training_set)
    with pytest.raises(InputError, match=r"model\.optimization\.optimizer=.*dense"):
        step_costs(teacher, data)


# ---- seconds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "seconds", "images", "steps"),
    [
        (64, 60, 39, 20),  # 59 s are left after two steps of one image: three of 39 may take them
        (64, 6, 3, 9),  # 5 s: the tenth step ends them, the first is not timed
        (4, 60, 4, 20),
        (1, 60, 1, 1),
        (64, 0.5, 1, 1),  # the time is over before a second step: the only one counts
    ],
)
def test_seconds_are_those_of_a_micro_batch(most, seconds, images, steps, tmp_path, monkeypatch):
    """Every look at the clock is half a second after the last, so a step takes that, whatever it is of."""
    monkeypatch.chdir(tmp_path)
    data = MemorizationDataModule(n=8, held_out=4, batch_size=128)
    data.stand_in(labels=False)
    teacher = DiffusionTeacher(MLP(width=8, depth=1))
    teacher.prepare(data.training_set)
    sizes, step = [], DiffusionTeacher.training_step
    monkeypatch.setattr(
        DiffusionTeacher, "training_step", lambda self, b, k: (sizes.append(len(b.image)), step(self, b, k))[1]
    )
    clock = itertools.count(0, 0.5).__next__
    speed = measure(teacher, data, most, seconds, clock, accelerator="cpu", precision="32-true")
    assert (speed.images, speed.steps, speed.device) == (images, steps, "cpu")
    assert speed.step == speed.evaluation == 0.5 / images
    assert set(sizes) == {1, images} and len(sizes) <= 2 + 21
    assert data.batch_size == 128 and not list(tmp_path.iterdir())
