"""A stage: one model trained, validated, tested or sampled by Lightning, with our folder and checkpoint rules."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cdmem.errors import InputError
from cdmem.images import to_uint8
from cdmem.io.atomic import owned
from cdmem.io.paths import possible_path, usable_path
from cdmem.io.secrets import redact
from cdmem.models.load import load_teacher
from cdmem.run.folder import CONFIG, FINISHED, RunFolder
from cdmem.run.provenance import environment
from cdmem.run.settings import check_same_settings
from cdmem.seeds import check_seed, generator_seed
from cdmem.study.consent import consent, split_consent
from cdmem.study.parsing import (
    PARSING,
    check_values,
    config_file,
    config_name,
    explain,
    joined,
    one_line,
    quiet_libraries,
)
from cdmem.tracking.jsonl import JsonlLogger
from cdmem.tracking.wandb import teacher_link, wandb_logger
from cdmem.training.checkpoint import PREVIOUS, read_checkpoint, resumable_checkpoint
from cdmem.training.checkpoint_callback import DurableCheckpointIO, RunCheckpoint
from cdmem.training.datamodule import MemorizationDataModule
from cdmem.training.engine import check_launch, check_precision, watching_peers
from cdmem.training.module import DiffusionModule
from cdmem.training.progress import StepProgress
from cdmem.training.record import FORMAT, read_record
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher

with contextlib.suppress(ModuleNotFoundError):
    import callbacks  # noqa: F401  (the one place that looks callbacks up: short class names in configs)

DERIVED_MODEL_SEEDS = ("training", "sampling")
INVALID = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
MAX_THREADS = 256
set_parsing_settings(omegaconf_absolute_to_relative_paths=True)


def processes_here(devices: Any) -> int:
    """Processes that share this machine's cores: as torchrun or SLURM says, or as many as ``devices``."""
    said = [os.environ.get(name, "") for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")]
    return max([int(text) for text in (*said, str(devices)) if text.isdigit()] + [1])


class Stage(LightningCLI):
    """One subcommand of Lightning's CLI.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        args: the arguments after it; ``--allow_code`` admits configs of run folders.

    Construction only parses, checks and builds; :meth:`execute` runs (a study checks all of its stages first).
    """

    def __init__(self, command: str, args: Sequence[str]) -> None:
        self.command = command
        rest, allowed = split_consent(args)
        self.config_file = config_file(rest)
        with consent(allowed):
            super().__init__(
                model_class=DiffusionModule,
                datamodule_class=MemorizationDataModule,
                subclass_mode_model=True,
                save_config_callback=None,
                seed_everything_default=False,
                auto_configure_optimizers=False,
                trainer_defaults={"num_sanity_val_steps": 0, "check_val_every_n_epoch": None},
                parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
                args=[command, *joined(rest)],
            )

    def subcommands(self) -> dict[str, set[str]]:  # only the one asked for: each parser costs a second to build
        known = LightningCLI.subcommands()
        return {self.command: known[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str | None, default=None, help="run folder; runs/<config name>")
        parser.add_argument("--seed", type=int, default=0, help="subset, training and sampling seeds derive from it")
        parser.add_argument("--threads", type=int | None, default=None, help="CPU threads; cores / devices if null")
        parser.add_argument(
            "--wandb", type=bool, default=True, help="log to Weights & Biases (offline without a login)"
        )

    def _parse_ckpt_path(self) -> None:
        """The configuration decides what is built, never the settings inside a checkpoint file."""

    @property
    def settings(self) -> Namespace:
        """The parsed settings of the subcommand."""
        return self.config[self.command]

    def check_sections(self) -> None:
        """Raises InputError for a section that is a list: an empty one passes the parser for an empty mapping."""
        for name in ("trainer", "data", "model"):
            section = self.settings.get(name)
            if not isinstance(section, Namespace):
                raise InputError(name, section, "is no mapping of settings", "see configs/quickstart/teacher.yaml")

    def before_instantiate_classes(self) -> None:
        self.check_sections()
        s = self.settings
        check_values(s)
        check_seed(s.seed)
        if s.data.subset_seed is None:
            s.data.subset_seed = generator_seed(s.seed, "subset")
        if s.data.order_seed is None:
            s.data.order_seed = s.seed
        for name in DERIVED_MODEL_SEEDS:
            if s.model.init_args.seeds[name] is None:
                s.model.init_args.seeds[name] = s.seed
        if s.run_dir is None:
            s.run_dir = f"runs/{config_name(self.config_file)}"
        possible_path("run_dir", s.run_dir)
        named = {"ckpt_path": s.ckpt_path, "data.path": s.data.path, "data.held_out_path": s.data.held_out_path}
        for key, value in (named | {"model.teacher": s.model.init_args.get("teacher")}).items():
            if value is not None:
                usable_path(key, value)
        if s.threads is not None and not 1 <= s.threads <= MAX_THREADS:
            raise InputError("threads", s.threads, f"must be 1 to {MAX_THREADS}", "leave it out to take all cores")
        # Nothing from a checkpoint is unpickled, on resume either.
        s.weights_only = True
        check_precision(s.trainer.precision, str(s.trainer.accelerator))
        self.record = redact(yaml.safe_load(self._parser(self.command).dump(s, skip_validation=True)))
        s.trainer.default_root_dir = s.run_dir
        torch.set_num_threads(s.threads or max(1, (os.cpu_count() or 1) // processes_here(s.trainer.devices)))
        pl.seed_everything(generator_seed(s.seed, "network", 1), verbose=False)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add what every run has: JSONL record, W&B, checkpoints under the run folder, a bar that knows the end."""
        s, made = self.settings, self.config_init[self.command].trainer
        wanted = made.callbacks or []
        wanted = [*wanted] if isinstance(wanted, list) else [wanted]
        if not any(isinstance(c, RunCheckpoint) for c in wanted):
            wanted.append(RunCheckpoint())
        for callback in wanted:
            if isinstance(callback, RunCheckpoint):
                callback.dirpath = str(Path(s.run_dir).resolve() / "checkpoints")
        if s.trainer.enable_progress_bar is not False:
            wanted.append(StepProgress())
        made.callbacks = wanted
        if s.trainer.logger in (None, True):
            made.logger = self._loggers(s.run_dir)
        trainer = self._trainer(**kwargs)
        cluster = trainer._accelerator_connector.cluster_environment
        if isinstance(cluster, SLURMEnvironment):
            # Its own checkpoints (hpc_ckpt_*.ckpt) would take precedence over newer ones of ours; see docs/clusters.md.
            cluster.auto_requeue = False
        check_launch(trainer, s.data.batch_size)
        if trainer.max_steps < 1:
            raise InputError("trainer.max_steps", trainer.max_steps, "the stream of images never ends", "set a number")
        return trainer

    def _trainer(self, **kwargs: Any) -> pl.Trainer:
        """Lightning's own; what it cannot be with these settings, or on this machine, is told in one line."""
        asked = self.settings.trainer
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ModuleNotFoundError, RuntimeError) as error:
            key = next((k for k in ("precision", "devices", "strategy") if k in str(error)), "accelerator")
            problem = f"no trainer can be made with it ({one_line(str(error))})"
            raise InputError(f"trainer.{key}", asked.get(key), problem, "give what this machine has") from None

    def _loggers(self, run_dir: str) -> list[Any]:
        if self.command != "fit":
            return []
        loggers: list[Any] = [JsonlLogger(run_dir)]
        if self.settings.wandb and os.environ.get("WANDB_MODE") != "disabled":
            loggers.append(wandb_logger(RunFolder(run_dir), self.record, self.model))
        return loggers

    def _run_subcommand(self, subcommand: str) -> None:
        """Called at the end of construction: read the data, so that what is wrong with them is known now."""
        self.datamodule.setup(subcommand)
        if isinstance(self.model, DiffusionTeacher):
            self.model.prepare(self.datamodule.training_set)
        for callback in self.trainer.callbacks if subcommand == "fit" else ():
            if hasattr(callback, "check_run"):
                callback.check_run(self.trainer, self.datamodule.training_set)

    # ---- running ------------------------------------------------------------------------------------------------

    def execute(self) -> None:
        """Check the folder and the checkpoint, then hand over to Lightning."""
        self._prepare_model()
        folder = RunFolder(self.settings.run_dir)
        writes = self.command == "fit" and not self.settings.trainer.fast_dev_run
        with owned(folder.path, writes and self.trainer.is_global_zero):
            checkpoint = self._check_folder(folder, writes)
            done = folder.finished() if writes else None
            if done and done["step"] == self._checkpoint_step:
                why = f": {done['stopped']}" if done.get("stopped") else ""
                how = "stopped" if why else "finished"
                print(f"      {how} before, at step {done['step']}{why}", flush=True)
                return
            written = self._prepare_folder(folder) if writes and self.trainer.is_global_zero else []
            self._hand_over(folder, checkpoint, written)

    def _prepare_model(self) -> None:
        """Build the network; a student is handed its teacher, which may not exist before now."""
        if self.model.raw is not None:
            return
        training_set = self.datamodule.training_set
        if isinstance(self.model, Student) and self.model.teacher_name is not None:
            self.model.receive(load_teacher(self.model.teacher_name, training_set, self.model.teacher_weights))
        self.model.prepare(training_set)

    def _hand_over(self, folder: RunFolder, checkpoint: dict[str, Any] | None, written: Sequence[Path]) -> None:
        self._tell_loggers_the_teacher()
        self.trainer.strategy.checkpoint_io = DurableCheckpointIO(checkpoint)
        # Lightning reads the instantiated copy of the settings.
        self.config_init[self.command].ckpt_path = self.settings.ckpt_path
        if self.command == "fit" and self.settings.ckpt_path is None:
            pl.seed_everything(generator_seed(self.settings.seed, "network", 1), verbose=False)
        started = time.time()
        try:
            with watching_peers(self.trainer):
                super()._run_subcommand(self.command)
        except INVALID as error:
            if checkpoint is None or self.model.started:
                raise
            for file in written:  # a refusal leaves nothing behind
                file.unlink(missing_ok=True)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            problem = f"cannot be restored ({reason})"
            raise InputError("ckpt_path", self.settings.ckpt_path, problem, "use another checkpoint") from None
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:
            return
        # A callback may end a run before max_steps on purpose; it says why.
        stopped = next((c.stopped for c in self.trainer.callbacks if getattr(c, "stopped", None)), None)
        if self.command == "fit" and (stopped or self.trainer.global_step >= self.trainer.max_steps):
            done = {"step": self.trainer.global_step, "seconds": round(time.time() - started, 1)}
            if self.trainer.global_step < self.trainer.max_steps:
                done["stopped"] = stopped
            folder.write_json(FINISHED, done)
            self._log_checkpoint(folder)
        elif self.command in ("validate", "test"):
            metrics = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
            folder.write_json(f"{self.command}/step={self._checkpoint_step:08d}.json", metrics)
        elif self.command == "predict":
            self._write_predictions(folder)

    def _tell_loggers_the_teacher(self) -> None:
        """Only now is the teacher of a study known, and read."""
        for logger in self.trainer.loggers:
            if hasattr(logger, "log_checkpoint"):
                logger.teacher = teacher_link(self.model)

    def _log_checkpoint(self, folder: RunFolder) -> None:
        about = {"step": self.trainer.global_step, "training_set": self.datamodule.training_set.hash}
        for logger in self.trainer.loggers:
            if hasattr(logger, "log_checkpoint") and folder.last_checkpoint.is_file():
                logger.log_checkpoint(folder.last_checkpoint, self.model.role, about)

    def _check_folder(self, folder: RunFolder, writes: bool) -> dict[str, Any] | None:
        """The checkpoint to start from, None for a fresh start; what does not belong together is refused."""
        s, checkpoint = self.settings, None
        stray = next(iter(folder.path.glob("hpc_ckpt*")), None)
        if stray is not None:
            raise InputError("run_dir", stray, "is no checkpoint of cdmem, and Lightning would prefer it", "remove it")
        if s.ckpt_path == "last" or (s.ckpt_path is None and (self.command != "fit" or writes)):
            # The same command again goes on where the run stopped; a trained state is never overwritten.
            last = resumable_checkpoint(folder.path)
            if last is None and self.command != "fit":
                hint = "train first or give --ckpt_path FILE"
                raise InputError("ckpt_path", "last", f"{folder.path} holds no checkpoint", hint)
            s.ckpt_path, checkpoint = (str(last[0]), last[1]) if last else (None, None)
        if s.ckpt_path is not None:
            checkpoint = checkpoint or read_checkpoint(s.ckpt_path, "ckpt_path")
            self._check_checkpoint(checkpoint)
        if writes and (folder / CONFIG).is_file():
            check_same_settings(folder, folder.read_config(), self.record)
        self._checkpoint_step = int(checkpoint["global_step"]) if checkpoint else 0
        return checkpoint

    def _prepare_folder(self, folder: RunFolder) -> list[Path]:
        """Write what the run is; the files of a folder that had no settings before."""
        new = not (folder / CONFIG).is_file()
        if new:
            folder.write_text(CONFIG, yaml.safe_dump(self.record, sort_keys=False))
        written = [
            folder.write_json("environment.json", environment(torch.get_num_threads())),
            folder.write_json("training_set.json", self.datamodule.training_set.record()),
        ]
        last = folder.last_checkpoint
        if last.is_file() and self.settings.ckpt_path == str(last.with_name(PREVIOUS)):
            last.replace(last.with_name("torn.ckpt"))  # or it would become the one to fall back on
        return [folder / CONFIG, *written] if new else []

    def _check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        path, step, module = self.settings.ckpt_path, checkpoint.get("global_step"), self.model
        try:
            record = read_record(checkpoint["cdmem"])
            if not isinstance(step, int) or step < 0:
                raise ValueError(f"step {step}")
        except INVALID as error:
            raise InputError("ckpt_path", path, f"its record is invalid ({error})", "use another checkpoint") from None
        if record.format != FORMAT and self.command == "fit":
            problem = f"was written by an earlier cdmem (format {record.format}) and cannot be resumed"
            hint = "sample, audit, export or distil it; train on in another --run_dir"
            raise InputError("ckpt_path", path, problem, hint)
        if record.role != module.role:
            problem = f"is a {record.role}, the config describes a {module.role}"
            hint = "give the teacher to a student as --model.teacher; --ckpt_path only resumes the same model"
            raise InputError("ckpt_path", path, problem, hint)
        if record.teacher_digest != module.record.teacher_digest:
            problem = f"is not the teacher that {path} was distilled from"
            hint = "give that teacher, or another --run_dir"
            raise InputError("model.teacher", getattr(module, "teacher_name", None), problem, hint)
        if record.training_set != self.datamodule.training_set.hash:
            problem = "was trained on another training set than the data section describes"
            raise InputError("ckpt_path", path, problem, "use the data section of that run (its config.yaml)")
        ours, theirs = (
            {name: tuple(v.shape) for name, v in state.items() if isinstance(v, torch.Tensor)}
            for state in (module.state_dict(), checkpoint["state_dict"])
        )
        other = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        if other:
            problem = f"does not hold the network that the config describes ({other[0]} differs)"
            raise InputError("ckpt_path", path, problem, "use the model section of that run (its config.yaml)")

    def _write_predictions(self, folder: RunFolder) -> None:
        seeds, images = zip(*self.trainer.predict_loop.predictions)
        folder.write_arrays(
            "samples/predict.npz",
            seeds=torch.cat(list(seeds)).cpu().numpy(),
            images=to_uint8(torch.cat(list(images))).permute(0, 2, 3, 1).numpy(),
        )
        print(f"images: {folder / 'samples/predict.npz'}")


def build(command: str, args: Sequence[str], stage: type[Stage] = Stage) -> Stage:
    """Parse, check and build without running; all parsing mistakes become :class:`InputError`."""
    quiet_libraries()
    wants_help = bool({"-h", "--help"} & set(args))
    quiet = io.StringIO()
    try:
        with contextlib.nullcontext() if wants_help else contextlib.redirect_stderr(quiet):
            return stage(command, args)
    except PARSING as error:
        raise explain(error) from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(command, " ".join(args), one_line(quiet.getvalue()), "see --help") from None
