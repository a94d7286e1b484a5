"""Networks: configs that build them, and their records in checkpoints."""

from __future__ import annotations

from typing import Any

from cdmem.errors import InputError
from cdmem.networks.config import NetworkConfig
from cdmem.networks.diffusers import DiffusersUNet
from cdmem.networks.mlp import MLP
from cdmem.networks.unet import UNet

__all__ = ["MLP", "DiffusersUNet", "NetworkConfig", "UNet", "from_record"]


def from_record(record: dict[str, Any]) -> NetworkConfig:
    """Rebuild a config stored in a checkpoint. Only classes of this module: a file must not choose code."""
    path = record.get("class_path")
    module, _, name = str(path).rpartition(".")
    known = {"UNet": UNet, "MLP": MLP, "DiffusersUNet": DiffusersUNet}
    if module != __name__ or name not in known:
        raise InputError("checkpoint.network", path, "not a network of cdmem", f"known: {sorted(known)}")
    return known[name](**record["init_args"])
