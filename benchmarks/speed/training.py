"""A step of training as a user runs it, against a bare loop over the same network, optimizer and average."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from speed.harness import Row, Timed
from torch import Tensor, nn

from cdmem.diffusion.noise import karras_sigmas
from cdmem.study.stage import build

ROOT = Path(__file__).resolve().parents[2]
STEPS, WARM = 120, 20
SIGMA_DATA, SIGMA_MIN, SIGMA_MAX = 0.5, 0.002, 80.0
MU, HALF_LIFE = 0.95, 100


class Stopwatch(pl.Callback):
    """Seconds a step after the first :data:`WARM`, and the losses from there on."""

    def __init__(self) -> None:
        self.started, self.ended, self.losses = 0.0, 0.0, list[float]()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == WARM:
            self.started = time.perf_counter()
        elif batch_idx + 1 > WARM:
            self.ended = time.perf_counter()
            self.losses.append(float(outputs["loss"]))


def fit(*arguments: str) -> Timed:
    """``python -m cdmem fit``: loggers, checkpoints and all, without evaluations."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        common = ["--trainer.max_steps", str(STEPS), "--trainer.callbacks", "null", "--wandb", "false"]
        quiet = ["--trainer.enable_progress_bar", "false", "--run_dir", f"{folder}/run"]
        stage = build("fit", [*arguments, *common, *quiet])
        stage.trainer.callbacks.append(watch)
        stage.execute()
    return Timed((watch.ended - watch.started) / (STEPS - WARM), sum(watch.losses) / len(watch.losses))


def bare(
    network: nn.Module, step: Callable[[nn.Module], Tensor], optimizer: torch.optim.Optimizer, copies: int
) -> Timed:
    """A loop over a loss, with one average of the weights, or a target and an average."""
    averages = [copy.deepcopy(network).requires_grad_(False) for _ in range(copies)]
    mine = [list(average.parameters()) for average in averages]
    weights, losses, started = list(network.parameters()), [], 0.0
    for number in range(STEPS):
        if number == WARM:
            started = time.perf_counter()
        loss = step(averages[0] if copies else network)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for share, average in zip((1 - MU, 1 - 0.5 ** (1 / HALF_LIFE)), mine[::-1] if copies == 1 else mine):
                torch._foreach_lerp_(average, weights, share)
        losses.append(float(loss.detach()))
    return Timed((time.perf_counter() - started) / (STEPS - WARM), sum(losses[WARM:]) / (STEPS - WARM))


def edm(network: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    """Karras et al. 2022, table 1."""
    s = sigma[:, None, None, None]
    total = (s**2 + SIGMA_DATA**2).sqrt()
    return SIGMA_DATA**2 / total**2 * x + s * SIGMA_DATA / total * network(x / total, sigma.log() / 4, None)


def consistency(network: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    """Song et al. 2023, equation 5 and appendix C."""
    s = sigma[:, None, None, None]
    total, far = (s**2 + SIGMA_DATA**2).sqrt(), s - SIGMA_MIN
    skip = SIGMA_DATA**2 / (far**2 + SIGMA_DATA**2)
    return skip * x + SIGMA_DATA * far / total * network(x / total, sigma.log() / 4, None)


def teacher_loss(images: Tensor, network: nn.Module) -> Callable[[nn.Module], Tensor]:
    """Denoising score matching on random rows."""

    def step(_: nn.Module) -> Tensor:
        x = images[torch.randint(len(images), (64,))]
        sigma = (-1.2 + 1.2 * torch.randn(64)).exp()
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        denoised = edm(network, x + sigma[:, None, None, None] * torch.randn_like(x), sigma)
        return (weight * (denoised - x).square().mean((1, 2, 3))).mean()

    return step


def student_loss(images: Tensor, network: nn.Module, teacher: nn.Module) -> Callable[[nn.Module], Tensor]:
    """Consistency distillation as in openai/consistency_models: Heun's step of the teacher, l2, uniform levels."""
    grid = karras_sigmas(10, SIGMA_MIN, SIGMA_MAX).float()

    def heun(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        t4, s4 = t[:, None, None, None], s[:, None, None, None]
        slope = (x - edm(teacher, x, t)) / t4
        there = x + slope * (s4 - t4)
        return x + (slope + (there - edm(teacher, there, s)) / s4) * (s4 - t4) / 2

    def step(target: nn.Module) -> Tensor:
        x = images[torch.randint(len(images), (64,))]
        index = torch.randint(len(grid) - 1, (64,))
        t, s = grid[index], grid[index + 1]
        noised = x + t[:, None, None, None] * torch.randn_like(x)
        state = torch.get_rng_state()
        online = consistency(network, noised, t)
        with torch.no_grad():
            torch.set_rng_state(state)
            goal = consistency(target, heun(noised, t, s), s)
        return (online - goal).square().mean((1, 2, 3)).mean()

    return step


def alike(within: float) -> Callable[[Timed, Timed], None]:
    """Mean losses of the same steps differ by so little: it is one training."""

    def check(a: Timed, b: Timed) -> None:
        assert abs(a.result - b.result) <= within * b.result, (a.result, b.result)

    return check


def finite(a: Timed, b: Timed) -> None:
    """Other levels and another distance: only that both learn is comparable."""
    assert a.result > 0 and b.result > 0


def rows() -> Iterator[Row]:
    """The U-Net of configs/digits32, 8x8, 64 images a step."""
    teacher = ["--config", str(ROOT / "configs/digits32/teacher.yaml"), "--model.sigma_data", str(SIGMA_DATA)]
    student = ["--config", str(ROOT / "configs/digits32/student.yaml")]
    with tempfile.TemporaryDirectory() as folder:
        made = [*teacher, "--trainer.max_steps", "2", "--trainer.callbacks", "null", "--wandb", "false"]
        stage = build("fit", [*made, "--trainer.enable_progress_bar", "false", "--run_dir", f"{folder}/t"])
        with contextlib.redirect_stdout(io.StringIO()):
            stage.execute()
        images = stage.datamodule.training_set.images.float() / 127.5 - 1
        network = stage.model.raw.network

        def bare_teacher() -> Timed:
            net = copy.deepcopy(network).train().requires_grad_(True)
            optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
            return bare(net, teacher_loss(images, net), optimizer, 1)

        def bare_student() -> Timed:
            net = copy.deepcopy(network).train().requires_grad_(True)
            frozen = copy.deepcopy(network).eval().requires_grad_(False)
            optimizer = torch.optim.RAdam(net.parameters(), lr=1e-3)
            return bare(net, student_loss(images, net, frozen), optimizer, 2)

        yield Row("teacher step inside fit", "bare loop", lambda: fit(*teacher), bare_teacher, alike(0.15), 1.03)
        named = [*student, "--model.teacher", f"{folder}/t"]
        yield Row("student step (Heun)", "openai's loss in a bare loop", lambda: fit(*named), bare_student, finite, 0.8)
