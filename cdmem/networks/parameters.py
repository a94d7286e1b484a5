"""Parameters of a network, listed once: walking its modules costs more than the arithmetic of a small average."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn

_LISTS: WeakKeyDictionary[nn.Module, list[nn.Parameter]] = WeakKeyDictionary()


def parameters(network: nn.Module) -> list[nn.Parameter]:
    """Of a network whose modules stay as they are from the first call on; its values and device may change."""
    if network not in _LISTS:
        _LISTS[network] = list(network.parameters())
    return _LISTS[network]


@torch.no_grad()
def move_towards(average: nn.Module, network: nn.Module, weight: float) -> None:
    """average <- average + weight (network - average), of the parameters."""
    torch._foreach_lerp_(parameters(average), parameters(network), weight)
