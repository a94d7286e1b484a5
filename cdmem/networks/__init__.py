"""Networks: configs that build them, and their records in checkpoints."""

from __future__ import annotations

from typing import Any

from cdmem.errors import InputError
from cdmem.io import own_code
from cdmem.networks.config import NetworkConfig
from cdmem.networks.diffusers import DiffusersUNet
from cdmem.networks.mlp import MLP
from cdmem.networks.unet import UNet

__all__ = ["MLP", "DiffusersUNet", "NetworkConfig", "UNet", "from_record"]


def from_record(record: dict[str, Any]) -> NetworkConfig:
    """Rebuild a config stored in a checkpoint: a class of this module, or one of the user's own.

    Raises:
        InputError: a class that a file must not choose (:mod:`cdmem.io.own_code`), or no network.
    """
    path = str(record.get("class_path"))
    known = {f"{__name__}.{kind.__name__}": kind for kind in (UNet, MLP, DiffusersUNet)}
    kind = known.get(path)
    if kind is None:
        if path.startswith("cdmem.") or "." not in path:
            raise InputError("checkpoint.network", path, "not a network of cdmem", f"known: {sorted(known)}")
        kind = own_code.recalled(path, "checkpoint.network")
        if not (isinstance(kind, type) and issubclass(kind, NetworkConfig)):
            raise InputError("checkpoint.network", path, "is no NetworkConfig", "use another file")
        try:
            return kind(**record["init_args"])
        except Exception as error:  # whatever the class raises
            problem = f"does not take the settings of the file ({own_code.reason(error)})"
            hint = "use the class as it was when the model was trained"
            raise InputError("checkpoint.network", path, problem, hint) from None
    return kind(**record["init_args"])
