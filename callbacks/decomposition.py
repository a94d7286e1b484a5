"""Target and noise within a teacher's sampling paths, while it trains (see docs/theory/decomposition.md)."""

from __future__ import annotations

from typing import Any

import torch

from callbacks.evaluation import Cadence, Evaluation, EvaluationCallback, Planned
from cdmem.data.subset import TrainingSet
from cdmem.diffusion.noise import sampler_sigmas
from cdmem.diffusion.sampling import NoiseSource
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.metrics.statistics import median
from cdmem.seeds import first_sample
from cdmem.theory.decomposition.parts import decompose
from cdmem.theory.decomposition.paths import walk
from cdmem.theory.measures import nearest_two
from cdmem.training.module import DiffusionModule


class DecompositionCallback(EvaluationCallback):
    """A teacher's paths from the audit seeds, each split for the training image that it ends nearest to.

    ``decomposition/D_1`` and ``D_2`` (mean deviation from the schedule of a sampler that knows its target from the
    start; 0 for that sampler), ``commitment`` (median sigma at which the target's posterior passes one half),
    ``a_first`` and ``across_first`` (the first estimate's share of the target, and the rest) and ``residual`` (largest
    mean share of x_t that is neither). Every rank computes the same; a student logs nothing.

    Args:
        steps: Euler steps of each path.
        weights: ``raw`` or ``ema_<half-life>``; None is the model's choice.
        cadence: when, and on how many paths.
    """

    prefix = "decomposition"

    def __init__(
        self,
        steps: int = 30,
        weights: str | None = None,
        cadence: Cadence = Cadence(samples=64, points=10, test_samples=256),
    ) -> None:
        super().__init__(cadence)
        if steps < 2:
            raise InputError("steps", steps, "makes no path", "give 2 or more")
        self.steps, self.weights = steps, weights

    def planned(self, module: DiffusionModule, training_set: TrainingSet) -> Planned:
        """A teacher's paths."""
        return Planned(own=self.samples * self.steps if module.role == "teacher" else 0)

    def measure(self, evaluation: Evaluation) -> dict[str, Any]:
        """The means over paths."""
        module, training = evaluation.module, evaluation.training_set
        if module.role != "teacher":
            return {}
        start = first_sample(module.sampling_seed)
        noise = NoiseSource(range(start, start + self.samples), training.shape, "cpu")
        full = module.sampler()
        sigmas = sampler_sigmas(self.steps, float(full.sigmas[-2]), float(full.sigmas[0]))
        function, device = module.function(self.weights), module.device

        def denoise(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            return function(x.to(device), sigma.to(device), None if labels is None else labels.to(device)).cpu()

        x = noise.next().double() * sigmas[0]
        path = walk(denoise, x, sigmas, noise.labels(module.num_classes))
        images = to_float(training.images).flatten(1).double()
        _, nearest = nearest_two(path.states[-1], images)
        parts = decompose(path, images, training.multiplicities, nearest[:, 0])
        return {
            "D_1": float(parts.D_1.mean()),
            "D_2": float(parts.D_2.mean()),
            "commitment": median(parts.commitment),
            "a_first": float(parts.a[0].mean()),
            "across_first": float(parts.across[0].mean()),
            "residual": float(parts.residual.mean(1).max()),
        }
