"""What the model may see: n distinct images, how often each is repeated, and a held-out set of others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdmem.data.duplication import multiplicities
from cdmem.data.pixels import ImagePool, match_channels
from cdmem.errors import InputError
from cdmem.images import HALF_RANGE
from cdmem.io.paths import usable_path
from cdmem.io.text import parse_json, read_text

LISTS = ("indices", "multiplicities", "held_out_indices", "shape")
UNRECORDED = "unrecorded"  # in place of the hash, where a model does not say what it was trained on
MAX_RECORD = 2**26  # bytes
RECORD_KEYS = {"n", "rows", "hash", "flip", *LISTS}


@dataclass(frozen=True)
class SubsetSpec:
    """Which part of a pool becomes the training set.

    Attributes:
        n: number of distinct images, at least 2.
        seed: of the choice, the order and the duplication.
        balance: take classes in turn, so that counts differ by at most one.
        duplication: none; ``[{"fraction": 0.1, "copies": 10}, ...]``;
            ``{"power_law": 1.0, "max_copies": 100}``; or a file (see `cdmem.data.duplication`).
        held_out: number of other images to set aside.
        flip: training mirrors images, so a mirrored copy counts as the same image.
    """

    n: int
    seed: int = 0
    balance: bool = False
    duplication: list[dict] | dict | str | None = None
    held_out: int = 0
    flip: bool = False


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The training set T (distinct images with multiplicities) and the held-out set H, disjoint by content.

    Attributes:
        images: T, grey levels uint8 (n, C, H, W), no two of equal content.
        labels: int64 (n,).
        indices: position in the source's own order, int64 (n,).
        multiplicities: rows of every image, int64 (n,), at least 1.
        held_out_images: H, uint8 (h, C, H, W); h may be 0.
        held_out_labels: int64 (h,).
        held_out_indices: int64 (h,), in the source that H came from.
        flip: training mirrors images.
        class_names: names of the classes; empty without labels.
        source: name of the source.
        provenance: where the pixels come from, JSON types.
        spec: the `SubsetSpec` as a dict of JSON types.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    multiplicities: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    held_out_indices: Tensor
    flip: bool
    class_names: tuple[str, ...]
    source: str
    provenance: dict[str, object]
    spec: dict[str, object]

    @property
    def rows(self) -> int:
        """Size of the training set with repetitions, sum of the multiplicities."""
        return int(self.multiplicities.sum())

    @cached_property
    def row_to_group(self) -> Tensor:
        """Image of every row, int64 (rows,)."""
        return torch.repeat_interleave(torch.arange(len(self.images)), self.multiplicities)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of shape, flip and the sorted (image, multiplicity) pairs: the same set in any order."""
        return _set_hash(self.images, self.multiplicities, self.flip)

    @cached_property
    def held_out_hash(self) -> str:
        """The same hash for H, every multiplicity 1."""
        return _set_hash(self.held_out_images, torch.ones_like(self.held_out_indices), self.flip)

    @cached_property
    def sigma_data(self) -> float:
        """EDM's sigma_data: population standard deviation of all pixel values in [-1, 1], rows counted.

        One mean for all pixels and channels. From an exact histogram of the 256 grey levels, in float64.
        """
        counts = np.zeros(256, np.int64)
        for image, copies in zip(self.images.numpy(), self.multiplicities.tolist()):
            counts += copies * np.bincount(image.ravel(), minlength=256)
        levels = np.arange(256, dtype=np.float64) / HALF_RANGE
        mean = (counts * levels).sum() / counts.sum()
        return float(np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()))

    def record(self) -> dict[str, object]:
        """What identifies this set, in JSON types: the content of ``training_set.json``."""
        return {
            "n": len(self.images),
            "rows": self.rows,
            "hash": self.hash,
            "held_out": len(self.held_out_images),
            "held_out_hash": self.held_out_hash,
            "indices": self.indices.tolist(),
            "multiplicities": self.multiplicities.tolist(),
            "held_out_indices": self.held_out_indices.tolist(),
            "flip": self.flip,
            "shape": list(self.shape),
            "class_names": list(self.class_names),
            "source": self.source,
            "provenance": self.provenance,
            "spec": self.spec,
        }


