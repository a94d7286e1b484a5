"""Random numbers of a training step as pure functions of (seed, position): resume needs no generator state.

Every rank draws the noise of the whole global batch and keeps its own slice, so the trajectory does not depend on how
many processes share the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def mix(*numbers: int) -> int:
    """A 63-bit seed from any integers; close inputs give unrelated seeds."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class StepNoise:
    """Draws for one micro-batch.

    Args:
        seed: training seed.
        position: micro-batches since the start of training.
        local_batch: images on this rank.
        rank: of this process.
        world_size: processes that share the global batch.
        device: where to draw.
    """

    def __init__(
        self,
        seed: int,
        position: int,
        local_batch: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seed = mix(seed, position)
        self.generator = torch.Generator(device=device).manual_seed(self.seed)
        self.total, self.device = local_batch * world_size, device
        self.mine = slice(rank * local_batch, (rank + 1) * local_batch)

    def normal(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Unit Gaussian (local_batch, *shape), float32."""
        return torch.randn((self.total, *shape), generator=self.generator, device=self.device)[self.mine]

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
        torch.manual_seed(seed)
        yield
