"""Images that exist under audit, alone or beside the images of their teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdmem.audit.generators import Generator
from cdmem.audit.reference_sets import read_images, read_seeds
from cdmem.data.pixels import PixelOptions
from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError


@dataclass
class GivenImages:
    """A sampler over images that exist.

    Attributes:
        images: uint8 (m, C, H, W).
        seeds: that they were made from; their numbers where nobody says.
    """

    images: Tensor
    seeds: list[int]
    nfe: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def __call__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """The images themselves, uint8, so that no rounding touches them."""
        place = {seed: k for k, seed in enumerate(self.seeds)}
        return self.images[[place[seed] for seed in seeds]].to(device)


def open_images(
    path: Path, training_set: TrainingSet, teacher: str | None, options: PixelOptions
) -> tuple[list[Generator], dict[str, Any], list[str]]:
    """Images that exist, alone or beside the images of their teacher: by their seeds, or row by row."""
    notes: list[str] = []
    unknown = "images of unknown training: convergence is unknown"
    given = _given_images(path, "generator", training_set, options, notes)
    if teacher is None:
        return [given], {}, [*notes, unknown]
    original = _given_images(Path(teacher).expanduser(), "teacher", training_set, options, notes)
    ours, theirs = (g.sampler.seeds for g in (given, original))  # type: ignore[attr-defined]
    if len(ours) != len(theirs):
        problem = f"holds {len(theirs)} images, the generator {len(ours)}"
        raise InputError("teacher", teacher, problem, "give one image of each for every seed")
    if set(ours) != set(theirs):
        other = min(set(theirs) - set(ours))
        problem = f"is of other seeds than the generator (such as {other})"
        raise InputError(
            "teacher", teacher, problem, "make both from the same seeds, or leave `seeds` out of both files"
        )
    pair = [replace(original, name="teacher", role="teacher"), replace(given, name="student", role="student")]
    return pair, {}, [*notes, unknown]


def _given_images(
    path: Path, key: str, training_set: TrainingSet, options: PixelOptions, notes: list[str]
) -> Generator:
    if not path.exists():
        raise InputError(key, path, "no such file or folder", "give images: a folder or an .npz")
    images = read_images(path, key, options, notes, training_set.shape)
    if len(images) < 2:
        raise InputError(key, path, f"holds {len(images)} image", "an audit needs at least 2")
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    sampler = GivenImages(images, read_seeds(path, key, len(images)))
    return Generator("images", "images", "given", sampler, "given", None, digest)