def choose(pool: ImagePool, spec: SubsetSpec, held_out_pool: ImagePool | None = None) -> TrainingSet:
    """Choose T and H.

    Repeated content is dropped from the pool first. One seeded permutation of the rest is read from the
    front for T, so T of 64 images is the beginning of T of 128, and from the back for H, so H is the same
    for every n.

    Args:
        pool: images to choose from.
        spec: what to choose.
        held_out_pool: take H from this pool instead: its first ``spec.held_out`` distinct images in its own
            order, all of them if 0.

    Raises:
        InputError: more images asked for than there are, H that overlaps T, or a spec that makes no sense.
    """
    _check(spec, pool)
    distinct = _first_occurrences(pool.images, spec.flip)
    if held_out_pool is None:
        chosen, rest = _split(pool, distinct, spec)
        other, provenance = pool, pool.provenance
    else:
        chosen, _ = _split(pool, distinct, SubsetSpec(spec.n, spec.seed, spec.balance))
        held_out_images = match_channels(held_out_pool.images, tuple(pool.images.shape[1:]), "data.held_out_path")
        other = replace(held_out_pool, images=held_out_images)
        rest = _external(other, pool.images[chosen], spec)
        provenance = pool.provenance | {"held_out": {"source": other.source, **other.provenance}}
    recorded = asdict(spec)
    if isinstance(spec.duplication, str):
        recorded["duplication"] = Path(spec.duplication).name  # the numbers themselves are in the record
    return TrainingSet(
        images=pool.images[chosen],
        labels=pool.labels[chosen],
        indices=pool.indices[chosen],
        multiplicities=multiplicities(spec.duplication, spec.n, spec.seed),
        held_out_images=other.images[rest],
        held_out_labels=other.labels[rest],
        held_out_indices=other.indices[rest],
        flip=spec.flip,
        class_names=pool.class_names,
        source=pool.source,
        provenance=provenance,
        spec=recorded,
    )


def load_record(path: str | Path) -> dict[str, object]:
    """Read a ``training_set.json``, or the one in a run folder.

    Raises:
        InputError: no such file, no JSON, or not a record of a training set.
    """
    file = usable_path("training_set", path)
    file = file / "training_set.json" if file.is_dir() else file
    hint = "name the training_set.json that a run wrote"
    try:
        record = parse_json(read_text(file, MAX_RECORD))
    except (OSError, ValueError) as error:
        raise InputError("training_set", path, f"unreadable ({type(error).__name__})", hint) from error
    known = isinstance(record, dict) and record.keys() >= RECORD_KEYS
    if not known or not all(isinstance(record[key], list) for key in LISTS):
        raise InputError("training_set", path, "not a record of a training set", hint)
    if not len(record["indices"]) == len(record["multiplicities"]) == record["n"]:
        raise InputError("training_set", path, "its lists do not have n entries", hint)
    return record


def _check(spec: SubsetSpec, pool: ImagePool) -> None:
    if spec.n < 2:
        raise InputError("data.n", spec.n, "a training set has at least 2 images", "use 2 or more")
    if spec.held_out < 0:
        raise InputError("data.held_out", spec.held_out, "a number of images", "use 0 or more")
    if not 0 <= spec.seed < 2**63:
        raise InputError("data.seed", spec.seed, "out of range", "use 0 .. 2**63 - 1")
    if spec.balance and not pool.class_names:
        raise InputError("data.balance", True, f"{pool.source} has no labels", "set data.balance=false")


def _split(pool: ImagePool, distinct: Tensor, spec: SubsetSpec) -> tuple[Tensor, Tensor]:
    """Positions in the pool of T (n,) and H (held_out,), from the two ends of one permutation."""
    order = distinct[torch.randperm(len(distinct), generator=torch.Generator().manual_seed(spec.seed))]
    classes = pool.labels[order] if spec.balance else torch.zeros_like(order)
    rest = _in_turn(classes.flip(0), spec.held_out)
    room = 0
    if rest is not None:
        rest = len(order) - 1 - rest  # back to positions in `order`
        left = torch.ones(len(order), dtype=torch.bool)
        left[rest] = False
        # The class in place c of K runs out when its turn number left_c comes, at c + K left_c.
        present = classes.unique().tolist()
        places = (c + len(present) * int(left[classes == k].sum()) for c, k in enumerate(present))
        room = min(places, default=0)
    front = _in_turn(classes, spec.n) if spec.n <= room else None
    if rest is None or front is None:
        kind = "distinct images" + (", balanced" if spec.balance else "")
        problem = f"training and held-out would overlap: {len(order)} {kind}, {spec.held_out} held out"
        hint = f"use at most {room}" if room >= 2 else "lower data.held_out"
        raise InputError("data.n", spec.n, problem, hint)
    return order[front], order[rest]


