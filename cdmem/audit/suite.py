"""The metrics of an audit, by name: each a `SampleMetric` that a callback can use too, under the same class path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cdmem.audit.settings import AuditSettings, metric_class
from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.metrics.base import SampleMetric
from cdmem.metrics.memorization.authenticity import Authenticity
from cdmem.metrics.memorization.copy_detection import CopyDetection
from cdmem.metrics.memorization.coverage import HitCoverage
from cdmem.metrics.memorization.data_copying import CopyTest, TrainPreference, TwoSampleAccuracy
from cdmem.metrics.memorization.extraction import AbsoluteExtraction, AdaptiveExtraction
from cdmem.metrics.memorization.feature_likelihood import FeatureLikelihood
from cdmem.metrics.memorization.tolerant import TolerantCopies
from cdmem.metrics.own import plain_values, try_metric
from cdmem.metrics.quality.efficientnet import EfficientNetLite0Features
from cdmem.metrics.quality.features import PixelFeatures, digest_of, features_name
from cdmem.metrics.quality.fidelity import Fidelity
from cdmem.metrics.quality.inception import InceptionFeatures
from cdmem.metrics.quality.prdc import ManifoldQuality

FEATURES = {"pixels": PixelFeatures, "efficientnet": EfficientNetLite0Features, "inception": InceptionFeatures}


def build_suite(settings: AuditSettings, extractors: Sequence[nn.Module]) -> dict[str, Callable[[], SampleMetric]]:
    """Metric name -> factory, in the order in which they are measured."""
    near, suite = settings.near_duplicates, {}
    if "memorization" in settings.metrics:
        suite |= {
            # The widest search first: the others reuse its answer.
            "adaptive_extraction": lambda: AdaptiveExtraction(near_duplicates=near),
            "absolute_extraction": lambda: AbsoluteExtraction(near_duplicates=near),
            "coverage": lambda: HitCoverage(settings.threshold, near),
            "tolerant_copies": lambda: TolerantCopies(settings.threshold, near),
            "copy_detection_hog": lambda: CopyDetection(),
        }
    for module in extractors:
        name = features_name(module)
        if "copying" in settings.metrics:
            suite |= {
                f"authenticity_{name}": lambda m=module: Authenticity(m),
                f"copy_test_{name}": lambda m=module: CopyTest(m),
                f"train_preference_{name}": lambda m=module: TrainPreference(m),
                f"two_sample_{name}": lambda m=module: TwoSampleAccuracy(m),
                f"likelihood_{name}": lambda m=module: FeatureLikelihood(m),
            }
            if not isinstance(module, PixelFeatures):
                suite[f"copy_detection_{name}"] = lambda m=module: CopyDetection(m)
        if "quality" in settings.metrics:
            suite |= {f"manifold_{name}": lambda m=module: ManifoldQuality(m)}
    return suite | {name: metric_class(name) for name in settings.own_metrics}


def try_own_metrics(settings: AuditSettings, training_set: TrainingSet) -> None:
    """Raises InputError for metrics of the user's own that cannot be measured."""
    for name in settings.own_metrics:
        try_metric(metric_class(name), training_set, "metrics", name)


def fidelity_metrics(settings: AuditSettings, extractors: Sequence[nn.Module]) -> list[Fidelity]:
    """Frechet and kernel distances, one metric an extractor."""
    if "quality" not in settings.metrics:
        return []
    return [Fidelity(m, interval=True, infinity="infinity" in settings.metrics) for m in extractors]


def prepared(
    settings: AuditSettings, extractors: Sequence[nn.Module], training_set: TrainingSet
) -> dict[str, SampleMetric | str]:
    """The suite, ready for many subjects: what depends on T and H alone is worked out once.

    A metric that T or H cannot have (too few images) is the reason why, as text.
    """
    ready: dict[str, SampleMetric | str] = {}
    for name, make in build_suite(settings, extractors).items():
        try:
            ready[name] = make().prepare(training_set)
        except InputError as error:
            ready[name] = str(error)
    return ready


def measure(suite: dict[str, SampleMetric | str], images: Tensor, seeds: Tensor) -> dict[str, dict[str, Any]]:
    """Values of every metric on uint8 images (m, C, H, W); ``unavailable`` says why one cannot be had."""
    values: dict[str, dict[str, Any]] = {}
    for name, metric in suite.items():
        if isinstance(metric, str):
            values[name] = {"unavailable": metric}
            continue
        try:
            metric.reset()
            metric.update(images, seeds)
            values[name] = plain_values(metric.compute())
            if hasattr(metric, "detail"):
                values[name]["detail"] = metric.detail(metric.rows())
        except InputError as error:
            values[name] = {"unavailable": str(error)}
        finally:
            metric.reset()
    return values


def extractor_record(extractors: Sequence[nn.Module]) -> dict[str, str]:
    """Name -> digest of weights."""
    with torch.no_grad():
        return {features_name(m): digest_of(m) for m in extractors}
