"""``DiffusersUNet``: any UNet2DModel, its config and its weights as diffusers stores them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdmem.errors import InputError, brief
from cdmem.io.text import read_json
from cdmem.networks.config import MAX_ITEMS, MAX_SIDE, NetworkConfig
from cdmem.networks.unet import UNetNetwork

MAX_WIDTH, MAX_LAYERS, MAX_NAME = 2**16, 64, 64  # far above any real network
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
VARIANTS = ("fp16", "bf16")  # weights that were saved with ``variant=``, in half the bits


@dataclass
class DiffusersUNet(NetworkConfig):
    """Any diffusers ``UNet2DModel``, by the contents of its ``config.json``; how networks from elsewhere are recorded.

    Args:
        config: arguments of ``UNet2DModel`` as plain types. The image shape and ``num_class_embeds`` are part of it, so
            it fits data of that shape only. Names that ``UNet2DModel`` does not know are dropped.
    """

    config: dict[str, Any]

    def __post_init__(self) -> None:
        self.config = _plain_config(self.config)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W).

        Raises:
            InputError: ``sample_size`` is no size of an image.
        """
        size = self.config.get("sample_size")
        sides = size if isinstance(size, list) else [size, size]
        if len(sides) != 2 or not all(type(s) is int and 0 < s <= MAX_SIDE for s in sides):
            raise InputError("unet.sample_size", size, "is no size of an image", "set it in unet/config.json")
        return int(self.config.get("in_channels", 3)), sides[0], sides[1]

    @property
    def num_classes(self) -> int:
        return int(self.config.get("num_class_embeds") or 0)

    def make(self, device: str = "cpu") -> nn.Module:
        """The bare ``UNet2DModel`` with random weights; on ``meta`` it takes no memory.

        Raises:
            InputError: diffusers cannot build it.
        """
        from diffusers import UNet2DModel

        try:
            with torch.device(device):
                return UNet2DModel(**self.config)
        except Exception as error:
            reason = brief(error)
            raise InputError("unet.config", "...", f"is no network ({reason})", "save the network again") from None

    def build(self, shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        if tuple(shape) != self.shape or num_classes != self.num_classes:
            own = f"{'x'.join(map(str, self.shape))}, {self.num_classes} classes"
            problem = f"does not fit {'x'.join(map(str, shape))}, {num_classes} classes"
            hint = "change in_channels, sample_size or num_class_embeds, or the data"
            raise InputError("model.network.config", own, problem, hint)
        return UNetNetwork.untrained(self.make, seed)


def _plain_config(config: Any) -> dict[str, Any]:
    """The arguments of ``UNet2DModel`` in a config, checked to be plain, small values."""
    from diffusers import UNet2DModel

    if not isinstance(config, dict):
        raise InputError("unet.config", str(config)[:80], "is not a mapping", "give the contents of config.json")
    if config.get("quantization_config") is not None:  # would make diffusers import other packages
        raise InputError("unet.quantization_config", "...", "quantised networks are not read", "save it unquantised")

    def plain(name: str, value: Any, nested: bool = True) -> Any:
        if isinstance(value, list | tuple) and nested and len(value) <= MAX_ITEMS:
            return [plain(name, inner, False) for inner in value]
        limit = MAX_LAYERS if name == "layers_per_block" else MAX_WIDTH
        number = isinstance(value, int | float) and abs(value) <= limit
        if value is None or number or (isinstance(value, str) and len(value) <= MAX_NAME):
            return value
        problem = "is no plain value of a usual size"
        raise InputError(f"unet.{name}", str(value)[:80], problem, "correct unet/config.json")

    known = [name for name in inspect.signature(UNet2DModel.__init__).parameters if name != "self"]
    return {name: plain(name, config[name]) for name in known if name in config}


def read_config(folder: Path, key: str) -> DiffusersUNet:
    """The record of a ``UNet2DModel`` folder.

    Raises:
        InputError: unreadable, or no network for images.
    """
    values = read_json(folder / "config.json", key)
    try:
        config = DiffusersUNet(values)
        config.shape  # noqa: B018  (refuses an impossible size)
        config.make("meta")
    except InputError as error:
        raise InputError(f"{key}.{error.key}", error.value, error.problem, error.hint) from None
    return config


def weights_file(folder: Path) -> tuple[Path, str | None]:
    """The weights of a folder, and their variant where there are only such ones."""
    plain = folder / WEIGHTS_FILE
    stem, _, suffix = WEIGHTS_FILE.partition(".")
    variants = {name: folder / f"{stem}.{name}.{suffix}" for name in VARIANTS}
    found = next((name for name, file in variants.items() if file.is_file()), None)
    return (plain, None) if plain.is_file() or found is None else (variants[found], found)


def save_diffusers(network: nn.Module, folder: str) -> None:
    """Write the ``UNet2DModel`` as a diffusers folder (config.json + safetensors in one file)."""
    if not isinstance(network, UNetNetwork):
        raise InputError("model.network", type(network).__name__, "is not a UNet2DModel", "export a UNet")
    network.unet.save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")


def load_diffusers(folder: str | Path, key: str = "model.network") -> UNetNetwork:
    """Read what :func:`save_diffusers` wrote (or any ``UNet2DModel`` folder); safetensors only, no network access.

    Raises:
        InputError: no such weights, a config that does not describe them, or anything but plain values in it.
    """
    from diffusers import UNet2DModel

    folder = Path(folder)
    config = read_config(folder, key)
    weights, variant = weights_file(folder)
    if not weights.is_file():
        raise InputError(key, weights, "no such file", "save it with safe_serialization=True; pickles are not read")
    # diffusers would follow the index to other files, and a digest of this one would be of weights that are not used.
    if any(folder.glob("*.safetensors.index*.json")):
        raise InputError(key, folder, "holds an index of several weight files", "save the network in one file")
    # A parameter takes a byte or more: what the file cannot hold is not allocated.
    size, count = weights.stat().st_size, sum(p.numel() for p in config.make("meta").parameters())
    if count > size:
        problem = f"config.json describes {count:,} parameters, the weights have {size:,} bytes"
        raise InputError(key, folder, problem, "save the pipeline again")
    local = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False, "variant": variant}
    try:
        unet, report = UNet2DModel.from_pretrained(str(folder), output_loading_info=True, **local)
        kinds = ("missing_keys", "mismatched_keys", "unexpected_keys")
        lost = [name for kind in kinds for name in report.get(kind, ())]
        if lost:  # diffusers would draw what is missing at random
            raise ValueError(f"weights and config.json differ in {len(lost)} tensors, such as {lost[0]}")
        if not all(bool(p.isfinite().all()) for p in unet.parameters()):
            raise ValueError("some weights are not finite")
    except Exception as error:
        reason = brief(error)
        raise InputError(key, folder, f"cannot be loaded ({reason})", "save the pipeline again") from None
    return UNetNetwork(unet.float().eval())
