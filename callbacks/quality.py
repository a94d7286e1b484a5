"""Sample quality while training: Frechet and kernel distance to held-out and training images, named by features."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch import nn

from callbacks.evaluation import Cadence
from callbacks.metric import MetricCallback
from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.metrics.quality.fidelity import LEAST, Fidelity


class QualityCallback(MetricCallback):
    """Logs ``quality/fd_<features>`` and ``quality/kid_<features>`` to H, and with ``_train`` to T; see `Fidelity`.

    Args:
        features: module uint8 (B, C, H, W) -> (B, F); None is the pixels themselves. Only Inception's is called FID.
        nfe: network evaluations per sample; None takes the model's own list.
        cadence: when, and on how many samples; Frechet distances of different sample counts do not compare.
    """

    every_nfe = True

    def __init__(
        self, features: nn.Module | None = None, nfe: list[int] | None = None, cadence: Cadence = Cadence()
    ) -> None:
        super().__init__(Fidelity(features), "quality", nfe, cadence=cadence)

    def check_run(self, trainer: Trainer, training_set: TrainingSet) -> None:
        """Quality is a distance to held-out images."""
        held_out = len(training_set.held_out_images)
        if held_out < LEAST:
            raise InputError("data.held_out", held_out, "quality needs a held-out set", f"use {LEAST} or more")
        super().check_run(trainer, training_set)
