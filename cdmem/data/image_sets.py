"""The one reader of images that are not a published source: a folder, an archive or a file, whatever they are for.

Training data, held-out data, the reference sets of an audit and generated images pass through it alike. Everything
below the path is read or counted; pictures that would be left out are an error unless ``skip_unreadable``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from itertools import chain
from pathlib import Path

import torch

from cdmem.data.counts import counted
from cdmem.data.file_kinds import Kinds, mixed_stems, sorted_out, splits
from cdmem.data.file_trees import Folder, Tree, open_archive
from cdmem.data.image_arrays import MAX_CLASSES, read_array, read_idx
from cdmem.data.parquet import read_parquet
from cdmem.data.pickled_batches import PART_NAMES, read_pickled
from cdmem.data.pixels import SKIP, ImagePool, PixelOptions, decode
from cdmem.errors import InputError
from cdmem.io.arrays import UNREADABLE
from cdmem.io.text import parse_json

LABELS = "dataset.json"  # of EDM: {"labels": [["00000/img00000000.png", 6], ...]}
MAX_LABELS = 2**27  # bytes; ImageNet's has 45 MB
KINDS = "a folder or .zip of pictures, an .npz, .npy, .parquet or idx file, or CIFAR's Python batches"


def read_image_set(path: Path | None, options: PixelOptions, download: bool = False) -> ImagePool:
    """All images of a folder or file, in the order of names or rows.

    Pictures below a folder or in a zip are sorted by relative path; grey where all are stored as grey levels, else RGB.
    Where every one lies in a sub-folder, the first one names its class; EDM's ``dataset.json`` goes before that.

    Raises:
        InputError: nothing that is read, pictures that would be left out, several parts (train, test) in one, different
            sizes, or links out of the folder.
    """
    if path is None or not path.exists():
        raise InputError("data.path", path, "no such file or folder", f"give {KINDS}")
    if path.is_dir():
        return _read_tree(Folder(path), options)
    if not path.is_file():
        raise InputError("data.path", path, "is no regular file", f"give {KINDS}")
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        return read_array(path, options)
    if suffix == ".zip":
        with open_archive(path) as archive:
            return _read_tree(archive, options)
    if suffix == ".parquet":
        return read_parquet([path], options)
    with path.open("rb") as stream:
        head = stream.read(4)
    if head[:2] == b"\x1f\x8b" or (head[:3] == b"\0\0\x08" and head[3:] in b"\3\4"):
        return read_idx(path, options)
    if head[:1] == b"\x80":
        return read_pickled([path], options)
    raise InputError("data.path", path, "is no image set", f"give {KINDS}")


def _read_tree(tree: Tree, options: PixelOptions) -> ImagePool:
    kinds = sorted_out(tree)
    parts = splits(chain(kinds.pictures, *kinds.containers.values()))
    if parts is not None:
        place, names = parts
        problem = f"holds parts, not classes: {', '.join(names[:8])}{f' in {place}' if place else ''}"
        hint = "name the sub-folder of one part; the other is for held_out_path of training, or --held_out of an audit"
        raise InputError("data.path", tree.title, problem, hint)
    if not kinds.pictures and isinstance(tree, Folder) and kinds.containers:
        return _read_containers(tree, kinds, options)
    for kind, names in kinds.containers.items():
        for name in names:
            kinds.refuse(f"{kind} files beside pictures", name)
    labels = _edm_labels(tree, kinds, options)
    loose = [name for name in kinds.pictures if "/" not in name]
    if labels is None and 0 < len(loose) < len(kinds.pictures):
        kinds.pictures = [name for name in kinds.pictures if "/" in name]
        for name in loose:
            kinds.refuse("beside the class folders", name)
    _refuse_unread(tree, kinds, options)
    if not kinds.pictures:
        others = ", ".join(f"{count} {name}" for name, count in sorted(kinds.skipped.items()))
        problem = "no image files below it" + (f", only {others}" if others else "")
        raise InputError("data.path", tree.title, problem, f"give {KINDS}")
    return _read_pictures(tree, kinds, labels, options)


def _refuse_unread(tree: Tree, kinds: Kinds, options: PixelOptions) -> None:
    """Pictures that would be left out: an error, or counted where the user says so."""
    if kinds.unread and not options.skip_unreadable:
        reason, count = kinds.unread.most_common(1)[0]
        total = sum(kinds.unread.values())
        problem = f"{total} of its pictures would not be read ({count} {reason}: {kinds.example[reason]})"
        raise InputError("data.path", tree.title, problem, f"convert, move or remove them, {SKIP}")
    kinds.skipped += kinds.unread


def _read_pictures(tree: Tree, kinds: Kinds, labels: Mapping[str, int] | None, options: PixelOptions) -> ImagePool:
    names = kinds.pictures
    made = decode(names, tree.open, tree.packed(names), options)
    kept = [names[k] for k in made.kept]
    classes: list[str] = []
    if labels is not None:
        classes = [str(k) for k in range(max(labels.values(), default=-1) + 1)]
        numbers = [labels.get(name, 0) for name in kept]
    else:
        classes = sorted({name.split("/")[0] for name in names}) if "/" in names[0] else []
        number = {name: k for k, name in enumerate(classes)}
        numbers = [number.get(name.split("/")[0], 0) for name in kept]
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
    counts = counted(len(kept), made.formats, kinds.skipped + made.skipped, made.notes)
    return ImagePool(
        images=made.images,
        labels=torch.tensor(numbers, dtype=torch.int64),
        class_names=tuple(classes),
        indices=torch.tensor(made.kept),
        source="folder",
        provenance={"files": len(names), "names_sha256": digest} | counts,
    )


def _edm_labels(tree: Tree, kinds: Kinds, options: PixelOptions) -> dict[str, int] | None:
    """Class of every picture by EDM's ``dataset.json``: empty where it says that there are none, None without it."""
    if LABELS not in tree.names or LABELS in tree.odd or not kinds.pictures:
        return None
    try:
        opened = tree.open(LABELS)
        with opened if isinstance(opened, BytesIO) else opened.open("rb") as stream:
            content = stream.read(MAX_LABELS + 1)
        if len(content) > MAX_LABELS:
            raise ValueError(f"larger than {MAX_LABELS:,} bytes")
        about = parse_json(content.decode())
        if not isinstance(about, dict) or "labels" not in about:
            return None  # somebody else's file of that name: counted as any other
        kinds.skipped[".json"] -= 1
        kinds.skipped = +kinds.skipped
        if about["labels"] is None:
            return {}
        labels = dict(about["labels"])
        if not all(type(label) is int and 0 <= label < MAX_CLASSES for label in labels.values()):
            raise ValueError(f"labels are no whole numbers 0..{MAX_CLASSES - 1}")
        without = set(kinds.pictures) - labels.keys()
        missing = set() if options.skip_unreadable else labels.keys() - set(kinds.pictures)
        if without or missing:
            problem = f"{len(without)} pictures are not in it, {len(missing)} of its names are no pictures"
            raise ValueError(f"{problem}, first {min(without or missing)}")
    except UNREADABLE as error:
        problem = f"its {LABELS} is not EDM's ({str(error)[:160]})"
        raise InputError(
            "data.path", tree.title, problem, "make it anew, or remove it to train without labels"
        ) from None
    return labels


