"""Any metric of `cdmem.metrics`, or your own `SampleMetric`, on samples of the model while it trains."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer

from callbacks.evaluation import Evaluation, EvaluationCallback, Spacing
from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.images import to_uint8
from cdmem.metrics.base import SampleMetric


class MetricCallback(EvaluationCallback):
    """Logs what a metric returns as ``<name>/<key>`` (and ``<key>_nfe2`` ... for further NFE).

    In YAML, two lines::

        - class_path: callbacks.MetricCallback
          init_args: {metric: {class_path: cdmem.metrics.AdaptiveExtraction}}

    Args:
        metric: the metric; its states are gathered over processes by seed.
        name: prefix of the keys; None takes the metric's class name in lower case.
        samples: generated images per evaluation.
        nfe: network evaluations per sample; None takes the model's headline.
        weights: ``raw`` or ``ema_<half-life>``; None is the model's choice.
        points: number of evaluations during ``fit``.
        spacing: ``log`` or ``linear``.
        batch_size: samples made at once.
        test_samples: generated images in ``test``.
    """

    def __init__(
        self,
        metric: SampleMetric,
        name: str | None = None,
        samples: int = 512,
        nfe: list[int] | None = None,
        weights: str | None = None,
        points: int = 8,
        spacing: Spacing = "log",
        batch_size: int = 256,
        test_samples: int | None = None,
    ) -> None:
        super().__init__(samples, points, spacing, batch_size, test_samples)
        if samples < metric.min_samples:
            problem = f"{type(metric).__name__} needs at least {metric.min_samples} samples"
            raise InputError("MetricCallback.samples", samples, problem, "raise it")
        self.metric, self.nfe, self.weights = metric, nfe, weights
        self.prefix = name or type(metric).__name__.lower()
        self._prepared = False

    def check_run(self, trainer: Trainer, training_set: TrainingSet) -> None:
        """Prepare now: a metric that cannot work says so at once."""
        self._prepare(training_set)

    def _prepare(self, training_set: TrainingSet) -> None:
        if not self._prepared:
            self.metric.prepare(training_set)
            self._prepared = True

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        self._prepare(evaluation.training_set)
        metric, values = self.metric.to(evaluation.module.device), {}
        for k, nfe in enumerate(self.nfe or [None]):
            seeds, images = evaluation.samples(self.samples, nfe, self.weights)
            metric.reset()
            metric.update(to_uint8(images), seeds)
            suffix = "" if k == 0 else f"_nfe{nfe}"
            found = {key: value for key, value in metric.compute().items() if isinstance(value, float | int)}
            values |= {f"{key}{suffix}": float(v) for key, v in found.items() if math.isfinite(v)}
        return values
