"""Callbacks: hooks, cadence and logging; the mathematics is in :mod:`cdmem.metrics`."""

from callbacks.decomposition import DecompositionCallback
from callbacks.evaluation import Cadence, EvaluationCallback
from callbacks.memorization import MemorizationCallback
from callbacks.metric import MetricCallback
from callbacks.onset import MemorizationStopping, OnsetCallback
from callbacks.panels import NeighborPanelCallback
from callbacks.quality import QualityCallback
from callbacks.samples import SampleGridCallback
from callbacks.whitebox import WhiteboxCallback

__all__ = [
    "Cadence",
    "DecompositionCallback",
    "EvaluationCallback",
    "MemorizationCallback",
    "MemorizationStopping",
    "MetricCallback",
    "NeighborPanelCallback",
    "OnsetCallback",
    "QualityCallback",
    "SampleGridCallback",
    "WhiteboxCallback",
]
