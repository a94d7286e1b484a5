"""Copies up to a mirror, a shift of 2 pixels, gain and offset: a second opinion on what a copy is.

A sample is a copy if the strict ratio says so, or if its tolerant ratio (`cdmem.metrics.neighbors.tolerant`) is smaller
than that of 99 % of held-out images under the same search. So every strict copy is a tolerant one, and at most 1 % of
held-out images are copies, beyond those that the strict ratio finds among them.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.metrics.memorization.fraction import RatioMetric
from cdmem.metrics.memorization.ratio import memorized
from cdmem.metrics.neighbors.tolerant import LEAST_HELD_OUT, tolerant_search
from cdmem.metrics.statistics import share


class TolerantCopies(RatioMetric):
    """Share of samples that are tolerant copies, with its 95 % Wilson interval, beside what the strict ratio finds.

    Columns: those of the strict ratio, and ``tolerant_ratio`` float64 and ``tolerant_group`` int64, (m,).

    Args:
        threshold: of the strict ratio d1 / d2.
        near_duplicates: grouping, see :class:`~cdmem.metrics.neighbors.index.GroupIndex`.
    """

    higher_is_better = False

    def prepare(self, training_set: TrainingSet) -> TolerantCopies:
        """Search the held-out images, or take what another metric of this training set found.

        Raises:
            InputError: fewer than 99 held-out images, of which none can be the most suspicious 1 %.
        """
        if (held_out := len(training_set.held_out_images)) < LEAST_HELD_OUT:
            problem = f"a threshold of 1 % for tolerant copies needs at least {LEAST_HELD_OUT} held-out images"
            raise InputError("data.held_out", held_out, problem, f"use {LEAST_HELD_OUT} or more")
        self.tolerant = tolerant_search(training_set, self.near_duplicates)
        super().prepare(training_set)
        assert self.tolerant.threshold is not None  # of 99 images or more
        self.tolerant_threshold = self.tolerant.threshold
        squared = self.tolerant.control_squared
        strict = memorized(squared[:, 0], squared[:, 1], self.threshold)
        self.heldout_rate = float(self._copies(strict, self.tolerant.control.ratio).double().mean())
        return self

    def columns(self, images: Tensor) -> dict[str, Tensor]:
        """The strict columns, and ratio and group of the tolerant search."""
        neighbors = self.tolerant.index.query(images)
        columns = {"tolerant_ratio": neighbors.ratio, "tolerant_group": neighbors.groups}
        return super().columns(images) | columns

    def _copies(self, strict: Tensor, ratio: Tensor) -> Tensor:
        return strict | (ratio < self.tolerant_threshold)

    def copies(self, rows: dict[str, Tensor]) -> Tensor:
        """Which samples are tolerant copies, bool (m,)."""
        return self._copies(self.hits(rows), rows["tolerant_ratio"])

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """``copied`` with ``copied_low`` and ``copied_high`` (Wilson), ``heldout_rate`` (share of H that are copies by
        the same rule), ``threshold`` (of the tolerant ratio), ``median_ratio``, ``compared`` (training images that each
        sample was compared with at full size); and against the strict ratio, shares of samples: ``both``,
        ``only_tolerant``, ``only_strict`` (0), ``neither``."""
        strict, copied = self.hits(rows), self.copies(rows)
        cells = {
            "both": strict & copied,
            "only_tolerant": copied & ~strict,
            "only_strict": strict & ~copied,
            "neither": ~(strict | copied),
        }
        return {
            **share("copied", int(copied.sum()), len(copied)),
            "heldout_rate": self.heldout_rate,
            "threshold": self.tolerant_threshold,
            "median_ratio": float(np.median(rows["tolerant_ratio"].numpy())),
            "compared": float(self.tolerant.index.compared),
            **{name: int(hit.sum()) / len(copied) for name, hit in cells.items()},
        }
