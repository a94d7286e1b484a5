"""Base of all metric callbacks: when to evaluate, and samples shared between the callbacks of one moment.

A metric of your own is one class in one file, see the recipe "A callback" in ``CONTRIBUTING.md``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from cdmem.data.subset import TrainingSet
from cdmem.diffusion.sampling import Sampler
from cdmem.errors import InputError
from cdmem.images import write_png
from cdmem.run.folder import RunFolder
from cdmem.seeds import first_sample
from cdmem.training.module import DiffusionModule

Spacing = Literal["log", "linear", "sqrt"]
DRY_SAMPLES = 8  # images per evaluation under trainer.fast_dev_run
MOST_POINTS = 10_000  # evaluations of one run
MOST_SAMPLES = 10**8  # images of one evaluation


def evaluation_steps(max_steps: int, points: int, spacing: Spacing) -> list[int]:
    """Optimizer steps at which to evaluate, always ending at ``max_steps``.

    ``log`` spaces them by a constant factor from max_steps / 64 on, so that the onset of memorisation is visible;
    ``linear`` evenly, so that the end of a distillation is; ``sqrt`` evenly in the root of the step from
    max_steps / 100 on, which tells most of a distillation's limit.
    """
    if max_steps < 1 or points < 1:
        return []
    if spacing == "log":
        steps = np.geomspace(max_steps / 64, max_steps, points)
    elif spacing == "sqrt":
        steps = np.linspace((max_steps / 100) ** 0.5, max_steps**0.5, points) ** 2
    else:
        steps = np.linspace(max_steps / points, max_steps, points)
    return sorted({max(1, round(s)) for s in steps} | {max_steps})


@dataclass(frozen=True)
class Cadence:
    """When a callback evaluates, and on how many samples.

    Attributes:
        samples: generated images per evaluation.
        points: number of evaluations during ``fit``; 0 is none.
        spacing: ``log`` (onset), ``linear`` (end of a distillation) or ``sqrt`` (its limit).
        batch_size: images at once.
        test_samples: generated images in ``test``; None is ``samples``.
    """

    samples: int = 512
    points: int = 8
    spacing: Spacing = "log"
    batch_size: int = 256
    test_samples: int | None = None

    def check(self, key: str) -> None:
        """Raises InputError for a count that cannot be; ``key`` is where the cadence stands in a config."""
        for name, value in {"samples": self.samples, "test_samples": self.test_samples}.items():
            if value is not None and not 2 <= value <= MOST_SAMPLES:
                raise InputError(f"{key}.{name}", value, f"must be 2 to {MOST_SAMPLES} samples", "use 512 or more")
        if not 0 <= self.points <= MOST_POINTS:
            raise InputError(f"{key}.points", self.points, f"must be 0 to {MOST_POINTS} evaluations", "use about 8")
        if not 1 <= self.batch_size <= MOST_SAMPLES:
            raise InputError(f"{key}.batch_size", self.batch_size, "must be at least 1 image", "use about 256")

    @property
    def fewest(self) -> int:
        """Samples of the smallest evaluation."""
        return min(self.samples, self.test_samples or self.samples)


@dataclass
class Evaluated:
    """What the callbacks of one moment share.

    Attributes:
        step: optimizer step of the latest evaluation.
        values: measured there by all callbacks, for those that judge them; the same on every rank.
        samples: images made there, by NFE and weights.
        endpoints: the frozen teacher's, of every step.
    """

    step: int = -1
    values: dict[str, float] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)
    endpoints: dict[str, Tensor] = field(default_factory=dict)


def evaluated(module: DiffusionModule, step: int | None = None) -> Evaluated:
    """The model's latest evaluation, or that of ``step``, which is empty at first."""
    found: Evaluated = module.__dict__.setdefault("_evaluated", Evaluated())
    if step is not None and step != found.step:
        found.step, found.values, found.samples = step, {}, {}
    return found


def log_values(trainer: Trainer, module: DiffusionModule, values: dict[str, float]) -> None:
    """Send values to every logger at this step, on the axis of images seen too."""
    for logger in trainer.loggers if values else ():
        logger.log_metrics({**values, "images_seen": module.images_seen()}, step=trainer.global_step)


@dataclass(frozen=True)
class Planned:
    """Network evaluations of one moment, counted before it comes.

    Attributes:
        samples: (network evaluations each, weights) -> samples; shared by the ranks, and by callbacks of one moment.
        endpoints: samples of the teacher's sampler, shared likewise and made once a run.
        own: further evaluations of the model, by every rank.
        teacher: further evaluations of the teacher, by every rank, once a run.
    """

    samples: dict[tuple[int, str], int] = field(default_factory=dict)
    endpoints: int = 0
    own: int = 0
    teacher: int = 0


