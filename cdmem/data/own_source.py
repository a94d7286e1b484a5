"""A data source outside the package: a function that a config names as ``module.function``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cdmem.data.pixels import ImagePool, PixelOptions
from cdmem.errors import InputError
from cdmem.io import own_code

KEY, HINT = "data.source", "see CONTRIBUTING.md, a data source"
Reader = Callable[[Path | None, PixelOptions, bool], ImagePool]


def own_reader(name: str) -> Reader:
    """The reader of a dotted name in the user's own words: its module is imported, as Python finds modules.

    Raises:
        InputError: no such function, later what is no pool of images.
    """
    try:
        read = own_code.named(name)
        inspect.signature(read).bind(None, PixelOptions(), False)
    except Exception as error:  # whatever the user's module raises
        raise InputError(KEY, name, f"is no reader of images ({own_code.reason(error)})", HINT) from None
    return _checked(name, read)


def recorded_reader(name: str) -> Reader:
    """The reader of a dotted name in a record.

    Raises:
        InputError: nobody named it in this command, and no file may name code; as :func:`own_reader`.
    """
    own_code.recalled(name, KEY)
    return own_reader(name)


def _checked(name: str, read: Callable[..., Any]) -> Reader:
    def checked(path: Path | None, options: PixelOptions, download: bool) -> ImagePool:
        try:
            pool = read(path, options, download)
        except InputError:
            raise
        except Exception as error:  # whatever the user's function raises
            raise InputError(KEY, name, f"cannot be read ({own_code.reason(error)})", HINT) from None
        if not isinstance(pool, ImagePool):
            raise InputError(KEY, name, f"gives a {type(pool).__name__}, no ImagePool", HINT)
        wrong = _wrong(pool)
        if wrong is not None:
            raise InputError(KEY, name, f"gives an ImagePool whose {wrong}", HINT)
        provenance = json.loads(json.dumps(pool.provenance))
        # What a record names is found again.
        return replace(pool, source=name, class_names=tuple(pool.class_names), provenance=provenance)

    return checked


def _wrong(pool: ImagePool) -> str | None:
    """What no training set can be made of, recorded and read back."""
    images = pool.images
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        return "images are not uint8 (N, C, H, W)"
    if images.shape[1] not in (1, 3) or 0 in images.shape:
        return f"images have shape {list(images.shape)}, not (N, 1 or 3, H, W)"
    for name in ("labels", "indices"):
        numbers = getattr(pool, name)
        if not isinstance(numbers, torch.Tensor) or numbers.dtype != torch.int64 or numbers.shape != images.shape[:1]:
            return f"{name} are not int64 (N,)"
    names = pool.class_names
    if not isinstance(names, tuple | list) or not all(isinstance(n, str) for n in names):
        return "class_names are no tuple of texts"
    if names and not 0 <= int(pool.labels.min()) <= int(pool.labels.max()) < len(names):
        return f"labels are not 0 to {len(names) - 1}"
    if len(pool.indices.unique()) < len(pool.indices) or int(pool.indices.min()) < 0:
        return "indices are not one number from 0 on for each image"
    try:
        json.dumps(pool.provenance, allow_nan=False)
    except (TypeError, ValueError):
        return "provenance holds more than JSON types"
    return None if isinstance(pool.provenance, dict) else "provenance is no mapping"
