"""Why training ended, read from Lightning's Trainer; and a time limit that counts per job."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cdmem.errors import InputError, brief
from cdmem.run.ending import Ending


class TimeLimit(Timer):
    """``trainer.max_time``: ends a run at a complete step; the next job of the same run has its full time again."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Time spent by earlier jobs does not count."""


class TimeBudget(Timer):
    """``until.max_time``: time of all jobs of a run together; what is spent is kept in its checkpoints."""

    KEY = "until.max_time"

    @classmethod
    def of(cls, duration: str, key: str) -> TimeBudget:
        """From DD:HH:MM:SS.

        Raises:
            InputError: no duration.
        """
        try:
            return cls(duration)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise InputError(key, duration, brief(error), "e.g. 00:12:00:00") from None


def ending_of(trainer: Trainer, seconds: float) -> Ending:
    """How a fit that returned ended.

    A callback of one's own says why by an attribute ``stopped``; one that only sets ``trainer.should_stop`` is named
    by its class.
    """
    step = trainer.global_step
    if step >= trainer.max_steps:
        return Ending(step, "max_steps", seconds=seconds)
    for callback in trainer.callbacks:
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0 and isinstance(callback, TimeBudget):
            return Ending(step, "stopped", TimeBudget.KEY, "the budget of time is spent", seconds)
        if left is not None and left <= 0:
            by = "trainer.max_time" if isinstance(callback, TimeLimit) else type(callback).__name__
            return Ending(step, "out_of_time", by, seconds=seconds)
    for callback in trainer.callbacks:
        why = getattr(callback, "stopped", None)
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            why = callback.stopping_reason_message
        if why:
            return Ending(step, "stopped", type(callback).__name__, str(why), seconds)
    own = [type(c).__name__ for c in trainer.callbacks if not type(c).__module__.startswith(("lightning.", "cdmem."))]
    return Ending(step, "stopped", ", ".join(own) or None, "trainer.should_stop was set", seconds)
