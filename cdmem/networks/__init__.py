"""Networks: configs that build them, and their records in checkpoints."""

from __future__ import annotations

from typing import Any

from cdmem.errors import InputError
from cdmem.networks.config import NetworkConfig, label_rows
from cdmem.networks.diffusers import DiffusersUNet
from cdmem.networks.mlp import MLP
from cdmem.networks.unet import UNet

__all__ = ["MLP", "DiffusersUNet", "NetworkConfig", "UNet", "from_record", "label_rows"]


def from_record(record: dict[str, Any]) -> NetworkConfig:
    """Rebuild a config stored in a checkpoint. Only classes of this module: a file must not choose code."""
    module, _, name = str(record.get("class_path")).rpartition(".")
    known = {"UNet": UNet, "MLP": MLP, "DiffusersUNet": DiffusersUNet}
    if module != __name__ or name not in known:
        raise InputError(
            "checkpoint.network", record.get("class_path"), "not a network of cdmem", f"known: {sorted(known)}"
        )
    return known[name](**record["init_args"])
