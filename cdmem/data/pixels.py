"""Image pools and the one way in which an image file or array becomes uint8 grey levels (C, H, W)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cdmem.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 64 * 2**20  # a file that says it is larger than 64 Mpx is not decoded
# A folder at its own size: files of one colour pack 1000:1, pictures do not.
MAX_RATIO, FREE = 200, 2**30
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True, eq=False)
class ImagePool:
    """Everything that a source offers, before any choice.

    Attributes:
        images: grey levels 0..255, uint8 (N, C, H, W), C = 1 or 3.
        labels: class numbers 0..K-1, int64 (N,); all zero for a source without labels.
        class_names: K names; empty where the source has no labels.
        indices: position of every image in the source's own order, int64 (N,).
        source: name of the source, for example ``cifar10``.
        provenance: where the pixels come from and what was done to them: JSON types, no absolute paths.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    indices: Tensor
    source: str
    provenance: dict[str, object]

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class PixelOptions:
    """What is done to every image, in this order: centre crop, grey, resize.

    Attributes:
        crop: side in px of a centred square, cut before anything else.
        grayscale: to one channel, L = 0.299 R + 0.587 G + 0.114 B (ITU-R 601).
        resolution: side in px of the result, by Pillow's antialiased bicubic filter. An image that is not
            square is first cut to its largest centred square, so that nothing is stretched.

    Raises:
        InputError: a side below 1 px.
    """

    crop: int | None = None
    grayscale: bool = False
    resolution: int | None = None

    def __post_init__(self) -> None:
        for key, value in (("data.crop", self.crop), ("data.resolution", self.resolution)):
            if value is not None and value < 1:
                raise InputError(key, value, "a side is at least 1 px", "raise it or leave it out")

    def apply(self, image: Image.Image) -> np.ndarray:
        """One Pillow image of mode L or RGB to uint8 (C, H, W).

        Raises:
            InputError: the crop is larger than the image.
        """
        if self.crop is not None:
            if self.crop > min(image.size):
                problem = f"larger than an image of {image.width}x{image.height} px"
                raise InputError("data.crop", self.crop, problem, f"use at most {min(image.size)}")
            image = _centre(image, self.crop)
        if self.grayscale:
            image = image.convert("L")
        if self.resolution is not None:
            image = _centre(image, min(image.size))
            image = image.resize((self.resolution, self.resolution), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _centre(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def transform_array(images: np.ndarray, options: PixelOptions) -> Tensor:
    """Apply the options to uint8 images (N, C, H, W), C = 1 or 3; returns uint8 (N, C', H', W')."""
    if options == PixelOptions() or len(images) == 0:
        return torch.from_numpy(np.array(images, dtype=np.uint8, order="C"))
    last = images[:, 0] if images.shape[1] == 1 else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return torch.from_numpy(np.stack([options.apply(Image.fromarray(x)) for x in last])).contiguous()


def decode_files(root: Path, names: Sequence[str], options: PixelOptions) -> Tensor:
    """Decode image files to uint8 (N, C, H, W), C = 1 with ``options.grayscale`` and 3 otherwise.

    Args:
        root: folder that the names are relative to.
        names: at least one relative POSIX path.
        options: applied to every image while it is read, so that no full-size copy is kept.

    Raises:
        InputError: a file that is unreadable, too large or not 8-bit; images of different sizes.
    """
    stack: np.ndarray | None = None
    for k, name in enumerate(names):
        pixels = options.apply(_open(root / name, name))
        if stack is None:
            _check_ratio(root, names, pixels.nbytes, options)
            stack = np.empty((len(names), *pixels.shape), np.uint8)
        if pixels.shape != stack.shape[1:]:
            first, here = (f"{x.shape[-1]}x{x.shape[-2]}" for x in (stack, pixels))
            problem = f"images of different sizes: {first} px in {names[0]}, {here} px in {name}"
            hint = "set data.resolution so that all get one size"
            raise InputError("data.resolution", options.resolution, problem, hint)
        stack[k] = pixels
    if stack is None:
        raise InputError("data.path", root.name, "no images to read", "choose a folder that holds images")
    return torch.from_numpy(stack)


def _check_ratio(root: Path, names: Sequence[str], each: int, options: PixelOptions) -> None:
    """Refuse files that would fill the memory with far more than they hold, unless the user chose the size."""
    if options.resolution is not None or options.crop is not None or len(names) * each <= FREE:
        return
    packed = sum((root / name).stat().st_size for name in names)
    if len(names) * each > MAX_RATIO * packed:
        problem = f"{packed:,} bytes of files would unpack to {len(names) * each:,}"
        raise InputError("data.path", root.name, problem, "set data.resolution, or remove the files")


def _open(path: Path, name: str) -> Image.Image:
    """Read one file as RGB, upright, transparent parts on white."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width}x{image.height} px")
                if image.mode not in EIGHT_BIT_MODES:
                    # Pillow would clip 16-bit grey levels to white without a word.
                    problem = f"pixel mode {image.mode} has no 8-bit form"
                    raise InputError("data.path", name, problem, "convert the file to 8 bits a channel")
                return _to_rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        problem = f"image too large to decode safely ({error})"
        raise InputError("data.path", name, problem, "shrink it or remove it") from error
    except Exception as error:  # a hostile file chooses which one
        hint = f"replace or remove the file ({', '.join(FORMATS)} are read)"
        raise InputError("data.path", name, f"not a readable image ({type(error).__name__})", hint) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
