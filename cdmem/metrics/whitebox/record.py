"""What a model itself gives away of its training set, measured in one place for the audit and while it trains.

Losses on T and H, distance to the memorising optimum, local dimension at generated images, membership inference: no
search over samples. Everything is a function of the model, T and H, the seed and the noise levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from cdmem.data.subset import TrainingSet
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.sampling import NoiseSource
from cdmem.io.progress import progress
from cdmem.metrics.statistics import median
from cdmem.metrics.whitebox.empirical_optimum import OptimumDistance, distance_to_optimum, training_optimum
from cdmem.metrics.whitebox.intrinsic_dimension import lid
from cdmem.metrics.whitebox.loss_gap import LossGap, OdeEndpoint, denoising_losses, endpoint_losses, loss_gap
from cdmem.metrics.whitebox.membership_inference import attack_sigmas, membership, pia, secmi
from cdmem.metrics.whitebox.roc import Separation

SIGMAS = (0.1, 0.5, 2.0)
IMAGES = 256  # of T, and of H
POINTS = 32  # generated images at which an audit takes the dimension
EXACT_DIMENSIONS = 64  # the exact trace of 8x8 grey images costs no more than a few probes of larger ones
PROBES = 8


class WhiteboxModel(Protocol):
    """The part of a model that is used; teacher and student modules have it."""

    role: str
    num_classes: int
    sigma_min: float
    shape: tuple[int, ...]

    def function(self, weights: str | None = None) -> DenoiserLike:
        """D of a teacher, f of a student."""


@dataclass(frozen=True)
class Counted:
    """A function of (x, sigma, labels) that reports the images of every call to a bar."""

    function: DenoiserLike
    report: Callable[[int], object]

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the function gives."""
        made = self.function(x, sigma, labels)
        self.report(len(x))
        return made


