"""Metrics that are functions of a *set of samples by seed*, the same on one process and on many.

Every process contributes rows for its own seeds; before anything is computed the rows of all processes are gathered,
sorted by seed and counted once (samplers pad shares to equal length). What is computed is then a function of the sorted
rows only, so neither the number of processes nor the batch size can change it: to the bit on machines
of one kind, with the same thread count and versions.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError

SEEDS = "seeds"


class SampleMetric(Metric):
    """Base of metrics on generated images.

    Use: ``metric.prepare(training_set)`` once, then ``update(images, seeds)`` per batch, then ``compute()``.
    Subclasses give :meth:`columns` (what is kept of a sample) and :meth:`evaluate` (numbers from all rows).
    """

    full_state_update = False
    is_differentiable = False
    min_samples = 1

    training_set: TrainingSet

    def prepare(self, training_set: TrainingSet) -> SampleMetric:
        """Bind T and H and declare the states; call it once, before the first :meth:`update`."""
        self.training_set = training_set
        # The columns of no images have the type and shape of every state, also for a process without samples.
        empty = {SEEDS: torch.zeros(0, dtype=torch.int64), **self.columns(training_set.images[:0])}
        self._empty = empty
        for name in empty:
            self.add_state(name, [], dist_reduce_fx="cat")
        return self

    def columns(self, images: Tensor) -> dict[str, Tensor]:
        """What is kept of uint8 images (B, C, H, W): tensors of length B, every row a function of its image alone."""
        return {"images": images}

    @abstractmethod
    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Numbers from the rows of all samples, sorted by seed, each seed once."""

    def update(self, images: Tensor, seeds: Tensor) -> None:
        """Add uint8 images (B, C, H, W) and their seeds, int64 (B,)."""
        if len(images) != len(seeds):
            raise InputError("seeds", len(seeds), f"there are {len(images)} images", "give one seed per image")
        for name, column in {SEEDS: seeds.to(torch.int64), **self.columns(images)}.items():
            getattr(self, name).append(column.to(self.device))

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # torchmetrics would send float32 for a share without samples, which the other ranks read as another type.
        for name, empty in self._empty.items():
            if not len(getattr(self, name)):
                setattr(self, name, [empty.to(self.device)])
        super()._sync_dist(*args, **kwargs)

    def _unique_rows(self) -> dict[str, Tensor]:
        states = {name: getattr(self, name) for name in self._empty}
        full = {name: dim_zero_cat(s) if len(s) else self._empty[name] for name, s in states.items()}
        rows = {name: value.cpu() for name, value in full.items()}
        order = torch.argsort(rows[SEEDS], stable=True)
        seeds = rows[SEEDS][order]
        keep = torch.ones(len(seeds), dtype=torch.bool)
        keep[1:] = seeds[1:] != seeds[:-1]
        return {name: value[order][keep] for name, value in rows.items()}

    def rows(self) -> dict[str, Tensor]:
        """All columns and ``seeds``, sorted by seed, on the CPU. Gathers: every process must call it."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=True):
            return self._unique_rows()

    def compute(self) -> dict[str, float]:
        """The numbers by name, see the class.

        Raises:
            InputError: fewer samples than the metric needs.
        """
        rows = self._unique_rows()
        count = len(rows[SEEDS])
        if count < self.min_samples:
            problem = f"{type(self).__name__} needs at least {self.min_samples}"
            raise InputError("samples", count, problem, "give more samples")
        return self.evaluate(rows)
