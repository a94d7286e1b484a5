"""Residual MLPs trained side by side in batched products, by full-batch gradient descent with momentum; DDIM sampling.

The members share nothing but their number of training points and the steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cdmem.theory.settings import each, number, seed
from cdmem.theory.two_gaussians.measures import copied, divergence, draw


class StackedMLP(nn.Module):
    """``members`` independent noise predictors eps(x, t).

    Three residual blocks h + B silu(A h + c t + a) + b between a linear map in and one out. Published are
    "3-block residual MLP, width 128, 102,024 parameters"; the inside of a block is **assumed**, and at width 128 and 8
    dimensions it has exactly that many.

    Args:
        members: number of networks E.
        dim: dimension d of the data.
        width: W.
        generator: of the initial weights, uniform within 1 / sqrt(inputs) as torch's linear layers.
    """

    BLOCKS = 3

    def __init__(self, members: int, dim: int, width: int, generator: torch.Generator) -> None:
        super().__init__()

        def linear(inputs: int, outputs: int) -> list[nn.Parameter]:
            shapes = (members, inputs, outputs), (members, 1, outputs)
            bound = 1 / math.sqrt(inputs)
            return [nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * bound) for shape in shapes]

        self.first = nn.ParameterList(linear(dim, width))
        blocks = [linear(width, width) + linear(1, width) + linear(width, width) for _ in range(self.BLOCKS)]
        self.blocks = nn.ModuleList(nn.ParameterList(block) for block in blocks)
        self.last = nn.ParameterList(linear(width, dim))
        self.members = members

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Predicted noise (E, B, d) of x (E, B, d) at times (E, B, 1) in [0, 1)."""
        h = torch.baddbmm(self.first[1], x, self.first[0])
        for a, a0, c, c0, b, b0 in self.blocks:
            inner = torch.baddbmm(a0, h, a) + time * c + c0
            h = h + torch.baddbmm(b0, nn.functional.silu(inner), b)
        return torch.baddbmm(self.last[1], h, self.last[0])

    def size(self) -> int:
        """Parameters of one member."""
        return sum(p.numel() for p in self.parameters()) // self.members


STEPS = 1000  # of the diffusion; betas linear from 1e-4 to 0.02


def alpha_bars() -> Tensor:
    """(1000,) cumulative products of 1 - beta, float32."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0).float()


@torch.no_grad()
def sample(predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, nfe: int) -> Tensor:
    """DDIM (eta = 0) from noise x (E, S, d) in ``nfe`` equal strides of time, the last one to the clean image."""
    bars = alpha_bars()
    times = torch.linspace(STEPS - 1, 0, nfe + 1).round().long()[:-1]
    following = torch.cat([bars[times[1:]], torch.ones(1)])
    for time, after in zip(times, following):
        bar = bars[time]
        noise = predict(x, (time / STEPS).expand(*x.shape[:-1], 1))
        clean = (x - (1 - bar).sqrt() * noise) / bar.sqrt()
        x = after.sqrt() * clean + (1 - after).sqrt() * noise
    return x


@dataclass(frozen=True)
class Run:
    """Measured along one training; lists are (K,) steps or (K, E) per member.

    Attributes:
        n: training points.
        width: W.
        size: parameters of one network.
        steps: optimizer steps of the measurements.
        f_mem: share of samples that copy a training point.
        kl: KL(P_theta | P_0), nats.
        loss_train, loss_test: mean squared error per dimension of the noise at one fixed time, on the training points
            and on fresh ones, with the same noise at every measurement.
    """

    n: int
    width: int
    size: int
    steps: list[int]
    f_mem: list[list[float]]
    kl: list[list[float]]
    loss_train: list[list[float]]
    loss_test: list[list[float]]


@dataclass(frozen=True)
class Settings:
    """Settings of two-gaussians.

    Attributes:
        n: numbers of training points.
        widths: widths W of the network.
        steps_per_point: a training of n points at width W takes steps_per_point n (128 / W) optimizer steps.
        points: measurements along each, geometric in steps.
        seeds: independent networks and training sets per setting.
        dim: dimension d of the data.
        lr: learning rate of SGD.
        momentum: of SGD.
        samples: made at each measurement, per network.
        nfe: DDIM steps.
        level: f_mem at which memorisation has set in.
        loss_step: diffusion step, 0 to 999, at which train and test losses are compared.
        seed: of everything.
    """

    n: list[int] = field(default_factory=lambda: [16, 32, 48], metadata=each(2, 10**6))
    widths: list[int] = field(default_factory=lambda: [128], metadata=each(1, 10**6))
    steps_per_point: int = number(400, 1, 10**6)
    points: int = number(12, 3, 200)
    seeds: int = number(2, 1, 64)
    dim: int = number(8, 1, 256)
    lr: float = number(6e-3, 0, open=True)
    momentum: float = number(0.95, 0, 0.999)
    samples: int = number(1000, 10, 20_000)
    nfe: int = number(50, 1, STEPS)
    level: float = number(0.1, 0, 1, open=True)
    loss_step: int = number(100, 0, STEPS - 1)
    seed: int = seed()


@dataclass(frozen=True)
class Plan:
    """One training: n points, width W, the steps at which it is measured, and its seed."""

    n: int
    width: int
    steps: list[int]
    seed: int


def train(plan: Plan, settings: Settings, tick: Callable[[], None] = lambda: None) -> Run:
    """Train a network per seed, each on its own points, and measure; ``tick`` is called at each measurement.

    Noise predictor, mean squared error, time uniform in 0..999, fresh noise in every step, all points in every step.
    """
    members, dim = settings.seeds, settings.dim
    generator = torch.Generator().manual_seed(plan.seed)
    data = torch.stack([draw(plan.n, dim, generator) for _ in range(members)])
    fresh = torch.stack([draw(2048, dim, generator) for _ in range(members)])
    network = StackedMLP(members, dim, plan.width, generator)
    start = torch.randn(members, settings.samples, dim, generator=generator)
    noises = [torch.randn(5, *points.shape, generator=generator) for points in (data, fresh)]
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.lr, momentum=settings.momentum)
    bars = alpha_bars()
    run = Run(plan.n, plan.width, network.size(), [], [], [], [], [])

    @torch.no_grad()
    def loss_at(points: Tensor, noise: Tensor) -> list[float]:
        bar, time = bars[settings.loss_step], torch.tensor(settings.loss_step / STEPS).expand(*points.shape[:-1], 1)
        errors = [((network(bar.sqrt() * points + (1 - bar).sqrt() * z, time) - z) ** 2).mean((1, 2)) for z in noise]
        return torch.stack(errors).mean(0).tolist()

    for step in range(1, plan.steps[-1] + 1):
        time = torch.randint(0, STEPS, (members, plan.n, 1), generator=generator)
        noise = torch.randn(data.shape, generator=generator)
        bar = bars[time]
        error = network(bar.sqrt() * data + (1 - bar).sqrt() * noise, time / STEPS) - noise
        optimizer.zero_grad()
        (error**2).mean((1, 2)).sum().backward()
        optimizer.step()
        if step in plan.steps:
            made = sample(network, start, settings.nfe)
            run.steps.append(step)
            run.f_mem.append(copied(made, data).tolist())
            run.kl.append(divergence(made).tolist())
            run.loss_train.append(loss_at(data, noises[0]))
            run.loss_test.append(loss_at(fresh, noises[1]))
            tick()
    return run
