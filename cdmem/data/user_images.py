"""The user's own images: a folder of image files, or one NumPy file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdmem.data.pixels import ImagePool, PixelOptions, decode_files, transform_array
from cdmem.errors import InputError
from cdmem.io.arrays import UNREADABLE, read_arrays

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_CLASSES = 65536


def read_folder(path: Path | None, options: PixelOptions, download: bool) -> ImagePool:
    """All image files below a folder, sorted by relative POSIX path; hidden names are skipped.

    Images are RGB unless ``options.grayscale``. Where every file lies in a sub-directory, the first
    sub-directory names the class; otherwise there are no labels.

    Raises:
        InputError: no folder, no images, unreadable images, different sizes, or links out of the folder.
    """
    if path is None or not path.is_dir():
        raise InputError("data.path", path, "not a folder", "name a folder with PNG, JPEG, WebP or BMP files")
    names = _image_names(path)
    if not names:
        problem = f"no image files ({', '.join(SUFFIXES)}) below it"
        raise InputError("data.path", path, problem, "name a folder that holds images")
    classes: list[str] = []
    if all("/" in name for name in names):
        classes = sorted({name.split("/")[0] for name in names})
    number = {name: k for k, name in enumerate(classes)}
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
    return ImagePool(
        images=decode_files(path, names, options),
        labels=torch.tensor([number.get(name.split("/")[0], 0) for name in names]),
        class_names=tuple(classes),
        indices=torch.arange(len(names)),
        source="folder",
        provenance={"files": len(names), "names_sha256": digest},
    )


def _image_names(root: Path) -> list[str]:
    names = []
    for entry in root.rglob("*"):
        name = entry.relative_to(root)
        if any(part.startswith(".") for part in name.parts):
            continue
        if entry.is_symlink() and not _stays_inside(entry, root):
            problem = f"{name.as_posix()} is a link out of the folder"
            raise InputError("data.path", root, problem, "copy the files into the folder or remove the link")
        if entry.suffix.lower() in SUFFIXES and entry.is_file():
            names.append(name.as_posix())
    return sorted(names)


def _stays_inside(link: Path, root: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # broken or circular
        return False


def read_array(path: Path | None, options: PixelOptions, download: bool) -> ImagePool:
    """A ``.npy`` file of images, or an ``.npz`` file with ``images`` (or ``arr_0``) and optional ``labels``.

    Images are uint8 grey levels (N, H, W, C), (N, H, W) or (N, C, H, W) with C = 1 or 3; where both ends
    could be channels, the last axis is. Labels are integers 0..K-1, shape (N,). Nothing is ever unpickled.

    Raises:
        InputError: no such file, unreadable content, another dtype or shape, or labels that do not fit.
    """
    if path is None or path.suffix.lower() not in (".npy", ".npz") or not path.is_file():
        raise InputError("data.path", path, "not a .npy or .npz file", "name a NumPy file of uint8 images")
    try:
        arrays = read_arrays(path, ("images", "arr_0", "labels"))
    except UNREADABLE as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        problem = f"not a readable NumPy file without pickles ({reason[:120]})"
        raise InputError("data.path", path.name, problem, "save a plain uint8 array") from error
    images = arrays.get("images", arrays.get("arr_0"))
    if images is None:
        raise InputError("data.path", path.name, "has neither 'images' nor 'arr_0'", "use np.savez(images=...)")
    pixels = _to_nchw(images, path.name)
    labels, names = _read_labels(arrays.get("labels"), len(pixels), path.name)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ImagePool(
        images=transform_array(pixels, options),
        labels=labels,
        class_names=names,
        indices=torch.arange(len(pixels)),
        source="array",
        provenance={"file": path.name, "sha256": sha256},
    )


def _to_nchw(images: np.ndarray, name: str) -> np.ndarray:
    """Bring images of an accepted layout to uint8 (N, C, H, W)."""
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


def _read_labels(labels: np.ndarray | None, count: int, name: str) -> tuple[Tensor, tuple[str, ...]]:
    if labels is None:
        return torch.zeros(count, dtype=torch.int64), ()
    whole = labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer)
    if not whole or labels.min() < 0 or labels.max() >= MAX_CLASSES:
        problem = f"labels are {labels.dtype} of shape {tuple(labels.shape)} for {count} images"
        raise InputError("data.path", name, problem, f"save ({count},) integers 0..K-1, or no labels")
    return torch.from_numpy(labels.astype(np.int64)), tuple(map(str, range(int(labels.max()) + 1)))
