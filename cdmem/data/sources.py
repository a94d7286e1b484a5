"""Where pixels come from: one function that turns the name of a source into an `ImagePool`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from cdmem.data.celeba import read_celeba
from cdmem.data.cifar10 import read_cifar10
from cdmem.data.digits import read_digits
from cdmem.data.own_source import Reader, own_reader
from cdmem.data.pixels import ImagePool, PixelOptions
from cdmem.data.user_images import read_array, read_folder
from cdmem.errors import InputError

__all__ = ["SOURCES", "ImagePool", "load_source"]


SOURCES: dict[str, Reader] = {
    "digits": read_digits,
    "cifar10": read_cifar10,
    "celeba": read_celeba,
    "folder": read_folder,
    "array": read_array,
}


def load_source(
    source: str,
    path: str | None = None,
    *,
    download: bool = False,
    resolution: int | None = None,
    grayscale: bool = False,
    crop: int | None = None,
    classes: Sequence[int | str] | None = None,
    own: bool = False,
) -> ImagePool:
    """Read all images of a source into memory.

    Args:
        source: ``digits``, ``cifar10``, ``celeba``, ``folder`` or ``array``; with ``own`` also ``module.function``.
        path: folder or file to read; none for ``digits``.
        download: fetch what is missing (``cifar10``, and what a function of the user's own fetches).
        resolution: side in px to resize to (antialiased bicubic), after the crop.
        grayscale: convert to one channel (ITU-R 601 luma).
        crop: side in px of a centred square to cut first.
        classes: names or numbers of the classes to keep, renumbered 0..K-1 in this order.
        own: the name is the user's own word, not a record's, and may name code.

    Returns:
        The pool, images uint8 (N, C, H, W) in the source's own order.

    Raises:
        InputError: an unknown source or class, or files that are missing, altered or unreadable.
    """
    mine = own and source not in SOURCES and "." in source
    if source not in SOURCES and not mine:
        hint = f"use one of {', '.join(SOURCES)}; of a source of your own, give the images as .npz"
        raise InputError("data.source", source, "no such source", hint)
    if download and source != "cifar10" and not mine:
        raise InputError("data.download", True, f"{source} cannot be fetched", "fetch it by hand")
    options = PixelOptions(crop=crop, grayscale=grayscale, resolution=resolution)
    read = own_reader(source) if mine else SOURCES[source]
    pool = read(Path(path).expanduser() if path is not None else None, options, download)
    pool = replace(pool, provenance=pool.provenance | asdict(options) | {"classes": None})
    return pool if classes is None else _keep_classes(pool, classes)


def _keep_classes(pool: ImagePool, classes: Sequence[int | str]) -> ImagePool:
    """Keep the named classes, renumbered in the order given; images stay in the source's order."""
    if not pool.class_names:
        raise InputError("data.classes", classes, f"{pool.source} has no labels", "leave it out")
    numbers = [_class_number(name, pool.class_names) for name in classes]
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError("data.classes", classes, "empty, or a class twice", "name each class once")
    new_label = torch.full((len(pool.class_names),), -1)
    new_label[torch.tensor(numbers)] = torch.arange(len(numbers))
    labels = new_label[pool.labels]
    keep = labels >= 0
    if not keep.any():
        raise InputError("data.classes", classes, "no image has one of these classes", "name other classes")
    names = tuple(pool.class_names[k] for k in numbers)
    return replace(
        pool,
        images=pool.images[keep],
        labels=labels[keep],
        class_names=names,
        indices=pool.indices[keep],
        provenance=pool.provenance | {"classes": list(names)},
    )


def _class_number(name: int | str, names: tuple[str, ...]) -> int:
    if isinstance(name, str) and name in names:
        return names.index(name)
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(names):
        return name
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise InputError("data.classes", name, "no such class", f"use 0..{len(names) - 1} or names: {shown}")