def _read_containers(folder: Folder, kinds: Kinds, options: PixelOptions) -> ImagePool:
    """A folder of files that hold many images each: all of one kind and one part."""
    kind, names = max(kinds.containers.items(), key=lambda item: len(item[1]))
    for other in set(kinds.containers) - {kind}:
        for name in kinds.containers[other]:
            kinds.refuse(f"{other} files beside {kind} files", name)
    if kind == "pickle":
        training = [name for name in names if not name.endswith("test_batch")]
        kinds.skipped["CIFAR's test part"] += len(names) - len(training) if training else 0
        names = training or names
    if (kind == "idx" and len(names) > 1) or mixed_stems(names):
        problem = f"holds several parts: {', '.join(sorted(names)[:6])}"
        hint = "name the file of one; the other is for held_out_path of training, or --held_out of an audit"
        raise InputError("data.path", folder.title, problem, hint)
    _refuse_unread(folder, kinds, options)
    files = [folder.open(name) for name in names]
    read = {"parquet": read_parquet, "pickle": read_pickled, "idx": lambda files, options: read_idx(files[0], options)}
    pool = read[kind](files, options)
    for name in folder.names:  # what the reader has opened beside the images
        path = Path(name)
        if (path.name in PART_NAMES and kind == "pickle") or ("idx1" in path.name and kind == "idx"):
            kinds.skipped[path.suffix or "without a suffix"] -= 1
    return with_skipped(pool, +kinds.skipped)


def with_skipped(pool: ImagePool, skipped: Counter[str]) -> ImagePool:
    """The pool with further files counted."""
    about = dict(pool.provenance["images"])  # type: ignore[call-overload]
    about["skipped"] = dict(sorted((Counter(about["skipped"]) + skipped).items()))
    return replace(pool, provenance=pool.provenance | {"images": about})
