"""When checkpoints are written, and how: only where a step is complete, never torn, the one before kept."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim import Optimizer

from cdmem.errors import InputError
from cdmem.io.atomic import add_name, replacing
from cdmem.run.metrics_log import MetricsRecord
from cdmem.training.checkpoint import LAST, PREVIOUS
from cdmem.training.ladder import ladder_steps, write_rung

MOST_RUNGS = 100
ASK_EVERY = 10  # steps between the ranks' questions whether one of them was told to stop


class DurableCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there: written beside, synced, renamed; ``last.ckpt`` leaves its forerunner.

    Args:
        checkpoint: what the file to go on from holds, already read and checked: it is handed out once.
    """

    def __init__(self, checkpoint: dict[str, Any] | None = None) -> None:
        self.checkpoint = checkpoint

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """The checkpoint that was read before, or the file's content."""
        checkpoint, self.checkpoint = self.checkpoint, None
        return super().load_checkpoint(path, *args, **options) if checkpoint is None else checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: for example a full disk; every earlier file is as it was.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:
                # torch does not say why it could not write; on a file that was just made, the disk is why.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
            if target.name == LAST and target.is_file():
                add_name(target, target.with_name(PREVIOUS))


class RunCheckpoint(Checkpoint):
    """``checkpoints/last.ckpt``: every so many steps, before every evaluation, at the end, and when told to stop.

    It is written where one step is complete and the next has not begun: weights, averages, target, records and
    callbacks all belong to the same step, whatever happens later. So a run that is killed goes on bit for bit on the
    same kind of machine, and an evaluation that was cut short is made again.

    Args:
        every_n_steps: cadence in optimizer steps.
        keep_all: keep a numbered file each time (memorisation is studied along training), not only the last.
        dirpath: set by the command line to ``<run folder>/checkpoints``.
        keep_ladder: keep the evaluated weights alone at so many steps, spaced by a constant factor, in
            ``checkpoints/ladder/``; a study audits those of its teacher.
    """

    def __init__(
        self, every_n_steps: int = 500, keep_all: bool = False, dirpath: str | None = None, keep_ladder: int = 0
    ) -> None:
        if every_n_steps < 1:
            raise InputError("RunCheckpoint.every_n_steps", every_n_steps, "must be at least 1", "500 is usual")
        if not 0 <= keep_ladder <= MOST_RUNGS:
            raise InputError("RunCheckpoint.keep_ladder", keep_ladder, f"must be 0 to {MOST_RUNGS}", "8 is usual")
        self.every_n_steps, self.keep_all, self.dirpath = every_n_steps, keep_all, dirpath
        self.keep_ladder, self._rungs = keep_ladder, set[int]()
        self._whole = False  # nothing of the next step has happened yet
        self._saved = self._kept = -1  # step of last.ckpt, and of the newest checkpoint there is
        self._told_to_stop = False
        self._metrics: tuple[int | None, int] = (0, -1)  # size and step that the metrics record goes back to

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.checkpoint_io = DurableCheckpointIO()
        self._whole = self._told_to_stop = False
        self._rungs = ladder_steps(trainer.max_steps, self.keep_ladder)
        for record in self._records(trainer):
            record.rewind_before_next_line(*self._metrics)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept = trainer.global_step if trainer.ckpt_path else -1
        self._saved = self._kept if self._from_last(trainer) else -1
        # Lightning's own handler broadcasts from within the handler, in the middle of whatever collective is running.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _from_last(self, trainer: Trainer) -> bool:
        if not trainer.ckpt_path or not self.dirpath:
            return False
        return Path(trainer.ckpt_path).resolve() == (Path(self.dirpath) / LAST).resolve()

    def _on_sigterm(self, *_: Any) -> None:
        self._told_to_stop = True

    def _must_stop(self, trainer: Trainer) -> bool:
        """Whether any rank was told to; the same answer on all of them."""
        if trainer.world_size == 1:
            return self._told_to_stop
        if trainer.global_step % ASK_EVERY:
            return False
        return trainer.strategy.reduce_boolean_decision(self._told_to_stop, all=False)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        # Lightning's counter of logged steps runs ahead by one after some restarts; here both are equal.
        trainer.fit_loop.epoch_loop._batches_that_stepped = step
        self._whole, stop = True, self._must_stop(trainer)
        if trainer.fast_dev_run:
            return
        due = step > 0 and step % self.every_n_steps == 0
        if stop or due or self._evaluates(trainer, step + 1):
            self._save(trainer)
        if due:
            self._number(trainer)
        if step in self._rungs and self.dirpath and trainer.is_global_zero:
            write_rung(pl_module, Path(self.dirpath), step)
        if stop:
            raise SIGTERMException

    @staticmethod
    def _evaluates(trainer: Trainer, step: int) -> bool:
        """Whether a callback will spend its time at ``step``."""
        return any(step in getattr(callback, "steps_to_evaluate", ()) for callback in trainer.callbacks)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._whole = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._whole = False  # micro-batches that were accumulated are not in a checkpoint

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The final state is always the last file, whatever the cadence."""
        if not trainer.fast_dev_run:
            self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved < 0 and self._from_last(trainer):  # nothing was left to train
            self._saved = trainer.global_step
        self._number(trainer)
        if self.dirpath and trainer.is_global_zero and not trainer.fast_dev_run:
            for part in Path(self.dirpath).glob(".*.part.ckpt"):  # of a write that a kill cut short
                part.unlink(missing_ok=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what is complete, and say where the run will go on."""
        if trainer.state.fn != "fit" or trainer.fast_dev_run or not self.dirpath:
            return
        if self._whole and not isinstance(exception, OSError):
            try:
                self._save(trainer, alone=True)
            except Exception as error:  # what went wrong first is what must be told
                warnings.warn(f"no checkpoint could be written ({type(error).__name__}: {error})", stacklevel=2)
        begun = getattr(pl_module, "started", True)  # else what could not be restored is reported in one line
        if begun and trainer.is_global_zero and not isinstance(exception, InputError):
            kept = f"from step {self._kept}" if self._kept >= 0 else "from the start"
            print(f"\nstopped at step {trainer.global_step}; run again, it goes on {kept}", file=sys.stderr, flush=True)

    def _save(self, trainer: Trainer, alone: bool = False) -> None:
        """Write ``last.ckpt``; with ``alone`` without waiting for other ranks, which may be gone."""
        step = trainer.global_step
        if step == self._saved or not self.dirpath:
            return
        # Never over a good state with a broken one: after a loss of nan the last finite checkpoint stays.
        if not all(bool(torch.isfinite(p).all()) for p in trainer.lightning_module.parameters()):
            return
        last = Path(self.dirpath) / LAST
        if alone:
            trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(False), last)
        else:
            trainer.save_checkpoint(last)
        self._saved = self._kept = step

    def _number(self, trainer: Trainer) -> None:
        kept = self.keep_all and self.dirpath and self._saved == trainer.global_step
        if kept and trainer.is_global_zero and not trainer.fast_dev_run:
            numbered = Path(self.dirpath) / f"step={self._saved:08d}.ckpt"
            if not numbered.is_file():
                add_name(numbered.with_name(LAST), numbered)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note how long the metrics record is, so that a resumed run neither repeats nor loses a line."""
        records = self._records(trainer)
        if records and trainer.is_global_zero:
            checkpoint["metrics_bytes"] = records[0].sync()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note where the metrics record stood."""
        self._metrics = (checkpoint.get("metrics_bytes"), int(checkpoint["global_step"]))

    @staticmethod
    def _records(trainer: Trainer) -> list[MetricsRecord]:
        return [r for logger in trainer.loggers if isinstance(r := getattr(logger, "record", None), MetricsRecord)]
