"""What a network's settings are: a config builds the network and records itself in checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

MAX_SIDE = 4096  # px
MAX_ITEMS = 16  # of a list of widths; far above any real network


class NetworkConfig(ABC):
    """How to build a network once the image shape is known."""

    @abstractmethod
    def build(self, shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        """A network for images (C, H, W), weights a function of ``seed``; ``num_classes`` 0 is unconditional."""

    def record(self) -> dict[str, Any]:
        """Plain types that :func:`from_record` turns back into the config."""
        module = "cdmem.networks" if type(self).__module__.startswith("cdmem.networks.") else type(self).__module__
        return {"class_path": f"{module}.{type(self).__qualname__}", "init_args": asdict(self)}
