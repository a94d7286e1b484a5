"""CIFAR's Python batches: pickles, read as plain data and never unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cdmem.data.image_arrays import array_pool, read_labels
from cdmem.data.pixels import ImagePool, PixelOptions
from cdmem.errors import InputError
from cdmem.io.plain_pickle import read_plain

PART_NAMES = ("batches.meta", "meta")
LABELS = ("labels", "fine_labels")  # of CIFAR-10 and CIFAR-100


def read_pickled(files: Sequence[Path], options: PixelOptions) -> ImagePool:
    """The images of one or several batches, in order of their names; class names where ``batches.meta`` lies beside.

    Raises:
        InputError: no batch of CIFAR, or one that holds more than plain data.
    """
    batches = [_batch(file) for file in sorted(files)]
    if len({batch.shape for batch, _ in batches}) > 1 and len({batch.shape[1:] for batch, _ in batches}) > 1:
        raise InputError("data.path", files[0].parent.name, "batches of different sizes", "give batches of one set")
    pixels = np.concatenate([batch for batch, _ in batches])
    known = [labels for _, labels in batches if labels is not None]
    if known and len(known) < len(batches):
        raise InputError("data.path", files[0].parent.name, "some batches have no labels", "give batches of one set")
    labels, names = read_labels(np.concatenate(known) if known else None, len(pixels), files[0].name)
    pool = array_pool(sorted(files)[0], pixels, labels, _class_names(files[0].parent, names), options, "CIFAR pickle")
    if len(files) == 1:
        return pool
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)]
    return replace(pool, provenance=pool.provenance | {"file": [f.name for f in sorted(files)], "sha256": digests})


def _plain(file: Path) -> dict[str, Any]:
    try:
        return read_plain(file)
    except (OSError, ValueError) as error:
        hint = "give a batch of CIFAR's Python version, or the images as .npz"
        raise InputError("data.path", file.name, f"is no pickle of plain data ({str(error)[:160]})", hint) from None


def _batch(file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Images (N, 3, side, side) and labels of a batch."""
    content = _plain(file)
    data = content.get("data")
    if not isinstance(data, np.ndarray) or data.ndim != 2:
        data = np.empty((0, 0))
    side = round((data.shape[1] / 3) ** 0.5)
    if not side or data.dtype != np.uint8 or data.shape[1] != 3 * side * side or not len(data):
        problem = "is no batch of CIFAR: its 'data' is no uint8 (N, 3 x side x side)"
        raise InputError("data.path", file.name, problem, "give one, or the images as .npz")
    labels = next((content[name] for name in LABELS if name in content), None)
    try:
        return data.reshape(-1, 3, side, side), None if labels is None else np.asarray(labels)
    except ValueError:
        raise InputError("data.path", file.name, "its labels are no list of numbers", "give a batch of CIFAR") from None


def _class_names(folder: Path, numbers: tuple[str, ...]) -> tuple[str, ...]:
    beside = next((folder / name for name in PART_NAMES if (folder / name).is_file()), None)
    if beside is None or not numbers:
        return numbers
    content = _plain(beside)
    names = content.get("label_names", content.get("fine_label_names"))
    if not isinstance(names, list) or len(names) < len(numbers):
        return numbers
    return tuple(name.decode("latin-1") if isinstance(name, bytes) else str(name)[:80] for name in names)
