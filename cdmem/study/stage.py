"""A stage: one model trained, validated, tested or sampled by Lightning, with our folder and checkpoint rules."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cdmem.errors import InputError, brief
from cdmem.images import to_uint8
from cdmem.io.atomic import owned
from cdmem.io.own_code import split_consent
from cdmem.io.paths import possible_path, usable_path
from cdmem.io.secrets import redact
from cdmem.models.load import load_teacher
from cdmem.run.ending import Ending
from cdmem.run.folder import FINISHED, RunFolder
from cdmem.seeds import check_seed, generator_seed
from cdmem.study.consent import checked_configs
from cdmem.study.given import refusal
from cdmem.study.parsing import (
    PARSING,
    PRESETS,
    check_values,
    config_file,
    config_name,
    joined,
    one_line,
    quiet_libraries,
)
from cdmem.study.start import (
    INVALID,
    Start,
    StartRecord,
    check_changes,
    check_length,
    check_not_distilled,
    check_record,
    check_state,
    find_start,
    start_from_weights,
    students_of,
)
from cdmem.study.trainer_options import check_trainer_options, give_folder
from cdmem.tracking.jsonl import JsonlLogger
from cdmem.tracking.wandb import teacher_link, wandb_logger
from cdmem.training.ahead import cores
from cdmem.training.checkpoint import resumable_checkpoint
from cdmem.training.checkpoint_callback import DurableCheckpointIO, RunCheckpoint
from cdmem.training.datamodule import MemorizationDataModule
from cdmem.training.ending import TimeLimit, ending_of
from cdmem.training.engine import check_launch, check_precision, watching_peers
from cdmem.training.module import DiffusionModule
from cdmem.training.progress import StepProgress
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher
from cdmem.training.trial import try_model

with contextlib.suppress(ModuleNotFoundError):
    import callbacks  # noqa: F401  (the one place that looks callbacks up: short class names in configs)

DERIVED_MODEL_SEEDS = ("training", "sampling")
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
        args: the arguments after it; ``--allow_code`` was heard by :func:`cdmem.cli.main.dispatch`.
        said: the command line as the user gave it, where it is another one (a study's).

    Attributes:
        begun: called once training has really started; nothing was written before.
        leave_distilled: a run that a student was distilled from is left as it is, not refused.

    Construction only parses, checks and builds; :meth:`execute` runs (a study checks all of its stages first).
    """

    leave_distilled = False
    begun: Callable[[], object] | None = None

    def __init__(self, command: str, args: Sequence[str], said: Sequence[str] | None = None) -> None:
        self.command, self.said = command, list(said or [command, *args])
        rest, _ = split_consent(args)
        self.config_file = config_file(rest)
        with checked_configs(self.config_file):
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
        parser.epilog = PRESETS
        parser.add_argument("--run_dir", type=str | None, default=None, help="run folder; runs/<config name>")
        parser.add_argument("--seed", type=int, default=0, help="subset, training and sampling seeds derive from it")
        parser.add_argument(
            "--weights_from", type=str | None, default=None, help="start a new run from this model's evaluated weights"
        )
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
        check_trainer_options(s.trainer.as_dict())
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
        named |= {"model.teacher": s.model.init_args.get("teacher"), "weights_from": s.weights_from}
        for key, value in named.items():
            if value is not None:
                usable_path(key, value)
        if s.threads is not None and not 1 <= s.threads <= MAX_THREADS:
            raise InputError("threads", s.threads, f"must be 1 to {MAX_THREADS}", "leave it out to take all cores")
        # Nothing from a checkpoint is unpickled, on resume either.
        s.weights_only = True
        check_precision(s.trainer.precision, str(s.trainer.accelerator))
        self.record = redact(yaml.safe_load(self._parser(self.command).dump(s, skip_validation=True)))
        s.trainer.default_root_dir = s.run_dir
        give_folder(s.trainer.logger, s.run_dir)
        torch.set_num_threads(s.threads or max(1, cores() // processes_here(s.trainer.devices)))
        pl.seed_everything(generator_seed(s.seed, "network", 1), verbose=False)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add what every run has: JSONL record, W&B, checkpoints under the run folder, a bar that knows the end."""
        s, made = self.settings, self.config_init[self.command].trainer
        wanted = made.callbacks or []
        wanted = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
        if not any(isinstance(c, RunCheckpoint) for c in wanted):
            wanted.append(RunCheckpoint())
        for callback in wanted:
            if isinstance(callback, RunCheckpoint):
                callback.dirpath = str(Path(s.run_dir).resolve() / "checkpoints")
        if s.trainer.enable_progress_bar is not False:
            wanted.append(StepProgress())
        if made.max_time is not None:
            wanted.append(self._time_limit(made.max_time))
        made.callbacks, made.max_time = wanted, None
        made.logger = [*self._loggers(s.run_dir), *self._further_loggers(made.logger)]
        trainer = self._trainer(**kwargs)
        cluster = trainer._accelerator_connector.cluster_environment
        if isinstance(cluster, SLURMEnvironment):
            # Its own checkpoints (hpc_ckpt_*.ckpt) would take precedence over newer ones of ours; see docs/clusters.md.
            cluster.auto_requeue = False
        check_launch(trainer, s.data.batch_size)
        self.model.optimization.phases(trainer.max_steps)  # or there is no such schedule
        return trainer

    @staticmethod
    def _time_limit(duration: Any) -> TimeLimit:
        try:
            return TimeLimit(duration)
        except (MisconfigurationException, TypeError) as error:
            raise InputError("trainer.max_time", duration, one_line(str(error)), "e.g. 00:12:00:00") from None

    @staticmethod
    def _further_loggers(asked: Any) -> list[Any]:
        """Loggers of the user's own, beside ours."""
        return [] if asked in (None, True, False) else list(asked) if isinstance(asked, list | tuple) else [asked]

    def _trainer(self, **kwargs: Any) -> pl.Trainer:
        """Lightning's own; what it cannot be with these settings, or on this machine, is told in one line."""
        asked = self.settings.trainer
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ModuleNotFoundError, RuntimeError, ValueError, TypeError) as error:
            named = [k for k in ("precision", "devices", "strategy", "accelerator") if k in str(error)]
            key = min(named, key=str(error).find, default="accelerator")
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

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.settings.run_dir)

    def check_folder(self) -> None:
        """Raises InputError where the run folder was made with settings that cannot change on the way."""
        if self.command != "fit" or self.settings.trainer.fast_dev_run:
            return
        changed = {c.key for c in check_changes(Start(), self.folder, self.record, self.said)}
        last = resumable_checkpoint(self.folder.path) if "trainer.max_steps" in changed else None
        if last is not None:
            self._continue_schedule(Start(*last))

    def execute(self) -> None:
        """Check the folder and the checkpoint, then hand over to Lightning."""
        self._prepare_model()
        if self.command == "fit":
            try_model(self.model, self.trainer, self.datamodule.training_set)
        folder, max_steps = self.folder, self.trainer.max_steps
        writes = self.command == "fit" and not self.settings.trainer.fast_dev_run
        with owned(folder.path, writes and self.trainer.is_global_zero):
            start = self._find_start(folder, writes)
            done = folder.ending() if writes else None
            if done and done.complete and done.step == start.step and not start.changes:
                how = "stopped" if done.why else "finished"
                print(f"      {how} before, at step {done.step}{f': {done.why}' if done.why else ''}", flush=True)
                return
            if writes and self.leave_distilled and start.step and students_of(folder):
                print(f"      left at step {start.step}: a student was distilled from it", flush=True)
                return
            if writes:
                check_length(start, self.model, max_steps, folder, self.said)
                check_not_distilled(folder, start, max_steps, self.said)
                self.model.settings = self.record
                record = StartRecord(folder, self.record, self.datamodule.training_set, start, self.begun)
                self.trainer.callbacks.insert(0, record)
            self._hand_over(folder, start)

    def _find_start(self, folder: RunFolder, writes: bool) -> Start:
        """Where to go on from, checked; a new run may take its weights from another."""
        s = self.settings
        start = find_start(self.command, folder, s.ckpt_path, writes)
        s.ckpt_path = str(start.path) if start.path else None
        record = check_record(start, self.model.role, self.command) if start.checkpoint else None
        if writes:
            start.changes = check_changes(start, folder, self.record, self.said)
        if record is not None:
            check_state(start, record, self.model, self.datamodule.training_set)
        if self.command == "fit":
            if start.checkpoint:
                self._continue_schedule(start)
            elif s.weights_from is not None:
                start.changes.append(start_from_weights(self.model, s.weights_from))
        return start

    def _prepare_model(self) -> None:
        """Build the network; a student is handed its teacher, which may not exist before now."""
        if self.model.raw is not None:
            return
        training_set = self.datamodule.training_set
        if isinstance(self.model, Student) and self.model.teacher_name is not None:
            m = self.model
            said = m.teacher_parameterization
            m.receive(load_teacher(m.teacher_name, training_set, m.teacher_weights, parameterization=said))
        self.model.prepare(training_set)

    def _continue_schedule(self, start: Start) -> None:
        try:
            self.model.continue_schedule(start.checkpoint, self.trainer.max_steps)
        except INVALID as error:
            problem = f"its schedule is invalid ({type(error).__name__})"
            raise InputError("ckpt_path", start.path, problem, "use another checkpoint") from None

    def _hand_over(self, folder: RunFolder, start: Start) -> None:
        self._tell_loggers_the_teacher()
        self.trainer.strategy.checkpoint_io = DurableCheckpointIO(start.checkpoint)
        # Lightning reads the instantiated copy of the settings.
        self.config_init[self.command].ckpt_path = self.settings.ckpt_path
        if self.command == "fit" and self.settings.ckpt_path is None:
            pl.seed_everything(generator_seed(self.settings.seed, "network", 1), verbose=False)
        started = time.time()
        try:
            with watching_peers(self.trainer):
                super()._run_subcommand(self.command)
        except BaseException as error:
            self._keep_interruption(folder, error, time.time() - started)
            if start.checkpoint is None or self.model.started or not isinstance(error, INVALID):
                raise
            reason = f"{type(error).__name__}: {brief(error)}"
            problem = f"cannot be restored ({reason})"
            raise InputError("ckpt_path", self.settings.ckpt_path, problem, "use another checkpoint") from None
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:
            return
        if self.command == "fit":
            ending = ending_of(self.trainer, round(time.time() - started, 1))
            folder.write_json(FINISHED, ending.plain())
            if ending.complete:
                self._log_checkpoint(folder)
            else:
                print(f"      {ending}; the same command goes on", flush=True)
        elif self.command in ("validate", "test"):
            metrics = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
            folder.write_json(f"{self.command}/step={start.step:08d}.json", metrics)
        elif self.command == "predict":
            self._write_predictions(folder)

    def _keep_interruption(self, folder: RunFolder, error: BaseException, seconds: float) -> None:
        """Write down that training did not end by itself."""
        kept = self.command == "fit" and self.model.started and self.trainer.is_global_zero
        if kept and not self.trainer.fast_dev_run:
            why = brief(error) or None
            ending = Ending(self.trainer.global_step, "interrupted", type(error).__name__, why, round(seconds, 1))
            with contextlib.suppress(OSError):  # a full disk may be what ended it
                folder.write_json(FINISHED, ending.plain())

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

    def _write_predictions(self, folder: RunFolder) -> None:
        seeds, images = zip(*self.trainer.predict_loop.predictions)
        folder.write_arrays(
            "samples/predict.npz",
            seeds=torch.cat(list(seeds)).cpu().numpy(),
            images=to_uint8(torch.cat(list(images))).permute(0, 2, 3, 1).numpy(),
        )
        print(f"images: {folder / 'samples/predict.npz'}")


def build(command: str, args: Sequence[str], stage: type[Stage] = Stage, said: Sequence[str] | None = None) -> Stage:
    """Parse, check and build without running; all parsing mistakes become :class:`InputError`."""
    quiet_libraries()
    wants_help = bool({"-h", "--help"} & set(args))
    quiet = io.StringIO()
    try:
        with contextlib.nullcontext() if wants_help else contextlib.redirect_stderr(quiet):
            return stage(command, args, said)
    except (*PARSING, ImportError, InputError) as error:
        raise refusal(error, command, args) from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(command, " ".join(args), one_line(quiet.getvalue()), "see --help") from None
