"""Arrays of images: one NumPy file, or an idx file of MNIST with its labels beside it."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from cdmem.data.counts import counted
from cdmem.data.pixels import SKIP, ImagePool, PixelOptions, transform_array
from cdmem.errors import InputError
from cdmem.io.arrays import UNREADABLE, array_shapes, read_arrays

IMAGES = ("images", "arr_0", "x", "data")
LABELS = ("labels", "label", "y", "arr_1")
SEEDS = "seeds"  # of samples; an audit pairs by them
MAX_CLASSES = 65536
MAX_RATIO, FREE = 200, 2**26


def read_array(path: Path, options: PixelOptions) -> ImagePool:
    """A ``.npy`` file of images, or an ``.npz`` with ``images``, ``arr_0``, ``x`` or ``data`` and maybe labels.

    Images are uint8 grey levels (N, H, W, C), (N, H, W) or (N, C, H, W) with C = 1 or 3; where both ends
    could be channels, the last axis is. Labels (``labels``, ``label``, ``y`` or ``arr_1``) are integers 0..K-1, shape
    (N,) or (N, 1). Nothing is ever unpickled.

    Raises:
        InputError: unreadable content, another dtype or shape, labels that do not fit, or a second array of images.
    """
    try:
        shapes = array_shapes(path)
        image_name = next((name for name in IMAGES if name in shapes), None)
        label_names = [name for name in LABELS if name in shapes and not _looks_like_images(*shapes[name])]
        if image_name is None:
            problem = f"has none of {', '.join(IMAGES)}, but {', '.join(list(shapes)[:8]) or 'nothing'}"
            hint = "use np.savez(images=..., labels=...), one file for training and one for held-out images"
            raise InputError("data.path", path.name, problem, hint)
        arrays = read_arrays(path, (image_name, *label_names))
    except UNREADABLE as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        problem = f"not a readable NumPy file without pickles ({reason[:120]})"
        raise InputError("data.path", path.name, problem, "save a plain uint8 array") from error
    pixels = to_nchw(arrays[image_name], path.name)
    rest = [name for name in shapes if name not in (image_name, *label_names, SEEDS)]
    further = [name for name in rest if _looks_like_images(*shapes[name])]
    if further and not options.skip_unreadable:
        problem = f"holds images in {image_name} and in {', '.join(further[:4])}"
        hint = f"save one array of images a file, {SKIP}"
        raise InputError("data.path", path.name, problem, hint)
    if any(not np.array_equal(arrays[label_names[0]], arrays[name]) for name in label_names[1:]):
        problem = f"holds different labels in {' and '.join(label_names)}"
        raise InputError("data.path", path.name, problem, "keep one of them")
    labels, names = read_labels(arrays[label_names[0]] if label_names else None, len(pixels), path.name)
    skipped = {f"array {name}": 1 for name in rest}
    notes = {"with seeds": len(pixels)} if SEEDS in shapes else None
    return array_pool(path, pixels, labels, names, options, path.suffix.lower(), skipped, notes)


def array_pool(
    path: Path,
    pixels: np.ndarray,
    labels: Tensor,
    class_names: tuple[str, ...],
    options: PixelOptions,
    form: str,
    skipped: Mapping[str, int] | None = None,
    notes: Mapping[str, int] | None = None,
) -> ImagePool:
    """The pool of one file's images (N, C, H, W), uint8."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ImagePool(
        images=transform_array(pixels, options),
        labels=labels,
        class_names=class_names,
        indices=torch.arange(len(pixels)),
        source="array",
        provenance={"file": path.name, "sha256": sha256} | counted(len(pixels), {form: len(pixels)}, skipped, notes),
    )


def _looks_like_images(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return dtype == np.uint8 and len(shape) in (3, 4)


def to_nchw(images: np.ndarray, name: str) -> np.ndarray:
    """Bring images of an accepted layout to uint8 (N, C, H, W).

    Raises:
        InputError: another dtype or shape.
    """
    if images.dtype != np.uint8:
        raise InputError("data.path", name, f"images are {images.dtype}", "save grey levels 0..255 as uint8")
    if images.size and images.ndim == 3:
        return images[:, None]
    if images.size and images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if images.size and images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    problem = f"images have shape {tuple(images.shape)}"
    raise InputError("data.path", name, problem, "save (N, H, W, C), (N, C, H, W) or (N, H, W), C = 1 or 3")


def read_labels(labels: np.ndarray | None, count: int, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (N,) int64 and the names of their classes, which are numbers; zeros and no names without labels.

    Raises:
        InputError: no whole numbers, or not one for each of ``count`` images.
    """
    if labels is None:
        return torch.zeros(count, dtype=torch.int64), ()
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    whole = flat.shape == (count,) and np.issubdtype(flat.dtype, np.integer)
    if not whole or flat.min() < 0 or flat.max() >= MAX_CLASSES:
        problem = f"labels are {labels.dtype} of shape {tuple(labels.shape)} for {count} images"
        raise InputError("data.path", name, problem, f"save ({count},) integers 0..K-1, or no labels")
    return torch.from_numpy(flat.astype(np.int64)), tuple(map(str, range(int(flat.max()) + 1)))


def read_idx(path: Path, options: PixelOptions) -> ImagePool:
    """An idx file of MNIST and its kin, plain or gzipped, and its labels where ``*labels*idx1*`` lies beside it.

    Raises:
        InputError: no idx file of bytes, torn, or labels that do not fit.
    """
    pixels = to_nchw(_idx(path), path.name)
    stem = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    beside = next((f for f in (path.with_name(stem), path.with_name(f"{stem}.gz")) if f != path and f.is_file()), None)
    labels, names = read_labels(None if beside is None else _idx(beside), len(pixels), path.name)
    return array_pool(path, pixels, labels, names, options, "idx" if beside else "idx without labels")


def _idx(path: Path) -> np.ndarray:
    """The array of bytes in an idx file: 0, 0, 8, dimensions, each side as four bytes, then the content."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        if packed:
            with gzip.open(path) as stream:
                return _idx_of(stream, max(FREE, MAX_RATIO * path.stat().st_size))
        with path.open("rb") as plain:
            return _idx_of(plain, path.stat().st_size)
    except (OSError, EOFError, zlib.error, ValueError, MemoryError) as error:
        problem = f"not a readable idx file ({str(error)[:120] or type(error).__name__})"
        raise InputError("data.path", path.name, problem, "fetch it again") from None


def _idx_of(stream: IO[bytes] | gzip.GzipFile, held: int) -> np.ndarray:
    """The array in a stream that can hold ``held`` bytes."""
    head = stream.read(4)
    if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
        raise ValueError("does not begin as idx of bytes does")
    shape = tuple(int.from_bytes(stream.read(4), "big") for _ in range(head[3]))
    size = math.prod(shape)
    if size > held:
        raise ValueError(f"shape {shape} is more than the file can hold")
    content = stream.read(size)
    if len(content) < size or stream.read(1):
        raise ValueError(f"does not hold what shape {shape} needs")
    return np.frombuffer(content, np.uint8).reshape(shape)
