"""Can Lightning restore what a checkpoint holds besides weights? Asked before a run has a folder."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import torch
from lightning.pytorch import Trainer

from cdmem.errors import InputError
from cdmem.training.module import CdmemModule

VERSION = re.compile(r"\d+(\.\d+){1,3}([a-z.]+\d+)?(\+[a-z0-9.]+)?")
# What restoring odd values can raise.
ODD = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


def check_restorable(
    trainer: Trainer, module: CdmemModule, checkpoint: dict[str, Any], path: str, command: str
) -> None:
    """Restore callbacks and loops, and for ``fit`` optimizer and schedule, on trial.

    Args:
        trainer: not running yet.
        module: with its network built.
        checkpoint: as read.
        path: of the file, for the message.
        command: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        InputError: a part is missing or of another form than this trainer's own.
    """
    part = "pytorch-lightning_version"
    try:
        if not VERSION.fullmatch(checkpoint[part]):  # Lightning reads it to bring older checkpoints up to date
            raise ValueError("is no version")
        part = "callbacks"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever there is to tell is told when it is restored in earnest
            states = checkpoint.get("callbacks", {})
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if callback.state_key in states:
                    callback.load_state_dict(copy.deepcopy(states[callback.state_key]))
        if command == "fit":
            part = "optimizer_states"
            optimizer = module.optimizer_factory(module.raw.network.parameters())
            _check_optimizer(optimizer, checkpoint[part])
            part = "lr_schedulers"
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            _same_form(checkpoint[part], [schedule.state_dict()])
        part, loop = "loops", f"{command}_loop"
        if command == "fit" or checkpoint.get(part) is not None:
            _same_form(checkpoint[part][loop], getattr(trainer, loop).state_dict())
    except ODD as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise InputError("ckpt_path", path, f"its {part} make no sense ({reason})", "use another checkpoint") from None


def _check_optimizer(optimizer: torch.optim.Optimizer, states: Any) -> None:
    if not isinstance(states, list) or len(states) != 1:
        raise TypeError("not one state")
    optimizer.load_state_dict(states[0])
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} has shape {list(value.shape)}, its weights {list(parameter.shape)}")


def _same_form(given: Any, own: Any) -> None:
    """Raises TypeError, KeyError or ValueError where a restored value has another form than our own."""
    if isinstance(own, dict):
        for key, value in own.items():
            _same_form(given[key], value)
    elif isinstance(own, list):
        if not isinstance(given, list) or len(given) != len(own):
            raise TypeError(f"{str(given)[:40]} is no list of {len(own)}")
        for a, b in zip(given, own):
            _same_form(a, b)
    elif isinstance(own, bool) or own is None:
        if type(given) is not type(own):
            raise TypeError(f"{str(given)[:40]} instead of {own}")
    elif isinstance(own, int | float):
        number = isinstance(given, int if isinstance(own, int) else int | float)
        if not (number and given >= 0):
            raise ValueError(f"{str(given)[:40]} is no count or rate")
