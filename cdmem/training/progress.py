"""A progress bar that counts optimizer steps to ``max_steps``, so that it can tell the time left."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer import Trainer


class StepProgress(TQDMProgressBar):
    """The stream of images has no end, so Lightning's own bar would show none; this one ends at ``max_steps``.

    Args:
        refresh_rate: micro-batches between updates.
    """

    def __init__(self, refresh_rate: int = 20) -> None:
        super().__init__(refresh_rate=refresh_rate)

    @property
    def total_train_batches(self) -> int | float:
        if self.trainer.max_steps > 0:
            return self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return super().total_train_batches

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float | dict]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.set_description(getattr(self.trainer.lightning_module, "role", "train"))
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *args: object) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(getattr(trainer.lightning_module, "role", "train"))
