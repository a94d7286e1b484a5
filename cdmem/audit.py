"""One audit: what each model reproduces of the training set, at what quality, beside its controls.

Every number is a function of the checkpoint, the seeds and the sample count: batch size and device do not matter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cdmem.data.subset import TrainingSet
from cdmem.diffusion.sampling import Sampler, first_seed, in_batches
from cdmem.errors import InputError
from cdmem.images import to_uint8
from cdmem.metrics.features import PixelFeatures, features_name
from cdmem.metrics.fidelity import FrechetDistance, KernelDistance
from cdmem.metrics.memorization import MemorizedFraction
from cdmem.metrics.neighbors import NeighborIndex
from cdmem.metrics.pairing import PairedWithTeacher
from cdmem.metrics.statistics import wilson_interval
from cdmem.run import RunFolder

SCHEMA = 1


@dataclass(frozen=True)
class Subject:
    """A generator under audit.

    Attributes:
        name: ``teacher``, ``student`` or the name of one of several students.
        role: ``teacher`` or ``student``.
        method: how it samples: ``heun``, ``euler`` or ``consistency``.
        sampler: seed -> image.
        weights: ``raw`` or ``ema_<half-life>``.
        step: optimizer steps of the checkpoint.
    """

    name: str
    role: str
    method: str
    sampler: Sampler
    weights: str
    step: int

    @property
    def file_stem(self) -> str:
        return f"{self.name}_{self.method}_nfe={self.sampler.nfe}"


@dataclass
class AuditResult:
    """What ``audit/summary.json`` holds; later versions add keys and rename none.

    Attributes:
        training_set: ``n``, ``rows``, ``hash``, ``held_out``, ``source``.
        models: one entry per subject, see :meth:`Auditor.measure`.
        control: ``heldout_f_mem`` (held-out images as if they were samples) and ``copycat`` (T itself as samples).
        settings: samples, threshold, features.
        distillation: per student, whether f_mem had stopped rising; filled in by a study.
    """

    training_set: dict[str, Any]
    models: list[dict[str, Any]]
    control: dict[str, Any]
    settings: dict[str, Any]
    distillation: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> AuditResult:
        """Read back what :meth:`to_json` wrote."""
        return cls(**record)


class Auditor:
    """Measures subjects on the same seeds against one training set.

    Args:
        training_set: T and H.
        samples: per subject, at least 2.
        sampling_seed: first sample seed is 1,000,000 times this.
        threshold: memorised means d1 / d2 below it.
        batch_size: samples made at once; does not change any number.
        device: where samples are made.
        features: for the Frechet and kernel distances; None is the pixels.
        folder: where rows and images are kept; None keeps nothing.
        progress: show a bar.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        samples: int,
        sampling_seed: int = 0,
        threshold: float = 1 / 3,
        batch_size: int = 256,
        device: torch.device | str = "cpu",
        features: torch.nn.Module | None = None,
        folder: RunFolder | None = None,
        progress: bool = True,
    ) -> None:
        if samples < 2:
            raise InputError("audit.samples", samples, "needs at least 2", "1000 or more give a usable interval")
        self.training_set, self.samples, self.threshold = training_set, samples, threshold
        self.first = first_seed(sampling_seed)
        self.seeds = range(self.first, self.first + samples)
        self.batch_size, self.device = batch_size, torch.device(device)
        self.features = (features or PixelFeatures()).to(self.device)
        self.folder, self.progress = folder, progress
        self.index = NeighborIndex(training_set.images, flip=training_set.flip)
        self._held_out = training_set.held_out_images

    def images(self, subject: Subject) -> Tensor:
        """All samples, float32 (m, C, H, W), not clamped, in seed order."""
        parts = []
        batches = in_batches(subject.sampler, self.seeds, self.batch_size, self.device)
        with tqdm(
            total=self.samples, desc=f"audit {subject.name} {subject.sampler.nfe} NFE", disable=not self.progress
        ) as bar:
            for seeds, images in batches:
                parts.append(images)
                bar.update(len(seeds))
        return torch.cat(parts)

    def measure(self, subject: Subject, images: Tensor, reference: Tensor | None) -> dict[str, Any]:
        """One entry of ``models``.

        Args:
            images: the subject's samples, (m, C, H, W).
            reference: the teacher's full ODE endpoints for the same seeds, or None.
        """
        metric = MemorizedFraction(self.index, self.threshold)
        metric.update(to_uint8(images), torch.tensor(self.seeds))
        result, entry = metric.compute(), {}
        entry |= {"name": subject.name, "role": subject.role, "method": subject.method, "nfe": subject.sampler.nfe}
        entry |= {"weights": subject.weights, "step": subject.step, "samples": self.samples}
        entry |= {"seeds": [self.first, self.first + self.samples - 1]}
        entry["f_mem"] = {"value": result["f_mem"], "ci95": [result["f_mem_low"], result["f_mem_high"]]}
        entry["unique"] = int(result["unique"])
        entry["median_ratio"] = result["median_ratio"]
        entry["quality"] = self.quality(to_uint8(images))
        pair: dict[str, Any] = {"variance_ratio": None, "rmse_to_teacher": None, "same_basin": None}
        if reference is not None:
            paired = PairedWithTeacher(self.index)
            paired.update(images, reference)
            distance = paired.compute()
            pair = {name: distance[name] for name in pair}
        if self.folder is not None:
            rows = {name: value.numpy() for name, value in metric.rows().items()}
            self.folder.write_arrays(f"audit/{subject.file_stem}.npz", **rows)
            pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()
            self.folder.write_arrays(f"samples/{subject.file_stem}.npz", images=pixels, seeds=rows["seeds"])
        return entry | pair

    def quality(self, images: Tensor) -> dict[str, float | None]:
        """Frechet and kernel distance of uint8 images (m, C, H, W) to H; None without held-out images."""
        name = features_name(self.features)
        values: dict[str, float | None] = {}
        for key, kind in (("fd", FrechetDistance), ("kid", KernelDistance)):
            if len(self._held_out) < 2:
                values[f"{key}_{name}"] = None
                continue
            metric = kind(self.features).to(self.device)
            for part in self._held_out.split(self.batch_size):
                metric.update(part.to(self.device), reference=True)
            for part in images.split(self.batch_size):
                metric.update(part.to(self.device), reference=False)
            values[f"{key}_{name}"] = float(metric.compute())
        return values

    def control(self) -> dict[str, Any]:
        """Held-out images and T's own images in place of samples: what 'none' and 'all' look like here."""
        held = self._held_out
        heldout = None
        if len(held):
            metric = MemorizedFraction(self.index, self.threshold)
            metric.update(held, torch.arange(len(held)))
            r = metric.compute()
            heldout = {"value": r["f_mem"], "ci95": [r["f_mem_low"], r["f_mem_high"]], "samples": len(held)}
        # The copycat draws rows of T at random, as a perfect copier would.
        draw = torch.Generator().manual_seed(self.first)
        t = self.training_set
        chosen = t.row_to_group[torch.randint(t.rows, (self.samples,), generator=draw)]
        copies = t.images[chosen]
        metric = MemorizedFraction(self.index, self.threshold)
        metric.update(copies, torch.arange(len(copies)))
        hits = round(metric.compute()["f_mem"] * self.samples)
        return {
            "heldout_f_mem": heldout,
            "copycat": {
                "samples": self.samples,
                "f_mem": {"value": hits / self.samples, "ci95": list(wilson_interval(hits, self.samples))},
                "quality": self.quality(copies),
            },
        }

    def run(self, subjects: Sequence[Subject]) -> AuditResult:
        """Audit all subjects; the first full-ODE teacher is the reference of the paired numbers."""
        models, reference = [], None
        for subject in subjects:
            images = self.images(subject)
            if reference is None and subject.role == "teacher":
                reference = images
            models.append(self.measure(subject, images, reference))
        t = self.training_set
        about = {"n": len(t.images), "rows": t.rows, "hash": t.hash, "held_out": len(t.held_out_images)}
        about |= {"source": t.source, "flip": t.flip, "shape": list(t.shape)}
        settings = {"samples": self.samples, "threshold": self.threshold, "features": features_name(self.features)}
        return AuditResult(about, models, self.control(), settings)
