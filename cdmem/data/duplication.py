"""How often every training image is repeated: groups of equal multiplicity, a power law, or a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cdmem.errors import InputError
from cdmem.io.arrays import UNREADABLE, read_arrays
from cdmem.io.paths import usable_path
from cdmem.seeds import duplication_seed

KEY = "data.duplication"
MAX_ROWS = 2**28  # the row map alone is 2 GB at this size
FORMS = (
    "use [{fraction: 0.1, copies: 10}, ...], {power_law: 1.0, max_copies: 100}, "
    "or a .json, .txt or .npy file of multiplicities"
)


def multiplicities(duplication: object, n: int, seed: int) -> Tensor:
    """Multiplicity of each of n images, int64 (n,), at least 1.

    Groups and ranks are dealt out along a permutation of the n images that depends on ``seed`` and n alone:
    the first ``fraction * n`` images of the permutation form the first group, and so on; rank r is entry r.
    Bounds between groups are rounded to whole images; images in no group have one copy. A file is taken as
    it is, entry k for image k of the training set.

    Args:
        duplication: None, a list of groups, a power law or a path (see the module).
        n: number of images.
        seed: of the permutation.

    Raises:
        InputError: with the key ``data.duplication``, for anything else.
    """
    if duplication is None:
        return torch.ones(n, dtype=torch.int64)
    if isinstance(duplication, str | Path):
        ranked = _from_file(usable_path(KEY, duplication), n)
        order = torch.arange(n)
    elif isinstance(duplication, Mapping | Sequence):
        ranked = _power_law(duplication, n) if isinstance(duplication, Mapping) else _groups(duplication, n)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(duplication_seed(seed)))
    else:
        raise InputError(KEY, duplication, "not a known form", FORMS)
    if sum(ranked) > MAX_ROWS:
        raise InputError(KEY, duplication, f"{sum(ranked)} rows are too many", f"use at most {MAX_ROWS}")
    result = torch.empty(n, dtype=torch.int64)
    result[order] = torch.tensor(ranked, dtype=torch.int64)
    return result


def _groups(groups: Sequence[object], n: int) -> list[int]:
    """Multiplicities along the permutation, length n."""
    ranked: list[int] = []
    total = 0.0
    for group in groups:
        if not isinstance(group, Mapping) or set(group) != {"fraction", "copies"}:
            raise InputError(KEY, group, "a group has exactly 'fraction' and 'copies'", FORMS)
        fraction = _number(group["fraction"], "fraction", group)
        copies = _copies(group["copies"], group)
        total += fraction
        if fraction <= 0 or total > 1 + 1e-9:
            raise InputError(KEY, group, "fractions are positive and sum to at most 1", "lower them")
        size = min(n, math.floor(total * n + 0.5)) - len(ranked)
        if size < 1:
            raise InputError(KEY, group, f"this fraction of {n} images is less than one image", "raise it")
        ranked += [copies] * size
    return ranked + [1] * (n - len(ranked))


def _power_law(law: Mapping[object, object], n: int) -> list[int]:
    """max(1, round(K (r + 1)^-exponent)) for rank r = 0..n-1."""
    if set(law) != {"power_law", "max_copies"}:
        raise InputError(KEY, dict(law), "a power law has exactly 'power_law' and 'max_copies'", FORMS)
    exponent = _number(law["power_law"], "power_law", law)
    most = _copies(law["max_copies"], law, "max_copies")
    if exponent < 0:
        raise InputError(KEY, dict(law), "the exponent is negative", "use 0 or more")
    return [max(1, round(most * (rank + 1) ** -exponent)) for rank in range(n)]


def _from_file(path: Path, n: int) -> list[int]:
    if path.suffix not in (".json", ".txt", ".npy"):
        raise InputError(KEY, path, "not a .json, .txt or .npy file", FORMS)
    try:
        if path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".txt":
            values = [int(word) for word in path.read_text(encoding="utf-8").split()]
        else:
            values = read_arrays(path)["arr_0"].tolist()
    except UNREADABLE as error:
        problem = f"not readable as multiplicities ({type(error).__name__})"
        raise InputError(KEY, path, problem, f"write {n} positive integers") from error
    if not isinstance(values, list) or len(values) != n or not all(_is_whole(v) and v >= 1 for v in values):
        count = len(values) if isinstance(values, list) else "no list of"
        raise InputError(KEY, path, f"{count} entries", f"write {n} positive integers, one for each image")
    return values


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object, name: str, where: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(KEY, where, f"'{name}' is not a finite number", FORMS)
    return float(value)


def _copies(value: object, where: object, name: str = "copies") -> int:
    if not _is_whole(value) or not 1 <= int(value) <= MAX_ROWS:  # type: ignore[call-overload]
        raise InputError(KEY, where, f"'{name}' is not a positive whole number", "use 1 or more")
    return int(value)  # type: ignore[call-overload]
