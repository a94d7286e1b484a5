"""f_mem while training; for a student also how close it is to its teacher."""

from __future__ import annotations

from dataclasses import replace

from callbacks.evaluation import Cadence, Evaluation, EvaluationCallback, Planned
from cdmem.data.subset import TrainingSet
from cdmem.images import to_uint8
from cdmem.metrics.comparison.paired import PairedWithTeacher
from cdmem.metrics.memorization.fraction import MemorizedFraction, disk_rows
from cdmem.metrics.neighbors.index import NearDuplicates, group_index
from cdmem.training.module import DiffusionModule


class MemorizationCallback(EvaluationCallback):
    """Logs ``memorization/f_mem`` (and ``f_mem_nfe2`` ...) with its 95 % interval; for a student also
    ``distillation/rmse_to_teacher``, ``variance_ratio`` and ``same_basin`` on the same seeds.

    Per-seed rows go to ``evaluations/step=<step>_nfe=<nfe>.npz`` of the run folder: what paired statistics need.

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

    def planned(self, module: DiffusionModule, training_set: TrainingSet) -> Planned:
        """Samples, and the teacher's endpoints for them."""
        return replace(super().planned(module, training_set), endpoints=self.samples)

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        module, t, values = evaluation.module, evaluation.training_set, {}
        teacher, device = evaluation.teacher_endpoints(self.samples), module.device
        group_index(t, self.near_duplicates).index.to(device)
        for k, nfe in enumerate(self.nfes(module)):
            seeds, images = evaluation.samples(self.samples, nfe, self.weights)
            metric = MemorizedFraction(self.threshold, self.near_duplicates).to(device).prepare(t)
            metric.update(to_uint8(images), seeds)
            result = metric.compute()
            suffix = "" if k == 0 else f"_nfe{nfe}"
            for name in ("f_mem", "f_mem_low", "f_mem_high", "unique"):
                values[f"memorization/{name}{suffix}"] = result[name]
            # Gathers over processes, so every rank must ask for the rows, also those that write nothing.
            rows = disk_rows(metric.rows())
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
