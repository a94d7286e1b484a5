"""Random numbers of a training step as pure functions of (seed, step): resume needs no generator state.

A step's batch is cut into parts: micro-batches in time, ranks within each. Every part draws the noise of the whole
batch and keeps its own slice, so the trajectory depends neither on the number of processes nor on accumulation. Only
dropout masks do: networks draw those themselves, so every part has a stream of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cdmem.seeds import generator_seed

STEPS = 2**22  # of a run; dropout masks of a part have numbers of their own up to here


class StepNoise:
    """Draws for one part of an optimizer step's batch.

    Args:
        seed: training seed.
        step: optimizer steps taken before.
        local_batch: images of this part.
        part: number of the part; parts lie in the batch in the order of the images: micro-batch, then rank.
        parts: micro-batches x processes.
        device: where to draw.

    Attributes:
        seed: of the whole batch's noise.
        dropout_seed: of this part's dropout masks, which student and target share.
    """

    def __init__(
        self, seed: int, step: int, local_batch: int, part: int = 0, parts: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        self.seed = generator_seed(seed, "training", step)
        self.dropout_seed = generator_seed(seed, "dropout", step + part * STEPS)
        self.generator = torch.Generator(device=device).manual_seed(self.seed)
        self.total, self.device = local_batch * parts, device
        self.mine = slice(part * local_batch, (part + 1) * local_batch)

    def normal(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Unit Gaussian (local_batch, *shape), float32."""
        return torch.randn((self.total, *shape), generator=self.generator, device=self.device)[self.mine]

    def groups(self, size: int) -> tuple[Tensor, Tensor]:
        """Where this part's images are when the whole batch is cut into groups of ``size`` consecutive ones: the row of
        :meth:`group_normal` and the place in the group, (local_batch,) each."""
        number = torch.arange(self.mine.start, self.mine.stop, device=self.device)
        return number // size - self.mine.start // size, number % size

    def group_normal(self, size: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Unit Gaussian (G, *shape), float32, for the groups that this part has images of, however the batch is cut."""
        drawn = torch.randn((-(-self.total // size), *shape), generator=self.generator, device=self.device)
        return drawn[self.mine.start // size : (self.mine.stop - 1) // size + 1]

    def choice(self, probabilities: Tensor) -> Tensor:
        """Indices (local_batch,) drawn with the given probabilities (K,)."""
        weights = probabilities.to(self.device, torch.float32)
        return torch.multinomial(weights, self.total, replacement=True, generator=self.generator)[self.mine]


@contextmanager
def dropout_seed(device: torch.device, seed: int) -> Iterator[None]:
    """Run a block with the given dropout stream on CPU *and* on the device, and restore both streams afterwards.

    Student and target run under the same seed and so drop the same units; restoring only the CPU stream, as public code
    does, leaves CUDA masks different.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # The streams in use only: torch.manual_seed also asks every other kind of device, which costs more than a small
        # network's step where CUDA is installed but not in use.
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
