"""Sample quality while training: Frechet and kernel distance to the held-out images, named by their features."""

from __future__ import annotations

from torch import nn

from callbacks.evaluation import Evaluation, EvaluationCallback, Spacing
from cdmem.errors import InputError
from cdmem.images import to_uint8
from cdmem.metrics.features import PixelFeatures, features_name
from cdmem.metrics.fidelity import FrechetDistance, KernelDistance


class QualityCallback(EvaluationCallback):
    """Logs ``quality/fd_<features>`` and ``quality/kid_<features>`` against H.

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
        self.features, self.nfe = features or PixelFeatures(), nfe

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        held_out = evaluation.training_set.held_out_images
        if len(held_out) < 2:
            raise InputError("data.held_out", len(held_out), "quality needs a held-out set", "set data.held_out")
        module, name = evaluation.module, features_name(self.features)
        self.features.to(module.device)
        # Every rank takes its share of the reference, so that the summed states count each image once.
        mine = held_out[evaluation.trainer.global_rank :: evaluation.trainer.world_size]
        values = {}
        for k, nfe in enumerate(self.nfe or module.default_nfe):
            _, images = evaluation.samples(self.samples, nfe)
            suffix = "" if k == 0 else f"_nfe{nfe}"
            for key, kind in (("fd", FrechetDistance), ("kid", KernelDistance)):
                metric = kind(self.features).to(module.device)
                metric.update(mine.to(module.device), reference=True)
                metric.update(to_uint8(images).to(module.device), reference=False)
                values[f"{key}_{name}{suffix}"] = float(metric.compute())
        return values
