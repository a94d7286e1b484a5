"""Where pixels come from: one function that turns the name of a source into an `ImagePool`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from cdmem.data.celeba import read_celeba
from cdmem.data.cifar10 import CLASSES, read_cifar10
from cdmem.data.digits import read_digits
from cdmem.data.image_sets import read_image_set
from cdmem.data.own_source import Reader, own_reader, recorded_reader
from cdmem.data.pixels import ImagePool, PixelOptions, transform_array
from cdmem.errors import InputError
from cdmem.io.paths import usable_path

__all__ = ["SOURCES", "ImagePool", "Source", "load_source", "noise_pool"]


@dataclass(frozen=True)
class Source:
    """A source of images, and what is known of them before they are read.

    Attributes:
        read: (path, options, download) -> pool.
        channels: of every image; None where only the files know.
        size: height and width in px of every image; None where only the files know.
        images: how many there are; None where only the files know.
        class_names: of a published source.
        can_download: whether ``download`` fetches it.
    """

    read: Reader
    channels: int | None = None
    size: tuple[int, int] | None = None
    images: int | None = None
    class_names: tuple[str, ...] = ()
    can_download: bool = False


SOURCES: dict[str, Source] = {
    "digits": Source(read_digits, 1, (8, 8), 1797, tuple(map(str, range(10)))),
    "cifar10": Source(read_cifar10, 3, (32, 32), 50_000, CLASSES, can_download=True),
    "celeba": Source(read_celeba, 3, (218, 178), 162_770),
    # Two names of one reader: what lies at the path decides.
    "folder": Source(read_image_set),
    "array": Source(read_image_set),
}


def _source(name: str, own: bool) -> Source:
    """The source of a name; a dotted one is code, which only the user's own words may choose."""
    if "." in name:
        return Source(own_reader(name) if own else recorded_reader(name), can_download=True)
    if name not in SOURCES:
        hint = f"use one of {', '.join(SOURCES)}, or module.function of your own"
        raise InputError("data.source", name, "no such source", hint)
    return SOURCES[name]


def load_source(
    source: str,
    path: str | None = None,
    *,
    download: bool = False,
    resolution: int | None = None,
    grayscale: bool = False,
    crop: int | None = None,
    skip_unreadable: bool = False,
    classes: Sequence[int | str] | None = None,
    own: bool = False,
) -> ImagePool:
    """Read all images of a source into memory.

    Args:
        source: ``digits``, ``cifar10``, ``celeba``, ``folder`` or ``array``; or ``module.function`` of the user's own.
        path: folder or file to read; none for ``digits``.
        download: fetch what is missing (``cifar10``, and what a function of the user's own fetches).
        resolution, grayscale, crop, skip_unreadable: see :class:`PixelOptions`.
        classes: names or numbers of the classes to keep, renumbered 0..K-1 in this order.
        own: the name stands in the user's own words, not in a record (:mod:`cdmem.io.own_code`).

    Returns:
        The pool, images uint8 (N, C, H, W) in the source's own order.

    Raises:
        InputError: an unknown source or class, or files that are missing, altered or unreadable.
    """
    known = _source(source, own)
    if download and not known.can_download:
        raise InputError("data.download", True, f"{source} cannot be fetched", "fetch it by hand")
    options = PixelOptions(crop, grayscale, resolution, skip_unreadable)
    pool = known.read(usable_path("data.path", path) if path is not None else None, options, download)
    pool = replace(pool, provenance=pool.provenance | asdict(options) | {"classes": None})
    return pool if classes is None else _keep_classes(pool, classes)


def noise_pool(
    source: str,
    count: int,
    options: PixelOptions,
    classes: Sequence[int | str] | None = None,
    channels: int | None = None,
) -> ImagePool | None:
    """Noise in place of a source's images: what costs depend on, before anything is downloaded.

    Args:
        source, options, classes: as for :func:`load_source`, in the user's own words.
        count: images wanted; a source gives no more than it has.
        channels: where only the files know, and they are not there yet.

    Returns:
        The pool, or None where neither the source nor the options fix the shape.
    """
    known = _source(source, own=True)
    side = max(options.crop or 0, options.resolution or 0)
    size, channels = known.size or (side, side), 3 if options.grayscale else known.channels or channels
    if channels is None or not all(size):
        return None
    names = known.class_names
    if classes is not None:
        names = tuple(names[k] for k in _class_numbers(classes, names, source))
    shape = transform_array(np.zeros((1, channels, *size), np.uint8), options).shape[1:]
    count = max(0, count if known.images is None else min(count, known.images))
    return ImagePool(
        images=torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)),
        labels=torch.arange(count) % max(1, len(names)),
        class_names=names,
        indices=torch.arange(count),
        source=source,
        provenance={"noise": True},
    )


def _class_numbers(classes: Sequence[int | str], names: tuple[str, ...], source: str) -> list[int]:
    """Numbers of the named classes among all ``names`` of a source."""
    if not names:
        raise InputError("data.classes", classes, f"{source} has no labels", "leave it out")
    numbers = [_class_number(name, names) for name in classes]
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError("data.classes", classes, "empty, or a class twice", "name each class once")
    return numbers


def _keep_classes(pool: ImagePool, classes: Sequence[int | str]) -> ImagePool:
    """Keep the named classes, renumbered in the order given; images stay in the source's order."""
    numbers = _class_numbers(classes, pool.class_names, pool.source)
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
