r"""Networks F(x, c_noise, labels): diffusers' ``UNet2DModel`` from a short config, and an MLP for tiny images.

A config object knows everything but the image shape, which comes from the data: ``UNet(channels=[16, 32]).build(...)``.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdmem.errors import InputError
from cdmem.texts import parse_json, read_text

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
MAX_SIDE = 4096  # px
MAX_WIDTH, MAX_ITEMS, MAX_LAYERS, MAX_NAME = 2**16, 16, 64, 64  # far above any real network


class NetworkConfig(ABC):
    """How to build a network once the image shape is known."""

    @abstractmethod
    def build(self, shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        """A network for images (C, H, W), weights a function of ``seed``; ``num_classes`` 0 is unconditional."""

    def record(self) -> dict[str, Any]:
        """Plain types that :func:`from_record` turns back into the config."""
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": asdict(self)}


def label_rows(about: Mapping[str, Any]) -> int:
    """Classes that a network of this record embeds: ``num_classes``, and one more that means "no class" where the
    record says ``null_label`` (for classifier-free guidance)."""
    return int(about["num_classes"]) + bool(about.get("null_label"))


def from_record(record: dict[str, Any]) -> NetworkConfig:
    """Rebuild a config stored in a checkpoint. Only classes of this module: a file must not choose code."""
    module, _, name = str(record.get("class_path")).rpartition(".")
    known = {"UNet": UNet, "MLP": MLP, "DiffusersUNet": DiffusersUNet}
    if module != __name__ or name not in known:
        raise InputError(
            "checkpoint.network", record.get("class_path"), "not a network of cdmem", f"known: {sorted(known)}"
        )
    return known[name](**record["init_args"])


class UNetNetwork(nn.Module):
    """``UNet2DModel`` behind the signature F(x, c_noise, labels)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        # c_noise must be a float tensor: a Python number would be truncated to an integer time step.
        return self.unet(x, c_noise, class_labels=labels).sample


@dataclass
class UNet(NetworkConfig):
    """diffusers ``UNet2DModel``.

    Args:
        channels: width of each level; the image side must be divisible by 2^(levels - 1).
        layers: residual blocks per level.
        attention: sides (in pixels) at which self-attention is added, for example [16].
        dropout: probability in the residual blocks; 0 because dropout works against memorisation.
        norm_groups: groups of GroupNorm; must divide every width.
    """

    channels: list[int] = field(default_factory=lambda: [128, 256, 256])
    layers: int = 2
    attention: list[int] = field(default_factory=list)
    dropout: float = 0.0
    norm_groups: int = 8

    def _check(self, shape: Sequence[int]) -> None:
        if not self.channels or min(self.channels) < 1:
            raise InputError("model.network.channels", self.channels, "is no list of widths", "e.g. [32, 64]")
        for key in ("layers", "norm_groups"):
            if getattr(self, key) < 1:
                raise InputError(f"model.network.{key}", getattr(self, key), "is below 1", "e.g. 2")
        if len(self.channels) > MAX_ITEMS:
            count = f"{len(self.channels)} levels"
            raise InputError("model.network.channels", count, f"are more than {MAX_ITEMS}", "use fewer widths")
        factor = 2 ** (len(self.channels) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise InputError(
                "data.resolution",
                f"{shape[1]}x{shape[2]}",
                f"sides must be divisible by {factor} for {len(self.channels)} network levels",
                f"set data.resolution to a multiple of {factor} or use fewer model.network.channels",
            )
        for width in self.channels:
            if width % self.norm_groups:
                raise InputError(
                    "model.network.norm_groups",
                    self.norm_groups,
                    f"does not divide the width {width}",
                    "choose a common divisor of model.network.channels",
                )

    def build(self, shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        from diffusers import UNet2DModel

        self._check(shape)
        sides = [shape[1] // 2**level for level in range(len(self.channels))]
        attends = [side in self.attention for side in sides]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DModel(
                sample_size=shape[1] if shape[1] == shape[2] else tuple(shape[1:]),
                in_channels=shape[0],
                out_channels=shape[0],
                time_embedding_type="positional",
                freq_shift=1,
                block_out_channels=tuple(self.channels),
                layers_per_block=self.layers,
                down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
                up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
                mid_block_type="UNetMidBlock2D",
                add_attention=any(attends),
                # diffusers makes width // head_dim heads: a level narrower than one head would have none.
                attention_head_dim=min(64, self.channels[-1], *(w for w, a in zip(self.channels, attends) if a)),
                norm_num_groups=self.norm_groups,
                dropout=self.dropout,
                num_class_embeds=num_classes or None,
            )
        # An untrained D starts at c_skip x, as in EDM; diffusers leaves conv_out random.
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
        return UNetNetwork(unet)


class MLPNetwork(nn.Module):
    """Residual MLP on the flattened image with a sinusoidal embedding of c_noise."""

    def __init__(self, shape: Sequence[int], width: int, depth: int, dropout: float, num_classes: int) -> None:
        super().__init__()
        size = math.prod(shape)
        self.inputs = nn.Linear(size, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(num_classes, width) if num_classes else None
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Linear(2 * width, width),
            )
            for _ in range(depth)
        )
        self.outputs = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))
        nn.init.zeros_(self.outputs[1].weight)
        nn.init.zeros_(self.outputs[1].bias)
        half = width // 2
        self.register_buffer(
            "frequencies", torch.exp(-math.log(10_000.0) * torch.arange(half) / half), persistent=False
        )

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        angles = c_noise[:, None].float() * self.frequencies
        condition = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        if self.classes is not None:
            condition = condition + self.classes(labels)
        h = self.inputs(x.flatten(1))
        for block in self.blocks:
            h = h + block(h + condition)
        return self.outputs(h).reshape(x.shape)


