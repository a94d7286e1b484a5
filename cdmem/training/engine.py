"""How a run is executed: precision, launch over devices and nodes, and the loss of a rank."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from cdmem.errors import InputError, RunFailure, brief

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
        problem = "only the network may run in low precision"
        raise InputError("trainer.precision", precision, problem, "use bf16-mixed or 32-true")
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


def check_launch(trainer: Trainer, batch_size: int) -> None:
    """Raises:
    InputError: parameters would be split between devices; SLURM (``srun``) started another number of processes than
        ``trainer.devices`` x ``trainer.num_nodes``; or they cannot share ``data.batch_size`` evenly.
    """
    strategy = trainer.strategy
    if type(strategy) not in (DDPStrategy, SingleDeviceStrategy):
        problem = "averages and target need the whole network on every device"
        raise InputError("trainer.strategy", type(strategy).__name__, problem, "use auto or ddp")
    cluster = getattr(strategy, "cluster_environment", None)
    if cluster is not None:
        try:
            cluster.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
        except ValueError as error:
            key = "num_nodes" if "num_nodes" in str(error) else "devices"
            value = trainer.num_nodes if key == "num_nodes" else trainer.num_devices
            hint = str(error).partition("HINT: Set ")[2].strip(". ").replace("`", "")
            raise InputError(f"trainer.{key}", value, "SLURM started another number", f"set {hint}") from None
    if batch_size % trainer.world_size:
        problem = f"{trainer.world_size} processes cannot share the global batch evenly"
        raise InputError("data.batch_size", batch_size, problem, f"use a multiple of {trainer.world_size}")


LOST = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed? ?out|nccl|gloo|connection refused|abort", re.IGNORECASE
)


@contextmanager
def watching_peers(trainer: Trainer) -> Iterator[None]:
    """Turn a failed exchange between processes into one line.

    gloo notices a dead peer at once, NCCL by its watchdog; both give up after the process group's timeout (30 minutes
    unless ``trainer.strategy.init_args.timeout`` says otherwise). Lightning's own launcher ends all processes within
    seconds of the death of one.

    Raises:
        RunFailure: another process ended or did not answer.
    """
    # The launcher's own words, when it ends everybody because one process died, are at level INFO.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    try:
        yield
    except RuntimeError as error:
        if trainer.world_size == 1 or not LOST.search(str(error)):
            raise
        reason = brief(error)
        raise RunFailure(
            f"rank {trainer.global_rank} lost another process of the run ({reason}): see that one's message; "
            "the same command goes on from the last checkpoint"
        ) from None
