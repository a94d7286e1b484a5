"""A metric of the user's own at the door: measured on training images before anything is trained or sampled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.io import own_code
from cdmem.metrics.base import SampleMetric

IMAGES = 8


def plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """What a metric returned, in JSON types: the user's may be tensors."""
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    """Python's types; ``inf`` and ``-inf`` as text: JSON has no such numbers, and null would say "not measured"."""
    value = value.tolist() if isinstance(value, np.generic | Tensor) else value
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def try_metric(make: Callable[[], SampleMetric], training_set: TrainingSet, key: str, name: str) -> None:
    """Measure some training images; what needs more of them is no failure.

    Args:
        make: gives the metric.
        training_set: T and H.
        key, name: the setting that named it, and its class path.

    Raises:
        InputError: it raises, or returns what no record holds.
    """
    try:
        metric = make()
        count = max(IMAGES, metric.min_samples)
        images = training_set.images[torch.arange(count) % len(training_set.images)]
        try:
            metric.prepare(training_set).update(images, torch.arange(count))
            values = metric.compute()
        except InputError:  # told as "unavailable"
            return
        if not isinstance(values, dict):
            raise TypeError(f"evaluate returns a {type(values).__name__}, no mapping of numbers")
        json.dumps(plain_values(values))
    except Exception as error:  # whatever the user's class raises
        problem = f"cannot be measured ({own_code.reason(error)})"
        raise InputError(key, name, problem, "see CONTRIBUTING.md, a metric of the audit") from None
