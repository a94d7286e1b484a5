"""What teacher and student have in common: network, averages, optimizer, sampling, what a checkpoint says of itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from cdmem.data.stream import Batch
from cdmem.data.subset import TrainingSet
from cdmem.diffusion.noise import SIGMA_MAX, SIGMA_MIN
from cdmem.diffusion.preconditioning import Denoiser
from cdmem.diffusion.sampling import Sampler
from cdmem.diffusion.step_noise import StepNoise
from cdmem.errors import InputError, brief
from cdmem.images import to_float
from cdmem.io import own_code
from cdmem.networks.config import NetworkConfig
from cdmem.networks.own import admit, try_network
from cdmem.training.compile import check_compiler, compile_in_place, plain
from cdmem.training.datamodule import MemorizationDataModule
from cdmem.training.ema import EMA
from cdmem.training.engine import check_trainer, loss_scale
from cdmem.training.record import ModelRecord
from cdmem.training.settings import RAW, Averaging, Optimization, Phase, Seeds, apply_hyperparameters, read_phases

Parameterization = Literal["edm", "vp"]
UNLOGGED = 50  # steps between looks at the loss of a run that logs none
VALIDATION = 2**28  # first number of its noise, beyond any step of training


class DiffusionModule(LightningModule):
    """Base of :class:`DiffusionTeacher` and :class:`Student`.

    The network is built in :meth:`prepare`, when the data have told the image shape and ``sigma_data``.
    """

    role: Literal["teacher", "student"]
    default_optimizer: type[torch.optim.Optimizer]

    def __init__(
        self,
        network: NetworkConfig | None,
        optimization: Optimization,
        averaging: Averaging,
        seeds: Seeds,
        compile: bool,
    ) -> None:
        super().__init__()
        if network is not None and own_code.is_own(network):
            admit(network)
        self.network_config = network
        self.optimization, self.averaging = optimization, averaging
        self.training_seed, self.sampling_seed = seeds.training or 0, seeds.sampling or 0
        self.compiles = compile
        if compile:
            check_compiler()
        self.raw: Denoiser | None = None
        self.ema: EMA | None = None
        self.record: ModelRecord | None = None
        self.started = False  # training has begun: a checkpoint, if there is one, was restored
        self.settings: dict[str, Any] | None = None  # of the run, for its checkpoints
        self.phases: list[Phase] = []  # of the learning rate
        self._losses: list[Tensor] = []
        self._to_log: dict[str, float] = {}

    # ---- construction -------------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self, training_set: TrainingSet) -> None:
        """Build everything that depends on the data; raises :class:`InputError` for what does not fit together."""

    def setup(self, stage: str) -> None:
        check_trainer(self.trainer)
        if self.raw is None:
            self.prepare(self.data.training_set)

    def assemble(self, record: ModelRecord, network: nn.Module, function: type[Denoiser] = Denoiser) -> None:
        """Wrap ``network`` in the preconditioning that ``record`` describes and make its averages."""
        self.record = record
        self.raw = function(network, record.make_scaling())
        self.ema = EMA(network, record.half_lives, self.averaging.ramp)

    def build_network(self, record: ModelRecord) -> nn.Module:
        """The configured network with random weights; one of the user's own is tried.

        Raises:
            InputError: settings that torch or diffusers make no network of; a network of the user's own that could not
                be trained, saved and loaded.
        """
        config = self.network_config
        about = (record.shape, record.label_rows, self.training_seed)
        try:
            network = config.build(*about)
        except InputError:
            raise
        except Exception as error:
            own, reason = own_code.is_own(config), brief(error)
            if not own and not isinstance(error, ValueError | RuntimeError | TypeError | ArithmeticError):
                raise
            shown, problem = (own_code.class_path(config), own_code.reason(error)) if own else (config, reason)
            hint = "correct its settings"
            raise InputError("model.network", shown, f"cannot be built ({problem})", hint) from None
        if own_code.is_own(config):
            ends = torch.tensor([record.sigma_max, record.sigma_min])
            try_network(config, network, *about, record.make_scaling().denoiser(ends).c_noise)
        return network

    def new_record(self, training_set: TrainingSet, **about: Any) -> ModelRecord:
        """The record of a model of this configuration, trained on T, before its first step."""
        defaults = {
            "role": self.role,
            "shape": tuple(training_set.shape),
            "num_classes": 0,
            "sigma_data": training_set.sigma_data,
            "sigma_min": SIGMA_MIN,
            "sigma_max": SIGMA_MAX,
            "parameterization": "edm",
            "network": self.network_config.record() if self.network_config else {},
            "weights": self.averaging.evaluated,
            "half_lives": [int(h) for h in self.averaging.half_lives],
            "sampling_seed": self.sampling_seed,
            "training_set": training_set.hash,
        }
        return ModelRecord(**defaults | about)

    @property
    def data(self) -> MemorizationDataModule:
        return self.trainer.datamodule

    @property
    def shape(self) -> tuple[int, ...]:
        return self.record.shape

    @property
    def num_classes(self) -> int:
        return self.record.num_classes

    @property
    def sigma_min(self) -> float:
        return self.record.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.record.sigma_max

    @property
    def weights(self) -> str:
        """Name of the evaluated weights."""
        return self.record.weights

    def select_weights(self, weights: str) -> None:
        """Evaluate these weights from now on; raises :class:`InputError` for unknown names."""
        self.function(weights)
        self.record = replace(self.record, weights=weights)

    def function(self, weights: str | None = None) -> Denoiser:
        """The denoiser (teacher) or consistency function (student) with the named weights, ``raw`` or ``ema_<h>``."""
        name = weights or self.weights
        if name == RAW:
            network = plain(self.raw.network)
            return self.raw if network is self.raw.network else type(self.raw)(network, self.raw.scaling)
        if name not in self.ema.names():
            raise InputError("weights", name, "no such weights", f"choose one of {[RAW, *self.ema.names()]}")
        return type(self.raw)(self.ema.get(name), self.raw.scaling).eval()

    @abstractmethod
    def sampler(self, nfe: int | None = None, weights: str | None = None) -> Sampler:
        """Seed -> image with ``nfe`` network evaluations (None: this role's default)."""

    @property
    @abstractmethod
    def default_nfe(self) -> list[int]:
        """Network evaluations at which this role is evaluated unless told otherwise; the first is the headline."""

    # ---- optimisation -------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        self.started = True
        apply_hyperparameters(self.optimizers().optimizer, self.lr_schedulers())
        if self.compiles:
            self.compile_networks()

    def compile_networks(self) -> None:
        """Compile what the loss calls, when weights are in place and on their device."""
        compile_in_place(self.raw.network)

    def configure_optimizers(self) -> dict[str, Any]:
        # A checkpoint was looked at by now.
        self.phases = self.phases or self.optimization.phases(self.trainer.max_steps)
        return self.optimization.configure(self.raw.network.parameters(), self.phases, self.default_optimizer)

    def step_noise(self, local_batch: int, batch_idx: int, step: int | None = None) -> StepNoise:
        """The random numbers of this rank's share of a micro-batch of this step, or of another one."""
        t = self.trainer
        part = (batch_idx % t.accumulate_grad_batches) * t.world_size + t.global_rank
        parts = t.accumulate_grad_batches * t.world_size
        step = t.global_step if step is None else step
        return StepNoise(self.training_seed, step, local_batch, part, parts, self.device)

    def labels(self, batch: Batch) -> Tensor | None:
        """Class labels of a batch, or None for an unconditional model."""
        return batch.label if self.num_classes else None

    @abstractmethod
    def loss(self, batch: Batch, noise: StepNoise) -> Tensor:
        """Per-sample training loss (B,)."""

    def training_loss(self, batch: Batch, batch_idx: int) -> Tensor:
        """:meth:`loss` of a micro-batch of training."""
        return self.loss(batch, self.step_noise(len(batch.image), batch_idx))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.training_loss(batch, batch_idx).mean()
        self._losses.append(loss.detach())
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self._look_at_loss()
        return loss

    def _look_at_loss(self) -> None:
        """At the logging cadence and at the first step, the mean loss of all ranks and micro-batches of this step.

        Raises:
            InputError: it is not finite; on every rank, so that none waits for another.
        """
        losses, self._losses = self._losses, []
        step, every = self.trainer.global_step, self.trainer.log_every_n_steps  # 0 logs nothing
        logs = bool(every) and (step + 1) % every == 0
        if step and not logs and (every or (step + 1) % UNLOGGED):
            return
        loss = self.trainer.strategy.reduce(torch.stack(losses).mean(), reduce_op="mean")
        if not torch.isfinite(loss):
            hint = "lower model.optimization.optimizer.lr or use precision 32-true; the last good checkpoint is kept"
            raise InputError("train/loss", float(loss), f"training diverged at step {step}", hint)
        self.log("train/loss", loss, prog_bar=True, logger=False)
        if logs:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self._to_log = {"train/loss": float(loss), "train/lr": rate, "images_seen": float(self.images_seen())}

    def on_train_batch_end(self, *_: Any) -> None:
        """Send the loss of a complete step to the loggers; self.log would repeat it where a run is stopped."""
        if self._to_log:
            for logger in self.trainer.loggers:
                logger.log_metrics(self._to_log, step=self.trainer.global_step - 1)
            self._to_log = {}

    def images_seen(self) -> int:
        """Training images consumed by all ranks so far."""
        return self.trainer.global_step * self.data.batch_size * self.trainer.accumulate_grad_batches

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Averages move after the weights have, once per optimizer step however many micro-batches it had.

        With 16-mixed the gradient scaler leaves a step out when a gradient overflowed. Then the weights did not move,
        and neither do averages and target; the step still counts, its images, noise and learning rate are spent.
        """
        before = loss_scale(self.trainer)
        super().optimizer_step(*args, **kwargs)
        after = loss_scale(self.trainer)
        if before is not None and after < before:
            if after < 1:
                problem = f"gradients overflow float16 whatever the loss scale (step {self.trainer.global_step})"
                raise InputError("trainer.precision", "16-mixed", problem, "use bf16-mixed or 32-true")
            return
        # Lightning counts the step only after this hook.
        self.after_optimizer_step(self.trainer.global_step + 1)

    def after_optimizer_step(self, step: int) -> None:
        """``step``: optimizer steps taken, including the one just made."""
        self.ema.update(self.raw.network, step)

    # ---- validation: how much better than on held-out images? ---------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss on fixed noise, on training (loader 0) and on held-out images (loader 1): their gap is memorisation.

        In float32 whatever the training's precision; every rank sees every image.
        """
        noise = StepNoise(self.sampling_seed, VALIDATION + batch_idx, len(batch.image), device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            loss = self.loss(batch, noise).mean()
        which = ["train", "held_out"][dataloader_idx]
        self.log(f"validate/loss_{which}", loss, add_dataloader_idx=False, sync_dist=True, batch_size=len(batch.image))

    test_step = validation_step

    def predict_step(self, seeds: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Seeds (B,) -> (seeds, images float32 (B, C, H, W), not clamped), the same on every rank.

        The ranks share the work; shares of equal length are gathered, so the last ones repeat a seed.
        """
        ranks, count = self.trainer.world_size, len(seeds)
        mine = seeds[(torch.arange(-(-count // ranks)) * ranks + self.trainer.global_rank) % count]
        with torch.autocast(self.device.type, enabled=False):
            images = self.sampler()(mine.tolist(), self.device)
        if ranks > 1:
            images = self.all_gather(images).transpose(0, 1).flatten(0, 1)[:count]
        return seeds, images.cpu()

    def images(self, batch: Batch) -> Tensor:
        """The batch's pixels in [-1, 1]."""
        return to_float(batch.image)

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        step = int(checkpoint.get("global_step", 0))
        checkpoint["cdmem"] = replace(self.record, step=step).plain()
        checkpoint["schedule"] = [list(phase) for phase in self.phases]
        checkpoint["settings"] = self.settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.state.fn == "fit":
            self.continue_schedule(checkpoint, self.trainer.max_steps)

    def continue_schedule(self, checkpoint: Mapping[str, Any], max_steps: int) -> None:
        """Take up the learning-rate schedule of a checkpoint, to end at ``max_steps``.

        Raises:
            InputError: see :meth:`Optimization.continued`.
        """
        phases = read_phases(checkpoint.get("schedule") or self.optimization.phases(max_steps))
        self.phases = self.optimization.continued(phases, int(checkpoint["global_step"]), max_steps)
