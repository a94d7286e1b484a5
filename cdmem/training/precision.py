"""Which precisions a model may train in: F alone in low precision, everything else in float32."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

from cdmem.errors import InputError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
NAMES = {"None": "32-true", "32": "32-true"}


def check_precision(precision: str | int | None, accelerator: str = "auto") -> None:
    """What ``trainer.precision`` asks for, before a Trainer exists.

    Raises:
        InputError: weights or preconditioning would be in low precision; or float16 on a CPU, which Lightning would
            quietly turn into bfloat16.
    """
    wanted = NAMES.get(str(precision), str(precision))
    if wanted not in PRECISIONS:
        raise InputError(
            "trainer.precision", precision, "only the network may run in low precision", "use bf16-mixed or 32-true"
        )
    no_gpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if wanted == "16-mixed" and (accelerator == "cpu" or (accelerator in ("auto", "gpu") and no_gpu)):
        raise InputError("trainer.precision", precision, "float16 needs a GPU", "use bf16-mixed or 32-true")


def check_trainer(trainer: Trainer) -> None:
    """The same for a Trainer however it was made, for example with a precision plugin.

    Raises:
        InputError: see :func:`check_precision`.
    """
    if trainer.precision not in PRECISIONS:
        check_precision(trainer.precision, "any")


def loss_scale(trainer: Trainer) -> float | None:
    """Of the gradient scaler, which lowers it when, and only when, it leaves a step out; None without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else scaler.get_scale()
