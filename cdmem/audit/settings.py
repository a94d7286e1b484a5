"""What an audit measures and how: the ``audit`` section of a study, and the options of the command ``audit``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from cdmem.errors import InputError, brief
from cdmem.io.class_paths import find_class
from cdmem.metrics.base import SampleMetric

GROUPS = ("memorization", "copying", "quality", "inside")
SLOW_GROUPS = ("infinity",)  # hundreds of Frechet distances: on request
EXTRACTORS = ("pixels", "efficientnet", "inception")
SAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """Settings of an audit.

    Attributes:
        samples: images per model; if null 2000, or all images where images are audited.
        nfe: network evaluations per image, one audit each; if null all that a student's ``mid_sigmas`` allow.
        threshold: memorised means d1 / d2 below it.
        near_duplicates: off, auto or a ratio; which training images count as one.
        features: extractors of quality and copying, of pixels, efficientnet, inception.
        metrics: groups, of memorization, copying, quality, inside, infinity; or class paths such as
            my_module.MyMetric.
        batch_size: images made at once; changes no number.
        device: where samples are made; auto is the GPU if there is one.
    """

    samples: int | None = None
    nfe: list[int] | None = None
    threshold: float = 1 / 3
    near_duplicates: float | str = "off"
    features: list[str] = field(default_factory=lambda: ["pixels"])
    metrics: list[str] = field(default_factory=lambda: list(GROUPS))
    batch_size: int = 256
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 2:
            raise InputError("samples", self.samples, "needs at least 2", "1000 or more give a usable interval")
        if self.nfe is not None:
            if not self.nfe or min(self.nfe) < 1:
                raise InputError("nfe", self.nfe, "needs at least one evaluation", "e.g. --nfe 1 2 4")
            object.__setattr__(self, "nfe", sorted(set(self.nfe)))  # a repeated one would count twice in Holm's family
        if not 0 < self.threshold <= 1:
            raise InputError("threshold", self.threshold, "must be in (0, 1]", "1/3 is customary")
        rule = self.near_duplicates
        if rule not in ("off", "auto") and not (isinstance(rule, float) and 0 < rule < 1):
            raise InputError("near_duplicates", rule, "is no rule", "use auto, off or a ratio such as 0.5")
        for name in self.features:
            if name not in EXTRACTORS:
                raise InputError("features", name, "no such extractor", f"use {', '.join(EXTRACTORS)}")
        for name in self.own_metrics:
            metric_class(name)
        if self.batch_size < 1:
            raise InputError("batch_size", self.batch_size, "must be at least 1", "e.g. 256")
        usable_device(self.device)

    def asked(self) -> dict[str, Any]:
        """What decides the numbers of an audit, as plain types."""
        return {k: v for k, v in asdict(self).items() if k not in ("batch_size", "device")}

    @property
    def own_metrics(self) -> list[str]:
        """Class paths among the metrics."""
        return [name for name in self.metrics if name not in (*GROUPS, *SLOW_GROUPS)]

    @property
    def torch_device(self) -> torch.device:
        """Where samples are made."""
        return usable_device(self.device)


def usable_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the GPU if there is one.

    Raises:
        InputError: this machine has no such device.
    """
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(usual if name == "auto" else name)
        torch.zeros(1, device=device).cpu()  # the meta device makes zeros, but gives none back
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].split(". ")[0][:160]
        raise InputError("device", name, reason, "use auto or cpu") from None
    return device


def metric_class(name: str) -> type[SampleMetric]:
    """The metric of a class path, found as Python finds modules; it is made without arguments.

    Raises:
        InputError: no such module or class, or one that cannot be measured.
    """
    if "." not in name:
        known = ", ".join((*GROUPS, *SLOW_GROUPS))
        raise InputError("metrics", name, "no such group", f"use {known}, or the class path of a SampleMetric")
    kind = find_class("metrics", name, SampleMetric, "cdmem.metrics")
    try:
        if not issubclass(kind, SampleMetric):
            raise TypeError("it is no SampleMetric")
        kind()
    except Exception as error:  # whatever the user's module raises
        problem = f"cannot be used as a metric ({type(error).__name__}: {brief(error)})"
        raise InputError("metrics", name, problem, "give the class path of a SampleMetric without arguments") from None
    return kind
