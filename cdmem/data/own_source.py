"""A data source outside the package: a function that a config names as ``module.function``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import torch

from cdmem.data.pixels import ImagePool, PixelOptions
from cdmem.errors import InputError, brief

HINT = "see CONTRIBUTING.md, a data source"
Reader = Callable[[Path | None, PixelOptions, bool], ImagePool]


def own_reader(name: str) -> Reader:
    """The reader of a dotted name, found as Python finds modules.

    The module runs: call it for a name in a config or on the command line, never for one in a record.

    Raises:
        InputError: no such function, later images that are not uint8 (N, C, H, W).
    """
    module, _, function = name.rpartition(".")
    try:
        read = getattr(importlib.import_module(module), function)
        inspect.signature(read).bind(None, PixelOptions(), False)
    except Exception as error:  # whatever the user's module raises
        problem = f"is no reader of images ({type(error).__name__}: {brief(error)})"
        raise InputError("data.source", name, problem, HINT) from None

    def checked(path: Path | None, options: PixelOptions, download: bool) -> ImagePool:
        pool = read(path, options, download)
        images = getattr(pool, "images", None)
        if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError("data.source", name, "gives no ImagePool of uint8 (N, C, H, W)", HINT)
        return pool

    return checked
