"""Do the processes that were started fit the settings? Asked before a run has a folder."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from cdmem.errors import InputError


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
