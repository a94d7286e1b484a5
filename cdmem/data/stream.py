"""The order of examples: an endless stream of batches, a pure function of (seed, batch number, rank).

Example p of the whole run (p = batch number * global batch size + place in the batch) is entry p mod rows of
the permutation that belongs to epoch p div rows. Nothing has to be saved to resume: start at a batch number
and the same examples follow, for any number of ranks that divides the global batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from cdmem.errors import InputError
from cdmem.seeds import generator_seed


class Batch(NamedTuple):
    """One rank's share of a batch.

    Attributes:
        image: grey levels, uint8 (B, C, H, W).
        label: class numbers, int64 (B,).
        index: identity of the unique image, int64 (B,).
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple has a method of this name


class BatchStream(IterableDataset[Batch]):
    """Endless, in-memory batches; use it with ``DataLoader(stream, batch_size=None)`` and no workers.

    Args:
        images: unique images, uint8 (n, C, H, W).
        labels: int64 (n,).
        ids: what a batch reports as ``index``, int64 (n,).
        row_to_group: unique image of every row, int64 (rows,); an image with m copies has m rows.
        batch_size: size of the global batch, summed over all ranks.
        seed: of the order and of the flips.
        rank: this process, 0..world_size - 1.
        world_size: number of processes.
        start: number of the first batch.
        flip: mirror each example horizontally with probability 1/2, by a coin of its own in every epoch.

    Raises:
        InputError: the global batch is not a positive multiple of ``world_size``.
        ValueError: tensors that do not fit together, or a rank or start out of range.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        ids: Tensor,
        row_to_group: Tensor,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        flip: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1 or batch_size % world_size:
            problem = f"{world_size} process(es) cannot share the global batch evenly"
            raise InputError("data.batch_size", batch_size, problem, f"use a multiple of {world_size}")
        if not len(images) == len(labels) == len(ids) or len(row_to_group) == 0:
            raise ValueError("images, labels and ids need one length, and there must be rows")
        if not 0 <= rank < world_size or start < 0:
            raise ValueError(f"rank {rank} of {world_size} or start {start} is out of range")
        self.images, self.labels, self.ids, self.row_to_group = images, labels, ids, row_to_group
        self.batch_size, self.seed, self.start, self.flip = batch_size, seed, start, flip
        self.rank, self.world_size = rank, world_size
        self._generator = torch.Generator()
        self._epochs: dict[int, tuple[Tensor, Tensor]] = {}
        self._last: dict[int, Batch] = {}

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            # Every worker would repeat the whole stream.
            raise RuntimeError("BatchStream is read in the main process; use num_workers=0")
        for batch in itertools.count(self.start):
            yield self.batch(batch)

    def batch(self, batch: int) -> Batch:
        """Batch number ``batch``, this rank's share: (b, C, H, W) with b = batch_size / world_size; the last two are
        kept, for what is computed ahead asks once more."""
        if batch not in self._last:
            if len(self._last) == 2:
                del self._last[next(iter(self._last))]
            self._last[batch] = self._make(batch)
        return self._last[batch]

    def _make(self, batch: int) -> Batch:
        rows, mirrored = self._draw(batch)
        group = self.row_to_group[rows]
        image = self.images[group]
        if self.flip:
            image = torch.where(mirrored[:, None, None, None], image.flip(-1), image)
        return Batch(image, self.labels[group], self.ids[group])

    def rows_of(self, batch: int) -> Tensor:
        """Rows 0..rows-1 of this rank in a batch, int64 (b,); all ranks' joined are the global batch."""
        return self._draw(batch)[0]

    def _draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Rows int64 (b,) and coins bool (b,) of this rank's contiguous slice of a global batch."""
        share = self.batch_size // self.world_size
        first = batch * self.batch_size + self.rank * share
        rows, coins = [], []
        position, last = first, first + share
        while position < last:
            epoch, offset = divmod(position, len(self.row_to_group))
            order, mirrored = self._epoch(epoch)
            taken = slice(offset, offset + last - position)
            rows.append(order[taken])
            coins.append(mirrored[taken])
            position += len(rows[-1])
        return torch.cat(rows), torch.cat(coins)

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Permutation int64 (rows,) and coins bool (rows,), all False without ``flip``, of an epoch; two are kept."""
        if epoch not in self._epochs:
            rows = len(self.row_to_group)
            generator = self._generator.manual_seed(generator_seed(self.seed, "order", epoch))
            order = torch.randperm(rows, generator=generator)
            coins = torch.randint(2, (rows,), generator=generator) if self.flip else torch.zeros(rows)
            if len(self._epochs) == 2:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = (order, coins.bool())
        return self._epochs[epoch]
