"""CIFAR-10 from the official batches, every file checked against its published MD5."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cdmem.data.pixels import ImagePool, PixelOptions, transform_array
from cdmem.errors import InputError
from cdmem.io.atomic import replacing
from cdmem.io.download import fetch
from cdmem.io.plain_pickle import read_plain

FOLDER = "cifar-10-batches-bin"
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
# The five training batches, in the order that numbers the images 0..49999; the test batch is never read.
MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
}
# The same images in the same order, pickled: read as plain data.
PYTHON_FOLDER = "cifar-10-batches-py"
PYTHON_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32  # a label byte, then the red, green and blue planes row by row
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LAYOUT = f"data_batch_1.bin .. data_batch_5.bin in the folder itself or in its {FOLDER}/, or {PYTHON_FOLDER}/"


def read_cifar10(path: Path | None, options: PixelOptions, download: bool) -> ImagePool:
    """The 50,000 training images, uint8 (50000, 3, 32, 32) before the options.

    Args:
        path: folder with the binary batches, or the one above it.
        download: fetch the official archive into ``path`` where batches are missing.

    Raises:
        InputError: no path, missing or altered batches, or a failed download.
    """
    if path is None:
        raise InputError("data.path", None, "cifar10 is read from a folder", f"name one with {LAYOUT}")
    folder = _find(path)
    if folder is None and download:
        _download(path)
        folder = _find(path)
    md5 = MD5
    if folder is None:
        folder, md5 = _find(path, PYTHON_FOLDER, PYTHON_MD5), PYTHON_MD5
    if folder is None:
        hint = f"put {LAYOUT}, or set data.download=true to fetch the official archive"
        raise InputError("data.path", path, "the CIFAR-10 binary batches are not there", hint)
    read = _read_batch if md5 is MD5 else _read_python
    records = np.concatenate([read(folder / name, digest) for name, digest in md5.items()])
    pixels = records[:, 1:].reshape(-1, *SHAPE)
    return ImagePool(
        images=transform_array(pixels, options),
        labels=torch.from_numpy(records[:, 0].astype(np.int64)),
        class_names=CLASSES,
        indices=torch.arange(len(records)),
        source="cifar10",
        provenance={"md5": dict(md5)},
    )


def _find(path: Path, inner: str = FOLDER, names: Iterable[str] | None = None) -> Path | None:
    wanted = list(MD5 if names is None else names)
    return next((f for f in (path, path / inner) if all((f / name).is_file() for name in wanted)), None)


def _read_batch(file: Path, md5: str) -> np.ndarray:
    """One batch as uint8 (10000, 3073): label, then pixels."""
    return np.frombuffer(_checked(file, md5), np.uint8).reshape(-1, RECORD)


def _read_python(file: Path, md5: str) -> np.ndarray:
    """The same of a pickled batch."""
    _checked(file, md5)
    content = read_plain(file)
    return np.column_stack([np.asarray(content["labels"], np.uint8), content["data"]])


def _checked(file: Path, md5: str) -> bytes:
    content = file.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        hint = "remove the file and fetch the official version again (data.download=true)"
        raise InputError("data.path", file.name, f"MD5 {digest} is not the published {md5}", hint)
    return content


def _download(path: Path) -> None:
    archive = path / URL.rpartition("/")[2]
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not archive.is_file() or _md5(archive) != ARCHIVE_MD5:
            with replacing(archive) as part:
                fetch(URL, part, "CIFAR-10")
                if _md5(part) != ARCHIVE_MD5:
                    raise OSError("the MD5 is not the published one")
        with tarfile.open(archive) as tar:
            tar.extractall(path, filter="data")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        problem = f"CIFAR-10 could not be fetched ({type(error).__name__}: {error})"
        hint = f"check the network and retry, or fetch {URL} elsewhere and unpack it into data.path"
        raise InputError("data.download", True, problem, hint) from error


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