@dataclass
class MLP(NetworkConfig):
    """Residual multilayer perceptron for small images and vectors.

    Args:
        width: hidden size, even.
        depth: residual blocks.
        dropout: probability inside the blocks.
    """

    width: int = 160
    depth: int = 4
    dropout: float = 0.0

    def build(self, shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        if self.width % 2:
            raise InputError("model.network.width", self.width, "must be even", "add one")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MLPNetwork(shape, self.width, self.depth, self.dropout, num_classes)


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
            reason = " ".join(str(error).split())[:160]
            raise InputError("unet.config", "...", f"is no network ({reason})", "save the network again") from None

    def build(self, shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        if tuple(shape) != self.shape or num_classes != self.num_classes:
            raise InputError(
                "model.network.config",
                f"{'x'.join(map(str, self.shape))}, {self.num_classes} classes",
                f"does not fit {'x'.join(map(str, shape))}, {num_classes} classes",
                "change in_channels, sample_size or num_class_embeds, or the data",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = self.make()
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
        return UNetNetwork(unet)


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
        raise InputError(f"unet.{name}", str(value)[:80], "is no plain value of a usual size", "mend unet/config.json")

    known = [name for name in inspect.signature(UNet2DModel.__init__).parameters if name != "self"]
    return {name: plain(name, config[name]) for name in known if name in config}


def read_json(file: Path, key: str) -> dict[str, Any]:
    """A mapping from a small JSON file.

    Raises:
        InputError: missing, too large, torn, or no mapping.
    """
    try:
        return dict(parse_json(read_text(file)))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(key, file, f"unreadable ({error})", "give a diffusers folder") from None


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
        raise InputError(f"{key}.{error.key}", error.value, error.problem, error.mend) from None
    return config


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
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        mend = "save the pipeline with safe_serialization=True; pickles are not read"
        raise InputError(key, weights, "no such file", mend)
    # diffusers would follow the index to other files, and a digest of this one would be of weights that are not used.
    if (folder / f"{WEIGHTS_FILE}.index.json").exists():
        raise InputError(key, folder, "holds an index of several weight files", "save the network in one file")
    # A parameter takes a byte or more: what the file cannot hold is not allocated.
    size, count = weights.stat().st_size, sum(p.numel() for p in config.make("meta").parameters())
    if count > size:
        problem = f"config.json describes {count:,} parameters, the weights have {size:,} bytes"
        raise InputError(key, folder, problem, "save the pipeline again")
    local = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False}
    try:
        unet, report = UNet2DModel.from_pretrained(str(folder), output_loading_info=True, **local)
        kinds = ("missing_keys", "mismatched_keys", "unexpected_keys")
        lost = [name for kind in kinds for name in report.get(kind, ())]
        if lost:  # diffusers would draw what is missing at random
            raise ValueError(f"weights and config.json differ in {len(lost)} tensors, such as {lost[0]}")
        if not all(bool(p.isfinite().all()) for p in unet.parameters()):
            raise ValueError("some weights are not finite")
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(key, folder, f"cannot be loaded ({reason})", "save the pipeline again") from None
    return UNetNetwork(unet.eval())
