"""A network of the user's own at the door: what it would fail at after training is tried before."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cdmem.errors import InputError
from cdmem.io import own_code
from cdmem.networks import from_record
from cdmem.networks.config import NetworkConfig

KEY = "model.network"
RECORD_HINT = "make it a @dataclass whose fields are all of its settings, or override record()"


def admit(config: NetworkConfig) -> None:
    """Take a network that the user's own words name for one that files of this command may name.

    Raises:
        InputError: it has no record of plain types, or is not found by the name in it.
    """
    name = own_code.class_path(config)
    try:
        record = config.record()
        path, settings = record["class_path"], record["init_args"]
    except Exception as error:  # whatever the user's class raises
        problem = f"has no record that a checkpoint could hold ({own_code.reason(error)})"
        raise InputError(KEY, name, problem, RECORD_HINT) from None
    wrong = odd_value(settings, "init_args") if isinstance(settings, dict) else "init_args"
    if wrong is not None:
        problem = f"its record holds more than numbers, texts, lists and mappings ({wrong})"
        raise InputError(KEY, name, problem, "use plain fields, or override record()")
    try:
        found = own_code.named(path)
        if not (isinstance(found, type) and issubclass(found, NetworkConfig)):
            raise TypeError("it is no NetworkConfig")
    except Exception as error:
        problem = f"is not found as {path}, which its record names ({own_code.reason(error)})"
        raise InputError(KEY, name, problem, "define it at the top level of a module") from None


def odd_value(value: Any, name: str) -> str | None:
    """The first part of a value that a checkpoint does not hold, as text; None where all is plain."""
    if isinstance(value, dict):
        keys = [f"the key {key!r} of {name}" for key in value if type(key) is not str]
        parts = [odd_value(inner, f"{name}.{key}") for key, inner in value.items()]
        return next((part for part in (*keys, *parts) if part), None)
    if type(value) in (list, tuple):
        parts = [odd_value(inner, f"{name}.{k}") for k, inner in enumerate(value)]
        return next((part for part in parts if part), None)
    plain = value is None or type(value) in (bool, int, float, str)
    return None if plain else f"{name.removeprefix('init_args.')} is a {type(value).__name__}"


def try_network(
    config: NetworkConfig, network: nn.Module, shape: Sequence[int], num_classes: int, seed: int, c_noise: Tensor
) -> None:
    """Build a network a second time, from its record, and compare the two.

    Args:
        config: settings, see :func:`admit`.
        network: as it was built.
        shape, num_classes, seed: what it was built with.
        c_noise: at both ends of the noise range, (2,).

    Raises:
        InputError: naming the class and what is wrong with it.
    """
    name = own_code.class_path(config)
    first = _state(network, name)
    if not any(p.requires_grad for p in network.parameters()):
        raise InputError(KEY, name, "has no weights to train", "build a module with parameters")
    try:
        average = copy.deepcopy(network)
    except Exception as error:
        problem = f"cannot be copied, as averages are ({own_code.reason(error)})"
        raise InputError(KEY, name, problem, "keep no open files, locks or generators in it") from None
    again = _rebuilt(config, shape, num_classes, seed, name)
    second = _state(again, name)
    other = sorted(k for k in {*first, *second} if k not in first or k not in second or _differ(first[k], second[k]))
    if other:
        raise InputError(KEY, name, f"its record builds another network ({other[0]} differs)", RECORD_HINT)
    drawn = next((k for k in first if not torch.equal(first[k].nan_to_num(), second[k].nan_to_num())), None)
    if drawn is not None:
        problem = f"has other weights when it is built again from its record and seed ({drawn} differs)"
        hint = "draw weights under torch.manual_seed(seed), and keep all settings in its record"
        raise InputError(KEY, name, problem, hint)
    outputs = [_call(module.eval(), shape, num_classes, c_noise, name) for module in (average, again)]
    if not torch.equal(*outputs):
        raise InputError(KEY, name, "its record builds another network (its output differs)", RECORD_HINT)


def _state(network: nn.Module, name: str) -> dict[str, Tensor]:
    if not isinstance(network, nn.Module):
        raise InputError(KEY, name, f"build gives a {type(network).__name__}", "return a torch.nn.Module")
    state = network.state_dict()
    odd = next((k for k, v in state.items() if not isinstance(v, Tensor) or is_lazy(v) or v.is_sparse), None)
    if odd is None:
        size = {k: v.numel() * v.element_size() for k, v in state.items()}
        odd = next((k for k, v in state.items() if size[k] > v.untyped_storage().nbytes()), None)
    if odd is not None:
        hint = "keep plain tensors of known size in its state; .clone() what was expanded"
        raise InputError(KEY, name, f"its state {odd} is no tensor that a checkpoint can hold", hint)
    return state


def _rebuilt(config: NetworkConfig, shape: Sequence[int], num_classes: int, seed: int, name: str) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)  # another state of the global generator than the first time
            return from_record(config.record()).build(shape, num_classes, seed)
    except Exception as error:
        problem = f"cannot be built again from its record ({own_code.reason(error)})"
        raise InputError(KEY, name, problem, RECORD_HINT) from None


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or a.dtype != b.dtype


@torch.no_grad()
def _call(network: nn.Module, shape: Sequence[int], num_classes: int, c_noise: Tensor, name: str) -> Tensor:
    """What a network returns at both ends of the noise range."""
    x = torch.randn(len(c_noise), *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, num_classes - 1]) if num_classes else None
    hint = "forward(x, c_noise, labels) returns finite numbers in the shape of x"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            out = network(x, c_noise, labels)
    except Exception as error:
        said = f"labels {'(B,)' if num_classes else 'None'}"
        problem = f"cannot be called with x (B, {', '.join(map(str, shape))}), c_noise (B,), {said}"
        raise InputError(KEY, name, f"{problem} ({own_code.reason(error)})", hint) from None
    if not isinstance(out, Tensor) or out.shape != x.shape:
        given = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(KEY, name, f"returns {given} for images {list(x.shape)}", hint)
    if not bool(out.isfinite().all()):
        ends = f"c_noise {float(c_noise.min()):.5g} to {float(c_noise.max()):.5g}"
        raise InputError(KEY, name, f"returns numbers that are not finite ({ends})", hint)
    return out