@dataclass
class Evaluation:
    """What a metric may look at: the model in eval mode, and the run folder; ask :attr:`is_writer` before writing.

    Attributes:
        batch_size: samples made at once.
    """

    trainer: Trainer
    module: DiffusionModule
    folder: RunFolder
    batch_size: int

    @property
    def step(self) -> int:
        return self.trainer.global_step

    @property
    def training_set(self) -> TrainingSet:
        return self.module.data.training_set

    @property
    def is_writer(self) -> bool:
        """Whether this process keeps files now: rank zero of ``fit``. In ``validate`` and ``test`` Lightning counts
        from step 0 again, and what training wrote at its steps must stay."""
        return self.trainer.is_global_zero and self.trainer.state.fn == "fit" and not self.trainer.fast_dev_run

    def _make(self, store: dict[str, Tensor], key: str, sampler: Sampler, count: int) -> tuple[Tensor, Tensor]:
        start = first_sample(self.module.sampling_seed)
        seeds = range(start + self.trainer.global_rank, start + count, self.trainer.world_size)
        parts = [store.get(key, torch.zeros(0, *self.module.shape))]
        for k in range(len(parts[0]), len(seeds), self.batch_size):
            parts.append(sampler(list(seeds[k : k + self.batch_size]), self.module.device).cpu())
        store[key] = torch.cat(parts)
        return torch.tensor(seeds, dtype=torch.int64), store[key][: len(seeds)]

    def samples(self, count: int, nfe: int | None = None, weights: str | None = None) -> tuple[Tensor, Tensor]:
        """This rank's share of the first ``count`` samples of the model.

        Returns:
            seeds int64 (b,) and float32 images (b, C, H, W) on the CPU, in [-1, 1] but not clamped.
        """
        made, sampler = evaluated(self.module, self.step).samples, self.module.sampler(nfe, weights)
        return self._make(made, f"{sampler.nfe}/{weights or self.module.weights}", sampler, count)

    def teacher_endpoints(self, count: int) -> Tensor | None:
        """The frozen teacher's ODE endpoints for the same seeds (b, C, H, W), or None for a module without teacher."""
        sampler = getattr(self.module, "teacher_sampler", lambda: None)()
        if sampler is None:
            return None
        return self._make(evaluated(self.module).endpoints, "teacher", sampler, count)[1]

    def send_picture(self, key: str, picture: np.ndarray, file: str = "") -> None:
        """Keep uint8 (H, W, 3) as ``panels/<file>step=<step>.png``, and send it to the loggers that take images."""
        write_png(self.folder.file(f"panels/{file}step={self.step:08d}.png"), picture)
        for logger in self.trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(key, [picture], step=self.step)


class EvaluationCallback(Callback):
    """Calls :meth:`measure` at chosen steps of ``fit`` and once in ``validate`` and ``test``; logs what it returns.

    Args:
        cadence: when, and on how many samples.

    Attributes:
        samples: generated images of the evaluation that is due: those of the cadence, ``cadence.test_samples`` in
            ``test``, 8 at most under ``fast_dev_run``.
        steps_to_evaluate: optimizer steps still to come; a checkpoint is written just before each of them.

    Raises:
        InputError: a count that cannot be.
    """

    prefix = "metric"
    every_nfe = False  # look at the model's own list of NFE by default, not at its headline alone

    def __init__(self, cadence: Cadence = Cadence()) -> None:
        cadence.check(f"{type(self).__name__}.cadence")
        self.cadence, self.samples = cadence, cadence.samples
        self.steps_to_evaluate: set[int] = set()

    def check_run(self, trainer: Trainer, training_set: TrainingSet) -> None:
        """Raise InputError for a run that this metric cannot measure; called before any stage of a study trains."""

    def nfes(self, module: DiffusionModule) -> Sequence[int | None]:
        """Network evaluations per sample to look at; None is the model's headline."""
        return getattr(self, "nfe", None) or (module.default_nfe if self.every_nfe else [None])

    def planned(self, module: DiffusionModule, training_set: TrainingSet) -> Planned:
        """What one call of :meth:`measure` asks of the networks, for ``plan``: samples at every NFE."""
        weights = getattr(self, "weights", None)
        kinds = [(module.sampler(nfe, weights).nfe, weights or module.weights) for nfe in self.nfes(module)]
        return Planned(dict.fromkeys(kinds, self.samples))

    def planned_steps(self, max_steps: int, role: str) -> list[int]:
        """Optimizer steps of all evaluations of a whole run; 0 is a student's baseline."""
        return [0] * (role == "student") + evaluation_steps(max_steps, self.cadence.points, self.cadence.spacing)

    @abstractmethod
    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """The metric's values by name; logged as ``<prefix>/<name>``. Called on every rank."""

    def run(self, trainer: Trainer, module: DiffusionModule) -> dict[str, float]:
        """Evaluate now and send the values to every logger."""
        usual = self.samples
        if trainer.fast_dev_run:  # a dry run shows that it works, not how much
            self.samples = min(self.samples, DRY_SAMPLES)
        training = module.training
        module.eval()
        with torch.no_grad():
            evaluation = Evaluation(trainer, module, RunFolder(trainer.default_root_dir), self.cadence.batch_size)
            values = self.measure(evaluation)
        module.train(training)
        self.samples = usual
        values = {k if "/" in k else f"{self.prefix}/{k}": float(v) for k, v in values.items()}
        evaluated(module, trainer.global_step).values |= values
        log_values(trainer, module, values)
        return values

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.check_run(trainer, pl_module.data.training_set)
        self.steps_to_evaluate = set(evaluation_steps(trainer.max_steps, self.cadence.points, self.cadence.spacing))

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        # What came before the checkpoint was evaluated before it.
        self.steps_to_evaluate = {step for step in self.steps_to_evaluate if step > trainer.global_step}
        # Step 0 of a student is the teacher's network used in one step: the baseline of its curve.
        fresh = trainer.global_step == 0 and trainer.ckpt_path is None
        if fresh and pl_module.role == "student" and not trainer.fast_dev_run:
            self.run(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        # With accumulation several micro-batches share a step: evaluate after the one that moved the weights.
        if trainer.global_step in self.steps_to_evaluate:
            self.steps_to_evaluate.discard(trainer.global_step)
            values = self.run(trainer, pl_module)
            pl_module.log_dict(values, logger=False, prog_bar=False, sync_dist=False)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "validate":
            pl_module.log_dict(self.run(trainer, pl_module), logger=False)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        usual, self.samples = self.samples, self.cadence.test_samples or self.samples
        pl_module.log_dict(self.run(trainer, pl_module), logger=False)
        self.samples = usual
