"""Image pools and the one way in which an image file or array becomes uint8 grey levels (C, H, W)."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cdmem.errors import InputError

# Of Pillow's formats those that hold pixels and say by their first bytes what they are.
# AVIF comes last: before 11.3, Pillow does not know the name.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "QOI", "AVIF")
MAX_PIXELS = 64 * 2**20  # a file that says it is larger than 64 Mpx is not decoded
# A folder at its own size: files of one colour pack 1000:1, pictures do not.
MAX_RATIO, FREE = 200, 2**30
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
GREY_MODES = ("1", "L", "LA")
SKIP = "or leave out what is not read by data.skip_unreadable=true"


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
    """What is done to every image, in this order: centre crop, grey, resize; and to pictures that cannot be read.

    Attributes:
        crop: side in px of a centred square, cut before anything else.
        grayscale: to one channel, L = 0.299 R + 0.587 G + 0.114 B (ITU-R 601).
        resolution: side in px of the result, by Pillow's antialiased bicubic filter. An image that is not
            square is first cut to its largest centred square, so that nothing is stretched.
        skip_unreadable: leave them out and count them, instead of an error.

    Raises:
        InputError: a side below 1 px.
    """

    crop: int | None = None
    grayscale: bool = False
    resolution: int | None = None
    skip_unreadable: bool = False

    @property
    def as_stored(self) -> bool:
        """Whether images stay as they are."""
        return self.crop is None and self.resolution is None and not self.grayscale

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
    if options.as_stored or len(images) == 0:
        return torch.from_numpy(np.array(images, dtype=np.uint8, order="C"))
    last = images[:, 0] if images.shape[1] == 1 else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return torch.from_numpy(np.stack([options.apply(Image.fromarray(x)) for x in last])).contiguous()


@dataclass(frozen=True)
class Decoded:
    """Pictures that were read.

    Attributes:
        images: uint8 (M, C, H, W), C = 1 where every picture stores grey levels, else 3.
        kept: places, among the names asked for, of those that were read.
        formats: how many were read, by format.
        skipped: how many were not, by reason.
        notes: what else there is in them, by kind.
    """

    images: Tensor
    kept: list[int]
    formats: Counter[str]
    skipped: Counter[str]
    notes: Counter[str]


class Unreadable(InputError):
    """A picture that cannot be read; ``reason`` in a word or two."""

    def __init__(self, reason: str, name: str, problem: str, hint: str) -> None:
        super().__init__("data.path", name, problem, f"{hint}, {SKIP}")
        self.reason = reason


def decode(
    names: Sequence[str], content: Callable[[str], Path | BytesIO], packed: int, options: PixelOptions
) -> Decoded:
    """Decode picture files; each passes the options while it is read, so that no full-size copy is kept.

    Args:
        names: at least one.
        content: of the file of a name.
        packed: bytes of all of them.
        options: what is done to every picture.

    Raises:
        InputError: a file that is unreadable, too large or not 8-bit; images of different sizes.
    """
    stack: np.ndarray | None = None
    kept: list[int] = []
    formats: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for k, name in enumerate(names):
        try:
            image, kind, frames = _open(content, name)
        except Unreadable as error:
            if not options.skip_unreadable:
                raise
            skipped[error.reason] += 1
            continue
        pixels = options.apply(image)
        if stack is None:
            _check_ratio(names, packed, pixels, options)
            stack = np.empty((len(names), *pixels.shape), np.uint8)
        if pixels.shape[1:] != stack.shape[2:]:
            first, here = (f"{x.shape[-1]}x{x.shape[-2]}" for x in (stack, pixels))
            problem = f"images of different sizes: {first} px in {names[kept[0]]}, {here} px in {name}"
            hint = "set data.resolution so that all get one size"
            raise InputError("data.resolution", options.resolution, problem, hint)
        if len(pixels) > stack.shape[1]:  # the first picture in colour
            stack = np.repeat(stack, len(pixels), axis=1)
        stack[len(kept)] = pixels
        kept.append(k)
        formats[kind] += 1
        notes["animations, of which the first frame is read"] += frames
        notes["grey pictures among colour ones"] += len(pixels) == 1
    if stack is None:
        problem = f"none of {len(names)} pictures can be read" if names else "no images to read"
        raise InputError("data.path", names[0] if names else "", problem, "give images that can be read")
    if stack.shape[1] == 1:
        del notes["grey pictures among colour ones"]
    return Decoded(torch.from_numpy(stack[: len(kept)]), kept, formats, skipped, +notes)


def _check_ratio(names: Sequence[str], packed: int, pixels: np.ndarray, options: PixelOptions) -> None:
    """Refuse files that would fill the memory with far more than they hold, unless the user chose the size."""
    whole = len(names) * pixels[0].size * (1 if options.grayscale else 3)
    if options.resolution is None and options.crop is None and whole > max(FREE, MAX_RATIO * packed):
        problem = f"{packed:,} bytes of files would unpack to {whole:,}"
        raise InputError("data.path", names[0], problem, "set data.resolution, or remove the files")


def _open(content: Callable[[str], Path | BytesIO], name: str) -> tuple[Image.Image, str, bool]:
    """Read one file upright, transparent parts on white: grey levels where it stores these, else RGB.

    Returns:
        the image, its format, and whether it is an animation.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(content(name), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width}x{image.height} px")
                if image.mode not in EIGHT_BIT_MODES:
                    # Pillow would clip 16-bit grey levels to white without a word.
                    problem = f"pixel mode {image.mode} has no 8-bit form"
                    raise Unreadable("not 8-bit", name, problem, "convert the file to 8 bits a channel")
                kind, mode = image.format or "?", image.mode
                several = bool(getattr(image, "is_animated", False))
                if several and kind == "TIFF":
                    problem = f"holds {getattr(image, 'n_frames', 2)} pages"
                    raise Unreadable("pages", name, problem, "save each page as a file of its own")
                rgb = _to_rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        problem = f"image too large to decode safely ({error})"
        raise Unreadable("too large", name, problem, "shrink it or remove it") from error
    except Exception as error:  # a hostile file chooses which one
        hint = f"replace or remove the file ({', '.join(FORMATS)} are read)"
        raise Unreadable("damaged", name, f"not a readable image ({type(error).__name__})", hint) from error
    return rgb.convert("L") if mode in GREY_MODES or (mode in ("P", "PA") and _is_grey(rgb)) else rgb, kind, several


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def _to_rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def as_channels(images: Tensor, channels: int) -> Tensor:
    """Grey images (m, 1, H, W) in three equal channels, or three equal ones as grey; others as they are."""
    if images.shape[1] == 1 and channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    if images.shape[1] == 3 and channels == 1 and bool((images == images[:, :1]).all()):
        return images[:, :1].contiguous()
    return images


def match_channels(images: Tensor, shape: tuple[int, ...], key: str) -> Tensor:
    """Bring images (m, C, H, W) to the channels of T where that loses nothing: grey in three equal channels and back.

    Raises:
        InputError: another size, or colour against grey.
    """
    images = as_channels(images, shape[0])
    if tuple(images.shape[1:]) != tuple(shape):
        problem = f"the training images have shape {list(shape)} (channels, height, width)"
        raise InputError(key, list(images.shape[1:]), problem, "convert them, or give the right training set")
    return images
