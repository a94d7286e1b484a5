"""Any metric of `cdmem.metrics`, or your own `SampleMetric`, on samples of the model while it trains."""

from __future__ import annotations

import copy
import math
from functools import partial

from lightning.pytorch import Trainer

from callbacks.evaluation import Cadence, Evaluation, EvaluationCallback
from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.images import to_uint8
from cdmem.io import own_code
from cdmem.metrics.base import SampleMetric
from cdmem.metrics.own import try_metric


class MetricCallback(EvaluationCallback):
    """Logs what a metric returns as ``<name>/<key>`` (and ``<key>_nfe2`` ... for further NFE).

    In YAML, two lines::

        - class_path: callbacks.MetricCallback
          init_args: {metric: {class_path: cdmem.metrics.AdaptiveExtraction}}

    Args:
        metric: the metric; its states are gathered over processes by seed.
        name: prefix of the keys; None takes the metric's class name in lower case.
        nfe: network evaluations per sample; None takes the model's headline.
        weights: ``raw`` or ``ema_<half-life>``; None is the model's choice.
        cadence: when, and on how many samples.
    """

    def __init__(
        self,
        metric: SampleMetric,
        name: str | None = None,
        nfe: list[int] | None = None,
        weights: str | None = None,
        cadence: Cadence = Cadence(),
    ) -> None:
        super().__init__(cadence)
        if cadence.fewest < metric.min_samples:
            key, problem = f"{type(self).__name__}.cadence.samples", f"needs at least {metric.min_samples} samples"
            raise InputError(key, cadence.fewest, problem, "use 512 or more")
        self.metric, self.nfe, self.weights = metric, nfe, weights
        self.prefix = name or type(metric).__name__.lower()

    def check_run(self, trainer: Trainer, training_set: TrainingSet) -> None:
        """Prepare now, so that an impossible metric is refused before training."""
        # What the metric keeps of T and H serves all evaluations of the same set.
        if getattr(self.metric, "training_set", None) is not training_set:
            if own_code.is_own(self.metric):
                name = own_code.class_path(self.metric)
                try_metric(partial(copy.deepcopy, self.metric), training_set, "MetricCallback.metric", name)
            self.metric.prepare(training_set)

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        self.check_run(evaluation.trainer, evaluation.training_set)
        metric, values = self.metric.to(evaluation.module.device), {}
        for k, nfe in enumerate(self.nfes(evaluation.module)):
            seeds, images = evaluation.samples(self.samples, nfe, self.weights)
            metric.reset()
            metric.update(to_uint8(images), seeds)
            suffix = "" if k == 0 else f"_nfe{nfe}"
            numbers = {key: v for key, v in metric.compute().items() if isinstance(v, float | int)}
            values |= {f"{key}{suffix}": float(v) for key, v in numbers.items() if math.isfinite(v)}
        metric.reset()
        return values
