"""What the model itself gives away while it trains: loss gap, distance to the memorising optimum, dimension."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from callbacks.evaluation import Evaluation, EvaluationCallback, Spacing
from cdmem.data.subset import TrainingSet
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.sampling import NoiseSource, first_seed
from cdmem.errors import InputError
from cdmem.metrics.whitebox.empirical_optimum import distance_to_optimum, training_optimum
from cdmem.metrics.whitebox.intrinsic_dimension import lid
from cdmem.metrics.whitebox.loss_gap import OdeEndpoint, denoising_losses, endpoint_losses, loss_gap
from cdmem.metrics.whitebox.roc import Estimate
from cdmem.training.module import DiffusionModule

EXACT_DIMENSIONS = 64  # the exact trace of 8x8 grey images costs no more than a few probes of larger ones
PROBES = 8


class Remembered:
    """A frozen function of (x, sigma, labels) that is asked the same at every evaluation: solved once, kept on the CPU.

    Args:
        function: for example the teacher's ODE endpoint; its answers take the size of the questions.
    """

    def __init__(self, function: DenoiserLike) -> None:
        self.function = function
        self.answers: dict[bytes, Tensor] = {}

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        digest = hashlib.sha256()
        for part in (x, sigma, *(() if labels is None else (labels,))):
            digest.update(part.cpu().numpy().tobytes())
        key = digest.digest()
        if key not in self.answers:
            self.answers[key] = self.function(x, sigma, labels).cpu()
        return self.answers[key].to(x.device)


class InternalCallback(EvaluationCallback):
    """Looks at the model on training and on held-out images; no search over samples. For every noise level s:

    * teacher: ``internal/loss_gap_s<s>``, ``auc_s<s>``, ``tpr1_s<s>`` (TPR at 1 % FPR), each also with ``_low`` and
      ``_high`` before ``_s<s>``; ``optimum_s<s>`` and ``optimum_heldout_s<s>``, the distance to the empirical optimum
      on T and H (left out where its reference vanishes), with its numerator ``optimum_mse``; not for an H with classes
      that T lacks.
    * student: the same of f, as ``loss_gap_f_s<s>`` and so on (``optimum_f``: to the optimum's ODE endpoint), and
      ``endpoint_s<s>``, ``endpoint_heldout_s<s>``, ``endpoint_gap_s<s>`` against the ODE endpoint of its teacher, if
      it has one.
    * ``lid_s<s>`` or ``lid_f_s<s>``: median dimension at generated images.

    Every rank computes all of it from the same images and noise, so nothing is gathered. The optimum costs a pass over
    T for every noisy image, once per run; for a student 35 passes.

    Args:
        sigmas: noise levels.
        images: how many of T, and of H, the first ones.
        samples: generated images for the dimension.
        optimum: measure the distance to the empirical optimum.
        weights: ``raw`` or ``ema_<half-life>``; None is the model's choice.
        points: number of evaluations during ``fit``.
        spacing: ``log`` or ``linear``.
        batch_size: images at once.
        test_samples: generated images in ``test``.
    """

    prefix = "internal"

    def __init__(
        self,
        sigmas: Sequence[float] = (0.1, 0.5, 2.0),
        images: int = 256,
        samples: int = 32,
        optimum: bool = True,
        weights: str | None = None,
        points: int = 8,
        spacing: Spacing = "log",
        batch_size: int = 256,
        test_samples: int | None = None,
    ) -> None:
        super().__init__(samples, points, spacing, batch_size, test_samples)
        if not sigmas or min(sigmas) <= 0:
            raise InputError("InternalCallback.sigmas", list(sigmas), "must be positive", "e.g. [0.1, 0.5, 2.0]")
        if images < 2:
            raise InputError("InternalCallback.images", images, "a gap needs 2 images of each side", "use 256")
        self.sigmas, self.images, self.optimum, self.weights = [float(s) for s in sigmas], images, optimum, weights
        self._remembered: dict[str, Remembered] = {}

    def check_run(self, trainer: Trainer, training_set: TrainingSet) -> None:
        """Without held-out images there is no gap."""
        count, problem = len(training_set.held_out_images), "InternalCallback compares training with held-out images"
        if count < 2:
            raise InputError("data.held_out", count, problem, "use 2 or more, 256 if you can")

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        self._remembered = {}

    def _sides(self, t: TrainingSet, module: DiffusionModule) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Images and labels of T (``""``) and of H (``_heldout``)."""
        sides = {"": (t.images, t.labels), "_heldout": (t.held_out_images, t.held_out_labels)}
        return {
            name: (images[: self.images], labels[: self.images] if module.num_classes else None)
            for name, (images, labels) in sides.items()
        }

    def _teacher_endpoint(self, module: DiffusionModule) -> Remembered | None:
        """Phi of a student's frozen teacher, down the teacher's own range of levels."""
        denoiser = getattr(module, "teacher_denoiser", None)
        if denoiser is None:
            return None
        module.move_teacher()
        return self._remembered.setdefault("teacher", Remembered(OdeEndpoint(denoiser, module.sigma_min)))

    def _optimum(self, t: TrainingSet, module: DiffusionModule) -> Remembered:
        if "optimum" not in self._remembered:
            best = training_optimum(t, module.num_classes > 0).to(module.device)
            target = best if module.role == "teacher" else OdeEndpoint(best, module.sigma_min)
            self._remembered["optimum"] = Remembered(target)
        return self._remembered["optimum"]

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        module, t = evaluation.module, evaluation.training_set
        function, sides = module.function(self.weights), self._sides(t, module)
        suffix = "" if module.role == "teacher" else "_f"
        common = {"seed": module.sampling_seed, "batch_size": self.batch_size, "device": module.device}
        values = self._gaps(function, sides, suffix, common)
        endpoint = self._teacher_endpoint(module)
        if endpoint is not None:
            values |= self._endpoints(function, endpoint, sides, common)
        if self.optimum:
            best = self._optimum(t, module)
            for side, (images, labels) in sides.items():
                if labels is not None and not set(labels.tolist()) <= set(t.labels.tolist()):
                    continue
                distances = distance_to_optimum(function, best, images, self.sigmas, labels=labels, **common)
                for s, found in zip(self.sigmas, distances):
                    values[f"optimum_mse{suffix}{side}_s{s:g}"] = found.absolute
                    if found.ratio is not None:
                        values[f"optimum{suffix}{side}_s{s:g}"] = found.ratio
        return values | self._dimension(module, function, suffix)

    def _gaps(self, function: DenoiserLike, sides: dict[str, Any], suffix: str, common: dict) -> dict[str, float]:
        losses = [
            denoising_losses(function, images, self.sigmas, labels=labels, **common)
            for images, labels in sides.values()
        ]
        values = {}
        for s, found in zip(self.sigmas, loss_gap(*losses)):
            numbers = {"loss_gap": found.gap, "auc": found.separation.auc, "tpr1": found.separation.tpr}
            for name, estimate in numbers.items():
                values |= _spread(f"{name}{suffix}", f"_s{s:g}", estimate)
        return values

    def _endpoints(
        self, function: DenoiserLike, endpoint: Remembered, sides: dict[str, Any], common: dict
    ) -> dict[str, float]:
        losses = [
            endpoint_losses(function, endpoint, images, self.sigmas, labels=labels, **common)
            for images, labels in sides.values()
        ]
        values = {}
        for s, found in zip(self.sigmas, loss_gap(*losses)):
            values |= {f"endpoint_s{s:g}": found.train, f"endpoint_heldout_s{s:g}": found.held_out}
            values |= _spread("endpoint_gap", f"_s{s:g}", found.gap)
        return values

    def _dimension(self, module: DiffusionModule, function: DenoiserLike, suffix: str) -> dict[str, float]:
        """Every rank makes the same few images itself: shares would have to be gathered."""
        start = first_seed(module.sampling_seed)
        seeds = list(range(start, start + self.samples))
        sampler = module.sampler(None, self.weights)
        labels = NoiseSource(seeds, module.shape, module.device).labels(module.num_classes)
        images = sampler(seeds, module.device)
        probes = None if images[0].numel() <= EXACT_DIMENSIONS else PROBES
        return {
            f"lid{suffix}_s{s:g}": float(
                lid(function, images, s, seeds, probes, self.batch_size, labels).value.median()
            )
            for s in self.sigmas
        }


def _spread(name: str, level: str, estimate: Estimate) -> dict[str, float]:
    """Value, low and high as three numbers to log."""
    return {f"{name}{level}": estimate.value, f"{name}_low{level}": estimate.low, f"{name}_high{level}": estimate.high}