def _in_turn(classes: Tensor, count: int) -> Tensor | None:
    """First ``count`` places of a sequence of classes (N,), one class after the other; None if one runs out.

    With a single class these are 0..count-1. A longer choice begins with every shorter one.
    """
    if count > len(classes):  # before a range of a mistyped number is counted
        return None
    present = classes.unique()
    places = [torch.nonzero(classes == k).flatten() for k in present]
    quota = [len(range(c, count, len(places))) for c in range(len(places))]
    if sum(quota) < count or any(q > len(p) for q, p in zip(quota, places)):
        return None
    taken = torch.empty(count, dtype=torch.int64)
    for c, (q, p) in enumerate(zip(quota, places)):
        taken[c :: len(places)] = p[:q]
    return taken


def _external(pool: ImagePool, training: Tensor, spec: SubsetSpec) -> Tensor:
    """Positions of H in a pool of its own (h,), checked against the training images (n, C, H, W)."""
    key = "data.held_out_path"
    distinct = _first_occurrences(pool.images, spec.flip)
    if spec.held_out > len(distinct):
        problem = f"the held-out source has {len(distinct)} distinct images"
        raise InputError("data.held_out", spec.held_out, problem, f"use at most {len(distinct)}")
    rest = distinct[: spec.held_out] if spec.held_out else distinct
    seen = set(content_digests(training, spec.flip))
    overlap = sum(digest in seen for digest in content_digests(pool.images[rest], spec.flip))
    if overlap:
        problem = f"{overlap} of {len(rest)} held-out images are also training images"
        raise InputError(key, pool.source, problem, "remove them, or choose other images")
    return rest


def content_digests(images: Tensor, flip: bool = False) -> list[bytes]:
    """SHA-256 of every image (B, C, H, W); with ``flip`` an image and its mirror image have the same one."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images.numpy()]
    return list(map(min, digests, content_digests(images.flip(-1)))) if flip else digests


def numbered(keys: Iterable[bytes]) -> Tensor:
    """Group of every key, numbered by first occurrence, int64 (n,)."""
    seen: dict[bytes, int] = {}
    return torch.tensor([seen.setdefault(key, len(seen)) for key in keys], dtype=torch.int64)


def group_ids(images: Tensor) -> Tensor:
    """Group of every image by content, numbered by first occurrence: uint8 (n, C, H, W) -> int64 (n,)."""
    return numbered(content_digests(images))


def first_rows(groups: Tensor, positions: Tensor | None = None) -> Tensor:
    """Lowest of the positions (0, 1, ... by default) of every group, ascending by group: int64 (n,) -> (groups,)."""
    positions = torch.arange(len(groups)) if positions is None else positions
    numbers = torch.unique(groups, return_inverse=True)[1]
    first = torch.full((int(numbers.max()) + 1 if len(numbers) else 0,), len(groups), dtype=torch.int64)
    return first.scatter_reduce(0, numbers, positions, "amin")


def _first_occurrences(images: Tensor, flip: bool) -> Tensor:
    """Positions, ascending, of the first image of every content."""
    return first_rows(numbered(content_digests(images, flip)))


def _set_hash(images: Tensor, copies: Tensor, flip: bool) -> str:
    pairs = sorted(zip(content_digests(images), copies.tolist()))
    total = hashlib.sha256(f"{tuple(images.shape[1:])} {bool(flip)}\n".encode())
    for digest, multiplicity in pairs:
        total.update(digest + multiplicity.to_bytes(8, "big"))
    return total.hexdigest()
