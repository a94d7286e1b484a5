"""Sample quality while training: Frechet and kernel distance to held-out and training images, named by features."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch import nn

from callbacks.evaluation import Evaluation, EvaluationCallback, Spacing
from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.images import to_uint8
from cdmem.metrics.quality.features import PixelFeatures
from cdmem.metrics.quality.fidelity import LEAST, Fidelity


class QualityCallback(EvaluationCallback):
    """Logs ``quality/fd_<features>`` and ``quality/kid_<features>`` to H, and with ``_train`` to T; see `Fidelity`.

    Args:
        features: module uint8 (B, C, H, W) -> (B, F); None is the pixels themselves. Only Inception's is called FID.
        samples: generated images per evaluation; Frechet distances of different sample counts do not compare.
        nfe: network evaluations per sample; None takes the model's headline.
        points: number of evaluations during ``fit``.
        spacing: ``log`` or ``linear``.
        batch_size: samples made at once.
        test_samples: generated images in ``test``.
    """

    prefix = "quality"

    def __init__(
        self,
        features: nn.Module | None = None,
        samples: int = 512,
        nfe: list[int] | None = None,
        points: int = 8,
        spacing: Spacing = "log",
        batch_size: int = 256,
        test_samples: int | None = None,
    ) -> None:
        super().__init__(samples, points, spacing, batch_size, test_samples)
        fewest = min(samples, test_samples or samples)
        if fewest < LEAST:
            raise InputError("QualityCallback.samples", fewest, f"needs at least {LEAST} samples", "use 512 or more")
        self.features, self.nfe = features or PixelFeatures(), nfe
        self._metric: Fidelity | None = None

    def check_run(self, trainer: Trainer, training_set: TrainingSet) -> None:
        """Quality is a distance to held-out images."""
        held_out = len(training_set.held_out_images)
        if held_out < LEAST:
            raise InputError("data.held_out", held_out, "quality needs a held-out set", f"use {LEAST} or more")

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        metric, values = self._prepared(evaluation), {}
        for k, nfe in enumerate(self.nfe or evaluation.module.default_nfe):
            seeds, images = evaluation.samples(self.samples, nfe)
            suffix = "" if k == 0 else f"_nfe{nfe}"
            metric.reset()
            metric.update(to_uint8(images), seeds)
            values |= {f"{key}{suffix}": value for key, value in metric.compute().items()}
        metric.reset()
        return values

    def _prepared(self, evaluation: Evaluation) -> Fidelity:
        """The metric, with the references of earlier evaluations of the same training set."""
        training_set = evaluation.training_set
        self.check_run(evaluation.trainer, training_set)
        if self._metric is None or self._metric.training_set is not training_set:
            self._metric = Fidelity(self.features)
            self._metric.prepare(training_set)
        return self._metric.to(evaluation.module.device)
