"""CelebA from the aligned and cropped JPEG files (178x218 px) and the official partition."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch

from cdmem.data.counts import counted
from cdmem.data.pixels import ImagePool, PixelOptions, decode
from cdmem.errors import InputError

IMAGES = "img_align_celeba"
PARTITION = "list_eval_partition.txt"
TRAIN = "0"
LINE = re.compile(r"(\d+)\.jpg\s+([012])")
LAYOUT = f"the folder {IMAGES}/ with the JPEG files and {PARTITION} beside it"


def read_celeba(path: Path | None, options: PixelOptions, download: bool) -> ImagePool:
    """The training part (162,770 images) in the order of the file names, without labels.

    Args:
        path: folder that holds the images and the partition, or the one above its ``celeba/``.
        options: a crop or a resolution is required.
        download: refused by the caller; CelebA has to be fetched by hand.

    Raises:
        InputError: missing or malformed files, or neither crop nor resolution.
    """
    if path is None:
        raise InputError("data.path", None, "celeba is read from a folder", f"name one with {LAYOUT}")
    root = next((folder for folder in (path, path / "celeba") if _complete(folder)), None)
    if root is None:
        raise InputError("data.path", path, "CelebA is not there", f"put {LAYOUT}")
    if options.crop is None and options.resolution is None:
        problem = "all of CelebA at full size needs 19 GB of memory"
        raise InputError("data.resolution", None, problem, "set data.resolution, for example 32 or 64")
    text = (root / PARTITION).read_text(encoding="utf-8", errors="replace")
    names = _training_names(text)
    missing = next((name for name in names if not (root / IMAGES / name).is_file()), None)
    if missing is not None:
        raise InputError("data.path", path, f"{IMAGES}/{missing} is missing", "unpack the archive again")
    packed = sum((root / IMAGES / name).stat().st_size for name in names)
    made = decode(names, lambda name: root / IMAGES / name, packed, options)
    names = [names[k] for k in made.kept]
    return ImagePool(
        images=made.images if options.grayscale else made.images.expand(-1, 3, -1, -1).contiguous(),
        labels=torch.zeros(len(names), dtype=torch.int64),
        class_names=(),
        indices=torch.tensor([int(name.removesuffix(".jpg")) - 1 for name in names]),
        source="celeba",
        provenance={"split": "train", "partition_sha256": hashlib.sha256(text.encode()).hexdigest()}
        | counted(len(names), made.formats, made.skipped),
    )


def _complete(folder: Path) -> bool:
    return (folder / IMAGES).is_dir() and (folder / PARTITION).is_file()


def _training_names(text: str) -> list[str]:
    """Names of the training files, sorted. Only digits are let through, so that no name leaves the folder."""
    names = []
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines())), start=1):
        match = LINE.fullmatch(line)
        if match is None:
            problem = f"line {number} of {PARTITION} is not '<number>.jpg <0|1|2>'"
            raise InputError("data.path", PARTITION, problem, "use the official file")
        if match[2] == TRAIN:
            names.append(f"{match[1]}.jpg")
    if not names:
        raise InputError("data.path", PARTITION, "no image has partition 0 (train)", "use the official file")
    return sorted(names)
