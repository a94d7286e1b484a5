"""f_mem while training; for a student also how close it is to its teacher."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from callbacks.evaluation import Cadence, Evaluation, EvaluationCallback, Planned
from cdmem.data.subset import TrainingSet
from cdmem.images import to_uint8
from cdmem.metrics.comparison.paired import PairedWithTeacher
from cdmem.metrics.memorization.fraction import MemorizedFraction, RatioMetric, disk_rows
from cdmem.metrics.memorization.tolerant import TolerantCopies
from cdmem.metrics.neighbors.index import NearDuplicates, group_index
from cdmem.metrics.neighbors.tolerant import LEAST_HELD_OUT
from cdmem.seeds import first_sample
from cdmem.training.module import DiffusionModule


class MemorizationCallback(EvaluationCallback):
    """Logs ``memorization/f_mem`` (and ``f_mem_nfe2`` ...) with its 95 % interval; for a student also
    ``distillation/rmse_to_teacher``, ``variance_ratio`` and ``same_basin`` on the same seeds. With 99 held-out images
    or more also ``memorization/tolerant_copies`` (up to mirror, small shifts, gain and offset) with its interval.

    Per-seed rows go to ``evaluations/step=<step>_nfe=<nfe>.npz`` of the run folder, the teacher's for the same seeds to
    ``evaluations/teacher.npz``: what paired statistics need.

    Args:
        threshold: memorised means d1 / d2 < threshold, over groups of T.
        nfe: network evaluations per sample to look at; None takes the model's own list.
        weights: ``raw`` or ``ema_<half-life>``; None is the model's choice.
        near_duplicates: ``off``, ``auto`` or a ratio: which training images count as one.
        cadence: when, and on how many samples.
    """

    prefix, every_nfe = "memorization", True

    def __init__(
        self,
        threshold: float = 1 / 3,
        nfe: list[int] | None = None,
        weights: str | None = None,
        near_duplicates: NearDuplicates = "off",
        cadence: Cadence = Cadence(),
    ) -> None:
        super().__init__(cadence)
        self.threshold, self.near_duplicates, self.nfe, self.weights = threshold, near_duplicates, nfe, weights
        self.teacher_kept = 0

    def planned(self, module: DiffusionModule, training_set: TrainingSet) -> Planned:
        """Samples, and the teacher's endpoints for them."""
        return replace(super().planned(module, training_set), endpoints=self.samples)

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        module, t, values = evaluation.module, evaluation.training_set, {}
        teacher, device = evaluation.teacher_endpoints(self.samples), module.device
        group_index(t, self.near_duplicates).index.to(device)
        if teacher is not None:
            self._keep_teacher(evaluation, teacher)
        for k, nfe in enumerate(self.nfes(module)):
            seeds, images = evaluation.samples(self.samples, nfe, self.weights)
            copies, rows = self._copies(t, device, seeds, to_uint8(images))
            suffix = "" if k == 0 else f"_nfe{nfe}"
            values |= {f"memorization/{name}{suffix}": value for name, value in copies.items()}
            if teacher is not None:
                paired = PairedWithTeacher(self.near_duplicates).to(device).prepare(t)
                paired.update(images, teacher, seeds)
                distance = paired.compute()
                for name in ("rmse_to_teacher", "variance_ratio", "same_basin"):
                    values[f"distillation/{name}{suffix}"] = distance[name]
                rows["squared_error"] = paired.squared_errors(paired.rows()).numpy()
            if evaluation.is_writer:
                evaluation.folder.write_arrays(f"evaluations/step={evaluation.step:08d}_nfe={nfe}.npz", **rows)
        return values

    def _keep_teacher(self, evaluation: Evaluation, images: Tensor) -> None:
        """The teacher's own rows for these seeds, once a run: what the limit of the paired difference needs."""
        if self.teacher_kept >= self.samples:
            return
        start, world = first_sample(evaluation.module.sampling_seed), evaluation.trainer.world_size
        seeds = start + evaluation.trainer.global_rank + world * torch.arange(len(images))
        _, rows = self._copies(evaluation.training_set, evaluation.module.device, seeds, to_uint8(images))
        self.teacher_kept = self.samples
        if evaluation.is_writer:
            evaluation.folder.write_arrays("evaluations/teacher.npz", **rows)

    def _copies(
        self, t: TrainingSet, device: torch.device, seeds: Tensor, images: Tensor
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """What is logged of uint8 images (b, C, H, W), and the rows to keep."""
        strict = MemorizedFraction(self.threshold, self.near_duplicates)
        tolerant = TolerantCopies(self.threshold, self.near_duplicates)  # its rows hold the strict ratio's
        enough = len(t.held_out_images) >= LEAST_HELD_OUT
        metric: RatioMetric = (tolerant if enough else strict).to(device).prepare(t)
        metric.update(images, seeds)
        # Gathers over processes, so every rank must ask for the rows, also those that write nothing.
        rows = metric.rows()
        result = strict.evaluate(rows)
        values = {name: result[name] for name in ("f_mem", "f_mem_low", "f_mem_high", "unique")}
        if enough:
            result = tolerant.evaluate(rows)
            values |= {f"tolerant_copies{end}": result[f"copied{end}"] for end in ("", "_low", "_high")}
        return values, disk_rows(rows)
