"""Shape and numbers of the images that a data section describes, without the images wherever it says enough."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from cdmem.data.duplication import multiplicities
from cdmem.data.pixels import PixelOptions
from cdmem.errors import InputError
from cdmem.training.datamodule import MemorizationDataModule

# Pillow mode, width and height, images, classes: as the readers in cdmem.data give them.
KNOWN = {
    "digits": ("L", 8, 8, 1797, 10),
    "cifar10": ("RGB", 32, 32, 50_000, 10),
    "celeba": ("RGB", 178, 218, 162_770, 0),
}


@dataclass(frozen=True)
class Facts:
    """What costs depend on.

    Attributes:
        shape: (C, H, W).
        num_classes: 0 without labels.
        n: unique training images.
        rows: with repetitions.
        held_out: size of H.
    """

    shape: tuple[int, ...]
    num_classes: int
    n: int
    rows: int
    held_out: int


def facts(data: MemorizationDataModule, conditional: bool) -> Facts:
    """Facts of a data section; ``folder`` and ``array`` are read only where it leaves them open.

    Args:
        data: the data module, nothing read yet.
        conditional: whether the number of classes matters.

    Raises:
        InputError: sizes that do not fit together, or files that have to be read and cannot.
    """
    spec = data.spec
    if spec.n < 2 or spec.held_out < 0:
        key, value = ("data.n", spec.n) if spec.n < 2 else ("data.held_out", spec.held_out)
        raise InputError(key, value, "is no size of a set of images", "data.n is 2 or more, data.held_out 0 or more")
    shape = _shape(data.source, PixelOptions(**data.pixels))
    classes = _classes(data)
    all_of_h = data.held_out_path is not None and spec.held_out == 0
    if shape is None or all_of_h or (classes is None and conditional):
        t = data.training_set
        return Facts(t.shape, t.num_classes, len(t.images), t.rows, len(t.held_out_images))
    if data.source in KNOWN and data.classes is None:
        size, wanted = KNOWN[data.source][3], spec.n + (spec.held_out if data.held_out_path is None else 0)
        if wanted > size:
            problem = f"with data.held_out={spec.held_out} more than the {size} images of {data.source}"
            raise InputError("data.n", spec.n, problem, "lower one of them")
    rows = int(multiplicities(spec.duplication, spec.n, spec.seed).sum())
    return Facts(shape, classes or 0, spec.n, rows, spec.held_out)


def _shape(source: str, options: PixelOptions) -> tuple[int, ...] | None:
    """Shape of every image by the readers' own transformation of an empty one, or None where only the files know."""
    if source == "celeba" and options.crop is None and options.resolution is None:
        raise InputError("data.resolution", None, "celeba is read at a chosen size only", "e.g. data.resolution=32")
    if source in KNOWN:
        mode, width, height, _, _ = KNOWN[source]
        return options.apply(Image.new(mode, (width, height))).shape
    sized = options.crop is not None or options.resolution is not None
    # Folders are read as RGB; an array may hold grey images.
    if sized and (source == "folder" or (source == "array" and options.grayscale)):
        side = max(options.crop or 1, options.resolution or 1)
        return options.apply(Image.new("RGB", (side, side))).shape
    return None


def _classes(data: MemorizationDataModule) -> int | None:
    """Number of classes, or None where only the files know."""
    if data.source not in KNOWN:
        return None
    known = KNOWN[data.source][4]
    return len(data.classes) if known and data.classes is not None else known