@dataclass(frozen=True)
class Whitebox:
    """The measures of one model against one training set, at several noise levels.

    Attributes:
        model: teacher or student.
        training_set: T and H.
        sigmas: noise levels.
        images: how many of T, and of H, the first ones.
        weights: ``raw`` or ``ema_<half-life>``; None is the model's choice.
        seed: first sample seed of the run, of the noise.
        batch_size: images at once.
        device: where the model is.
        report: called with the number of images of every evaluation, for a bar.
    """

    model: WhiteboxModel
    training_set: TrainingSet
    sigmas: Sequence[float] = SIGMAS
    images: int = IMAGES
    weights: str | None = None
    seed: int = 0
    batch_size: int = 256
    device: torch.device | str = "cpu"
    report: Callable[[int], object] | None = None

    @cached_property
    def function(self) -> DenoiserLike:
        """D of a teacher, f of a student."""
        return self.counted(self.model.function(self.weights))

    def counted(self, function: DenoiserLike) -> DenoiserLike:
        """The same function, reporting its calls where somebody asked for that."""
        return function if self.report is None else Counted(function, self.report)

    @property
    def is_teacher(self) -> bool:
        return self.model.role == "teacher"

    @property
    def suffix(self) -> str:
        """Of the names of everything that is measured on f in place of D."""
        return "" if self.is_teacher else "_f"

    @property
    def lacks_labels(self) -> bool:
        """Whether H has images without a class, for a model with classes."""
        return self.model.num_classes > 0 and bool((self.training_set.held_out_labels < 0).any())

    @cached_property
    def sides(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Images and labels of ``train``, and of ``held_out`` where H has two images or more.

        Labels are None for a model without classes; one with classes has no ``held_out`` without labels.
        """
        t, first = self.training_set, slice(self.images)
        sides = {"train": (t.images[first], t.labels[first])}
        if len(t.held_out_images) >= 2 and not self.lacks_labels:
            sides["held_out"] = (t.held_out_images[first], t.held_out_labels[first])
        return {name: (x, y if self.model.num_classes else None) for name, (x, y) in sides.items()}

    @property
    def _noise(self) -> dict[str, Any]:
        return {"seed": self.seed, "batch_size": self.batch_size, "device": self.device}

    def loss_gaps(self) -> list[LossGap]:
        """T against H by noise level; both sides are needed."""
        return self._gaps(denoising_losses, self.function)

    def endpoint_gaps(self, endpoint: DenoiserLike) -> list[LossGap]:
        """The same of a student's distance to ``endpoint``, Phi of its teacher."""
        return self._gaps(endpoint_losses, self.function, endpoint)

    def _gaps(self, losses: Callable[..., Tensor], *models: DenoiserLike) -> list[LossGap]:
        return loss_gap(*(losses(*models, x, self.sigmas, labels=y, **self._noise) for x, y in self.sides.values()))

    def optimum(self) -> DenoiserLike:
        """D* of T for a teacher, where its ODE ends for a student."""
        best = self.counted(training_optimum(self.training_set, self.model.num_classes > 0).to(self.device))
        return best if self.is_teacher else OdeEndpoint(best, self.model.sigma_min)

    def optimum_distances(self, optimum: DenoiserLike) -> dict[str, list[OptimumDistance]]:
        """By side one distance a noise level; a side with a class that T lacks is left out: that has no optimum."""
        return {
            name: distance_to_optimum(self.function, optimum, x, self.sigmas, labels=y, **self._noise)
            for name, (x, y) in self._with_optimum.items()
        }

    @property
    def _with_optimum(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        known = set(self.training_set.labels.tolist())
        return {name: (x, y) for name, (x, y) in self.sides.items() if y is None or set(y.tolist()) <= known}

    def evaluations(self, points: int, endpoint: bool) -> int:
        """Images times evaluations of all measures, of the model, of its teacher and of D*, as :attr:`report` counts.

        Args:
            points: generated images at which the dimension is taken; backward passes are not counted.
            endpoint: a student is compared with its teacher's endpoints.
        """
        levels = len(self.sigmas)
        ode = sum(2 * OdeEndpoint.points - 1 if s > self.model.sigma_min else 1 for s in self.sigmas)
        counts = {name: len(x) for name, (x, _) in self.sides.items()}
        a_target = levels if self.is_teacher else ode
        total = points * levels + sum(len(x) for x, _ in self._with_optimum.values()) * (levels + a_target)
        if "held_out" in counts:
            each = levels + (levels + ode if endpoint else 0)
            if self.is_teacher:
                each += len(attack_sigmas(sigma_min=self.model.sigma_min)) + 2  # SecMI, PIA
            total += sum(counts.values()) * each
        return total

    def dimensions(self, images: Tensor, seeds: Sequence[int]) -> list[Tensor]:
        """By noise level the LID at generated images (m, C, H, W) of these seeds, float64 (m,)."""
        labels = NoiseSource(seeds, self.model.shape, self.device).labels(self.model.num_classes)
        probes = None if images[0].numel() <= EXACT_DIMENSIONS else PROBES
        x = images.to(self.device)
        return [lid(self.function, x, s, seeds, probes, self.batch_size, labels).value for s in self.sigmas]

    def memberships(self, sigmas: Sequence[float]) -> dict[str, Separation]:
        """SecMI and PIA at ``sigmas``, see `attack_sigmas`; both sides are needed."""
        attacks = {
            "secmi": lambda x, y: secmi(self.function, x, sigmas, labels=y, device=self.device),
            "pia": lambda x, y: pia(self.function, x, sigmas[-2], sigmas[0], labels=y, device=self.device),
        }
        return {name: membership(*(attack(x, y) for x, y in self.sides.values())) for name, attack in attacks.items()}


def whitebox_record(
    model: WhiteboxModel,
    training_set: TrainingSet,
    teacher: WhiteboxModel | None,
    samples: Tensor,
    seeds: Tensor,
    hit: Tensor,
    device: torch.device,
    images: int = IMAGES,
    points: int = POINTS,
    quiet: bool = True,
) -> dict[str, Any]:
    """All measures in JSON types; without H only the distance to the optimum on T and the dimension.

    Args:
        model: teacher or student.
        training_set: T and H.
        teacher: whose ODE endpoints a student is compared with, or None.
        samples: generated images, float (m, C, H, W).
        seeds: of the samples, int64 (m,).
        hit: which samples are memorised, bool (m,).
        device: where the model is.
        images: how many of T, and of H, the first ones.
        points: first samples at which the dimension is taken.
        quiet: show no bar.

    Returns:
        ``images`` (sizes used), by noise level ``loss_gap`` (of D, or of f as ``loss_gap_f``), ``endpoint`` (students
        with a teacher), ``optimum``; ``lid`` (of f: ``lid_f``); for teachers ``secmi`` and ``pia``. Where T or H does
        not fit the model's classes, ``unavailable`` is the reason.
    """
    t, classes = training_set, model.num_classes
    if classes and (t.num_classes != classes or int(t.labels.max()) >= classes):
        return {"unavailable": f"the model has {classes} classes, the training set names {t.num_classes}"}
    points = min(points, len(samples))
    whitebox = Whitebox(model, t, images=images, seed=int(seeds[0]), device=device)
    total = whitebox.evaluations(points, teacher is not None and not whitebox.is_teacher)
    with progress(total, f"audit inside {model.role}", disable=quiet) as bar:
        return _record(replace(whitebox, report=bar.update), teacher, samples[:points], seeds[:points], hit[:points])


def _record(
    whitebox: Whitebox, teacher: WhiteboxModel | None, samples: Tensor, seeds: Tensor, hit: Tensor
) -> dict[str, Any]:
    model = whitebox.model
    record: dict[str, Any] = {"images": {name: len(images) for name, (images, _) in whitebox.sides.items()}}
    if whitebox.lacks_labels:
        record["unavailable"] = "held-out images without labels, for a model with classes"
    if "held_out" in whitebox.sides:
        record[f"loss_gap{whitebox.suffix}"] = _gap_rows(whitebox.loss_gaps())
        if whitebox.is_teacher:
            record |= _attack_rows(whitebox)
        elif teacher is not None:
            phi = OdeEndpoint(whitebox.counted(teacher.function()), model.sigma_min)
            record["endpoint"] = _gap_rows(whitebox.endpoint_gaps(phi))
    record[f"optimum{whitebox.suffix}"] = {
        name: [{"sigma": s, **asdict(d)} for s, d in zip(SIGMAS, row)]
        for name, row in whitebox.optimum_distances(whitebox.optimum()).items()
    }
    record[f"lid{whitebox.suffix}"] = _dimension_rows(whitebox.dimensions(samples, seeds.tolist()), hit)
    return record


def _separation(s: Separation) -> dict[str, Any]:
    return {"auc": s.auc.record(), "tpr_at_1_fpr": s.tpr.record()}


def _gap_rows(gaps: Sequence[LossGap]) -> list[dict[str, Any]]:
    return [
        {"sigma": sigma, "train": g.train, "held_out": g.held_out, "gap": g.gap.record(), **_separation(g.separation)}
        for sigma, g in zip(SIGMAS, gaps)
    ]


def _attack_rows(whitebox: Whitebox) -> dict[str, Any]:
    """SecMI and PIA at the published times, no level below the model's sigma_min."""
    sigmas = attack_sigmas(sigma_min=whitebox.model.sigma_min)
    return {name: {**_separation(s), "sigma": sigmas[-2]} for name, s in whitebox.memberships(sigmas).items()}


def _dimension_rows(dimensions: Sequence[Tensor], hit: Tensor) -> list[dict[str, Any]]:
    """Median LID at generated points, at memorised and at other ones, by level; None where there are no such points."""

    def middle(value: Tensor, chosen: Tensor) -> float | None:
        return median(value[chosen]) if bool(chosen.any()) else None

    points = {"median": torch.ones_like(hit), "memorised": hit, "other": ~hit}
    return [
        {"sigma": sigma, **{name: middle(value, chosen) for name, chosen in points.items()}}
        for sigma, value in zip(SIGMAS, dimensions)
    ]
