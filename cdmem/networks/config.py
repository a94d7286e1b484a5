"""What a network's settings are: a config builds the network and records itself in checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from torch import nn

MAX_SIDE = 4096  # px
MAX_ITEMS = 16  # of a list of widths; far above any real network


class NetworkConfig(ABC):
    """How to build a network once the image shape is known.

    A subclass of the user's own is a dataclass of plain fields (numbers, texts, lists, mappings), or overrides
    :meth:`record`; it lies at the top level of its module.
    """

    @abstractmethod
    def build(self, shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        """A module F(x, c_noise, labels) for images (C, H, W).

        Args:
            shape: (C, H, W).
            num_classes: rows of labels, one more than there are classes with label dropout; 0 is unconditional.
            seed: the weights are a function of it.

        Returns:
            a module: x (B, C, H, W) of unit variance, c_noise float (B,), labels int64 (B,) or None -> the shape of x.
        """

    def record(self) -> dict[str, Any]:
        """``class_path`` and ``init_args``, plain types that :func:`from_record` turns back into the config."""
        module = "cdmem.networks" if type(self).__module__.startswith("cdmem.networks.") else type(self).__module__
        values = asdict(self)  # type: ignore[call-overload]
        arguments = {f.name: values[f.name] for f in fields(self) if f.init}  # type: ignore[arg-type]
        return {"class_path": f"{module}.{type(self).__qualname__}", "init_args": arguments}
