"""What real training steps cost on this machine: FLOPs by torch's counter, seconds by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from cdmem.errors import InputError
from cdmem.models.flops import counting_flops, noisy
from cdmem.training.datamodule import MemorizationDataModule
from cdmem.training.module import DiffusionModule
from cdmem.training.student import Student

STEPS, LEAST = 20, 3  # at most so many are timed; a batch is chosen so that the time allows the fewest
Clock = Callable[[], float]


@dataclass(frozen=True)
class Speed:
    """Measured seconds.

    Attributes:
        step: of a training step, per image.
        evaluation: of one network evaluation in float32, per image.
        images: at once.
        steps: that were timed.
        device: ``cpu`` or the GPU's name.
    """

    step: float
    evaluation: float
    images: int
    steps: int
    device: str


@dataclass(frozen=True)
class StepCosts:
    """What a training step asks for.

    Attributes:
        image: FLOPs of each image of the batch.
        start: FLOPs of what ``group`` consecutive images of the batch share, beside their own; 0 if they share nothing.
        group: see :meth:`cdmem.distillation.DistillationMethod.group`.
        optimizer: bytes of the optimizer's state after a step.
    """

    image: int
    start: int
    group: int
    optimizer: int

    def flops(self, images: int, parts: int = 1) -> int:
        """Of a batch that is worked off in so many parts of ``images`` each."""
        ends = [(k * images, (k + 1) * images - 1) for k in range(parts)]
        starts = sum(last // self.group - first // self.group + 1 for first, last in ends)
        return parts * images * self.image + starts * self.start


class StepTimer(pl.Callback):
    """Ends training after so many steps, or after the step in which the seconds ran out.

    Attributes:
        times: by the clock, at the start and after every step.
    """

    def __init__(self, steps: int, seconds: float, clock: Clock = time.perf_counter) -> None:
        self.steps, self.seconds, self.clock = steps, seconds, clock
        self.times: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.times = [self.clock()]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        _wait(pl_module.device)
        self.times.append(self.clock())
        trainer.should_stop = len(self.times) > self.steps or self.times[-1] - self.times[0] >= self.seconds

    def per_step(self) -> tuple[float, int]:
        """Mean seconds and number of steps, without the first (allocations, choice of kernels) where there are more."""
        times = self.times[1:] if len(self.times) > 2 else self.times
        return (times[-1] - times[0]) / (len(times) - 1), len(times) - 1


def train(
    model: DiffusionModule, data: MemorizationDataModule, images: int, timer: StepTimer, **trainer: Any
) -> pl.Trainer:
    """Real steps of so many images, by a Trainer of these settings; they leave no trace but in the model's weights."""
    usual, data.batch_size = data.batch_size, images
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    run = pl.Trainer(devices=1, max_steps=10**6, limit_val_batches=0, callbacks=[timer], **quiet, **trainer)
    try:
        run.fit(model, data)
    finally:
        data.batch_size = usual
    return run


def step_costs(model: DiffusionModule, data: MemorizationDataModule) -> StepCosts:
    """What a training step costs: all that the loss asks of student, target and teacher, and the way back.

    Raises:
        InputError: the optimizer cannot take a step.
    """
    one, run = _one_step(model, data, 1)
    group = model.method.group(model.progress(0)) if isinstance(model, Student) else 1
    image = one if group == 1 else _one_step(model, data, 2)[0] - one
    state = [value for values in run.optimizers[0].state.values() for value in values.values()]
    return StepCosts(image, one - image, group, sum(t.nbytes for t in state if isinstance(t, torch.Tensor)))


def _one_step(model: DiffusionModule, data: MemorizationDataModule, images: int) -> tuple[int, pl.Trainer]:
    """FLOPs of a step of so many images, and the trainer that took it."""
    try:
        with counting_flops() as counter:
            run = train(model, data, images, StepTimer(1, 0.0), accelerator="cpu")
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        problem = f"no step can be taken ({type(error).__name__}: {error})"
        raise InputError("model.optimization.optimizer", model.optimization.optimizer, problem, "use another") from None
    return counter.get_total_flops(), run


def measure(
    model: DiffusionModule,
    data: MemorizationDataModule,
    most: int,
    seconds: float,
    clock: Clock = time.perf_counter,
    **trainer: Any,
) -> Speed:
    """Time training steps of as many images as time and memory allow, after two of one image.

    Args:
        model: prepared.
        data: its data module.
        most: images at once.
        seconds: for all of it, roughly.
        clock: in seconds.
        trainer: ``accelerator`` and ``precision``.
    """
    timer = StepTimer(2, seconds, clock)
    train(model, data, 1, timer, **trainer)
    (each, steps), left = timer.per_step(), seconds - (timer.times[-1] - timer.times[0])
    images = max(1, min(most, int(left / (each * LEAST))))
    while images > 1:
        timer = StepTimer(STEPS + 1, left, clock)
        try:
            train(model, data, images, timer, **trainer)
            each, steps = timer.per_step()
            break
        except torch.OutOfMemoryError:
            images //= 2
    device = torch.device("cpu") if trainer["accelerator"] == "cpu" else torch.accelerator.current_accelerator()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Speed(each / images, _evaluation(model, images, device, clock), images, steps, name)


@torch.no_grad()
def _evaluation(model: DiffusionModule, images: int, device: torch.device, clock: Clock, calls: int = 4) -> float:
    """Seconds of a network evaluation per image; the first call is not timed."""
    function, times = model.to(device).function(), []
    for _ in range(calls):
        function(*noisy(model.shape, model.num_classes, images, str(device)))
        _wait(device)
        times.append(clock())
    model.to("cpu")
    return (times[-1] - times[0]) / (calls - 1) / images


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
