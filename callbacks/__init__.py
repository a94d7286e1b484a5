"""Callbacks: hooks, cadence and logging; the mathematics is in :mod:`cdmem.metrics`."""

from callbacks.decomposition import DecompositionCallback
from callbacks.evaluation import EvaluationCallback
from callbacks.internal import InternalCallback
from callbacks.memorization import MemorizationCallback
from callbacks.metric import MetricCallback
from callbacks.onset import MemorizationStopping, OnsetCallback
from callbacks.panels import NeighborPanelCallback
from callbacks.quality import QualityCallback
from callbacks.samples import SampleGridCallback

__all__ = [
    "DecompositionCallback",
    "EvaluationCallback",
    "InternalCallback",
    "MemorizationCallback",
    "MemorizationStopping",
    "MetricCallback",
    "NeighborPanelCallback",
    "OnsetCallback",
    "QualityCallback",
    "SampleGridCallback",
]
