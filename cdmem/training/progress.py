"""A progress bar that counts optimizer steps to ``max_steps``, so that it can tell the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer import Trainer

from cdmem.io.progress import ProgressLines

SHOWN = {"memorization/f_mem": "f_mem", "quality/fd_": "fd"}


class StepProgress(TQDMProgressBar):
    """The stream of images has no end, so Lightning's own bar would show none; this one ends at ``max_steps``.

    Beside the loss: ``f_mem`` and ``fd`` of the latest evaluation, and ``images/s`` by the clock, evaluations included.

    Args:
        refresh_rate: micro-batches between updates.
    """

    def __init__(self, refresh_rate: int = 20) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._mark: tuple[float, int] | None = None
        self._rate: float | None = None

    @property
    def total_train_batches(self) -> int | float:
        if self.trainer.max_steps > 0:
            return self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return super().total_train_batches

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float | dict]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        for start, short in SHOWN.items():
            key = next((k for k in trainer.callback_metrics if k.startswith(start) and not k.endswith("_train")), None)
            if key is not None:
                shown[short] = float(trainer.callback_metrics[key])
        rate = self._images_per_second(getattr(pl_module, "images_seen", lambda: 0)())
        if rate is not None:
            shown["images/s"] = f"{rate:.0f}"
        return shown

    def _images_per_second(self, seen: int) -> float | None:
        """Training images per second over the last second or more; None before there is one."""
        now = time.monotonic()
        if self._mark is None:
            self._mark = (now, seen)
        elif now - self._mark[0] >= 1:
            self._rate = (seen - self._mark[1]) / (now - self._mark[0])
            self._mark = (now, seen)
        return self._rate

    @property
    def _terminal(self) -> bool:
        return sys.stdout.isatty()

    def _bar(self, bar: Callable[[], Tqdm], name: str) -> Tqdm | ProgressLines:
        return bar() if self._terminal else ProgressLines(desc=name, disable=self.is_disabled, file=sys.stdout)

    def init_train_tqdm(self) -> Tqdm | ProgressLines:
        total, name = self.total_train_batches, getattr(self.trainer.lightning_module, "role", "train")
        before = self.trainer.global_step * self.trainer.accumulate_grad_batches
        if not self._terminal:
            return ProgressLines(total, name, before, self.is_disabled, sys.stdout)
        bar = super().init_train_tqdm()
        bar.total, bar.initial, bar.n = total, before, before
        bar.set_description(name)
        return bar

    def init_validation_tqdm(self) -> Tqdm | ProgressLines:
        return super().init_validation_tqdm() if self._terminal else ProgressLines(disable=True)

    def init_test_tqdm(self) -> Tqdm | ProgressLines:
        return self._bar(super().init_test_tqdm, "test")

    def init_predict_tqdm(self) -> Tqdm | ProgressLines:
        return self._bar(super().init_predict_tqdm, "predict")

    def on_train_epoch_start(self, trainer: Trainer, *args: object) -> None:
        """Lightning would begin at 0 here, also where a run goes on."""
        self.train_progress_bar.refresh()
