"""White-box measures while training: loss gap, distance to the memorising optimum, dimension."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from callbacks.evaluation import Cadence, Evaluation, EvaluationCallback, Planned
from cdmem.data.subset import TrainingSet
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.errors import InputError
from cdmem.metrics.statistics import Estimate, median
from cdmem.metrics.whitebox.loss_gap import OdeEndpoint
from cdmem.metrics.whitebox.record import EXACT_DIMENSIONS, IMAGES, PROBES, SIGMAS, Whitebox
from cdmem.seeds import first_sample
from cdmem.training.module import DiffusionModule


class Remembered:
    """A frozen function of (x, sigma, labels) whose values are kept on the CPU: every evaluation needs the same ones.

    Args:
        function: for example the teacher's ODE endpoint; its values take the size of its arguments.
    """

    def __init__(self, function: DenoiserLike) -> None:
        self.function = function
        self.values: dict[bytes, Tensor] = {}

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        digest = hashlib.sha256()
        for part in (x, sigma, *(() if labels is None else (labels,))):
            digest.update(part.cpu().numpy().tobytes())
        key = digest.digest()
        if key not in self.values:
            self.values[key] = self.function(x, sigma, labels).cpu()
        return self.values[key].to(x.device)


class WhiteboxCallback(EvaluationCallback):
    """White-box measures on training and on held-out images; no search over samples. For every noise level s:

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
        optimum: measure the distance to the empirical optimum.
        weights: ``raw`` or ``ema_<half-life>``; None is the model's choice.
        cadence: when, and at how many generated images the dimension is taken.
    """

    prefix = "internal"

    def __init__(
        self,
        sigmas: Sequence[float] = SIGMAS,
        images: int = IMAGES,
        optimum: bool = True,
        weights: str | None = None,
        cadence: Cadence = Cadence(samples=32),
    ) -> None:
        super().__init__(cadence)
        if not sigmas or min(sigmas) <= 0:
            raise InputError("WhiteboxCallback.sigmas", list(sigmas), "must be positive", "e.g. [0.1, 0.5, 2.0]")
        if images < 2:
            raise InputError("WhiteboxCallback.images", images, "a gap needs 2 images of each side", "use 256")
        self.sigmas, self.images, self.optimum, self.weights = [float(s) for s in sigmas], images, optimum, weights
        self._remembered: dict[str, Remembered] = {}

    def check_run(self, trainer: Trainer, training_set: TrainingSet) -> None:
        """Without held-out images there is no gap."""
        count, problem = len(training_set.held_out_images), "WhiteboxCallback compares training with held-out images"
        if count < 2:
            raise InputError("data.held_out", count, problem, "use 2 or more, 256 if you can")

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        self._remembered = {}

    def planned(self, module: DiffusionModule, training_set: TrainingSet) -> Planned:
        """Levels at images and samples, the teacher's ODE endpoints; a backward pass to an image counts as one."""
        t, levels = training_set, len(self.sigmas)
        images = sum(min(self.images, len(side)) for side in (t.images, t.held_out_images))
        has_teacher = getattr(module, "teacher_denoiser", None) is not None
        looks = 1 + int(self.optimum) + int(has_teacher)
        probes = t.images[0].numel() if t.images[0].numel() <= EXACT_DIMENSIONS else PROBES
        drawn = self.samples * (module.sampler(None, self.weights).nfe + levels * (1 + probes))
        solved = sum(2 * OdeEndpoint.points - 1 if s > module.sigma_min else 1 for s in self.sigmas)
        return Planned(own=images * levels * looks + drawn, teacher=images * solved if has_teacher else 0)

    def _teacher_endpoint(self, module: DiffusionModule) -> Remembered | None:
        """Phi of a student's frozen teacher, down the teacher's own range of levels."""
        denoiser = getattr(module, "teacher_denoiser", None)
        if denoiser is None:
            return None
        module.move_teacher()
        return self._remembered.setdefault("teacher", Remembered(OdeEndpoint(denoiser, module.sigma_min)))

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        module, t, size = evaluation.module, evaluation.training_set, self.cadence.batch_size
        seed, device = first_sample(module.sampling_seed), module.device
        whitebox = Whitebox(module, t, self.sigmas, self.images, self.weights, seed, size, device)
        f, columns = whitebox.suffix, {}
        endpoint = self._teacher_endpoint(module)
        if "held_out" in whitebox.sides:
            gaps = whitebox.loss_gaps()
            columns |= _spread(f"loss_gap{f}", [g.gap for g in gaps])
            columns |= _spread(f"auc{f}", [g.separation.auc for g in gaps])
            columns |= _spread(f"tpr1{f}", [g.separation.tpr for g in gaps])
        if "held_out" in whitebox.sides and endpoint is not None:
            gaps = whitebox.endpoint_gaps(endpoint)
            columns |= {"endpoint": [g.train for g in gaps], "endpoint_heldout": [g.held_out for g in gaps]}
            columns |= _spread("endpoint_gap", [g.gap for g in gaps])
        if self.optimum:
            if "optimum" not in self._remembered:
                self._remembered["optimum"] = Remembered(whitebox.optimum())
            for side, distances in whitebox.optimum_distances(self._remembered["optimum"]).items():
                name = f"{f}_heldout" if side == "held_out" else f
                columns[f"optimum_mse{name}"] = [d.absolute for d in distances]
                columns[f"optimum{name}"] = [d.ratio for d in distances]
        # Every rank makes the same few images itself: shares would have to be gathered.
        seeds = list(range(seed, seed + self.samples))
        images = module.sampler(None, self.weights)(seeds, device)
        columns[f"lid{f}"] = [median(value) for value in whitebox.dimensions(images, seeds)]
        levels = [f"_s{s:g}" for s in self.sigmas]
        return {f"{name}{s}": v for name, column in columns.items() for s, v in zip(levels, column) if v is not None}


def _spread(name: str, estimates: Sequence[Estimate]) -> dict[str, list[float]]:
    """Value, low and high as three columns by noise level."""
    columns = {"": "value", "_low": "low", "_high": "high"}
    return {f"{name}{end}": [getattr(e, part) for e in estimates] for end, part in columns.items()}
