"""The metrics of an audit, by name: each a `SampleMetric` that a callback can use too, under the same class path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.metrics.base import SampleMetric
from cdmem.metrics.memorization.authenticity import Authenticity
from cdmem.metrics.memorization.copy_detection import CopyDetection
from cdmem.metrics.memorization.coverage import HitCoverage
from cdmem.metrics.memorization.data_copying import CopyTest, TrainPreference, TwoSampleAccuracy
from cdmem.metrics.memorization.extraction import AbsoluteExtraction, AdaptiveExtraction
from cdmem.metrics.memorization.feature_likelihood import FeatureLikelihood
from cdmem.metrics.neighbors.index import NearDuplicates
from cdmem.metrics.quality.features import PixelFeatures, digest_of, features_name
from cdmem.metrics.quality.fidelity import Fidelity
from cdmem.metrics.quality.prdc import ManifoldQuality

GROUPS = ("memorization", "copying", "quality", "inside")
SLOW_GROUPS = ("infinity",)  # hundreds of Frechet distances: on request
EXTRACTORS = ("pixels", "efficientnet", "inception")


@dataclass(frozen=True)
class SuiteOptions:
    """What to measure.

    Attributes:
        threshold: memorised means d1 / d2 below it.
        near_duplicates: grouping of T.
        features: extractors of quality and copying, by name; pixels always.
        groups: of :data:`GROUPS` and :data:`SLOW_GROUPS`.
    """

    threshold: float = 1 / 3
    near_duplicates: NearDuplicates = "off"
    features: Sequence[str] = ("pixels",)
    groups: Sequence[str] = GROUPS


def build_features(name: str) -> nn.Module:
    """An extractor by name: ``pixels``, ``efficientnet`` or ``inception``.

    Raises:
        InputError: an unknown name, or weights that are missing or altered.
    """
    if name == "pixels":
        return PixelFeatures()
    if name == "efficientnet":
        from cdmem.metrics.quality.efficientnet import EfficientNetLite0Features

        return EfficientNetLite0Features()
    if name == "inception":
        from cdmem.metrics.quality.inception import InceptionFeatures

        return InceptionFeatures()
    raise InputError("features", name, "no such extractor", "use pixels, efficientnet or inception")


def build_suite(options: SuiteOptions, extractors: Sequence[nn.Module]) -> dict[str, Callable[[], SampleMetric]]:
    """Metric name -> factory, in the order in which they are measured."""
    near, found = options.near_duplicates, {}
    if "memorization" in options.groups:
        found |= {
            # The widest search first: the others reuse its answer.
            "adaptive_extraction": lambda: AdaptiveExtraction(near_duplicates=near),
            "absolute_extraction": lambda: AbsoluteExtraction(near_duplicates=near),
            "coverage": lambda: HitCoverage(options.threshold, near),
            "copy_detection_hog": lambda: CopyDetection(),
        }
    for module in extractors:
        name = features_name(module)
        if "copying" in options.groups:
            found |= {
                f"authenticity_{name}": lambda m=module: Authenticity(m),
                f"copy_test_{name}": lambda m=module: CopyTest(m),
                f"train_preference_{name}": lambda m=module: TrainPreference(m),
                f"two_sample_{name}": lambda m=module: TwoSampleAccuracy(m),
                f"likelihood_{name}": lambda m=module: FeatureLikelihood(m),
            }
            if not isinstance(module, PixelFeatures):
                found[f"copy_detection_{name}"] = lambda m=module: CopyDetection(m)
        if "quality" in options.groups:
            found |= {f"manifold_{name}": lambda m=module: ManifoldQuality(m)}
    return found


def fidelity_metrics(options: SuiteOptions, extractors: Sequence[nn.Module]) -> list[Fidelity]:
    """Frechet and kernel distances, one metric an extractor."""
    if "quality" not in options.groups:
        return []
    return [Fidelity(m, interval=True, infinity="infinity" in options.groups) for m in extractors]


def prepared(
    options: SuiteOptions, extractors: Sequence[nn.Module], training_set: TrainingSet
) -> dict[str, SampleMetric | str]:
    """The suite, ready for many subjects: what depends on T and H alone is worked out once.

    A metric that T or H cannot have (too few images) is the reason why, as text.
    """
    ready: dict[str, SampleMetric | str] = {}
    for name, make in build_suite(options, extractors).items():
        try:
            ready[name] = make().prepare(training_set)
        except InputError as error:
            ready[name] = str(error)
    return ready


def measure(suite: dict[str, SampleMetric | str], images: Tensor, seeds: Tensor) -> dict[str, dict[str, Any]]:
    """Values of every metric on uint8 images (m, C, H, W); ``unavailable`` says why one cannot be had."""
    found: dict[str, dict[str, Any]] = {}
    for name, metric in suite.items():
        if isinstance(metric, str):
            found[name] = {"unavailable": metric}
            continue
        try:
            metric.reset()
            metric.update(images, seeds)
            found[name] = dict(metric.compute())
            detail = getattr(metric, "detail", None)
            if detail is not None:
                found[name]["detail"] = detail(metric.rows())
        except InputError as error:
            found[name] = {"unavailable": str(error)}
        finally:
            metric.reset()
    return found


def extractor_record(extractors: Sequence[nn.Module]) -> dict[str, str]:
    """Name -> digest of weights."""
    with torch.no_grad():
        return {features_name(m): digest_of(m) for m in extractors}
