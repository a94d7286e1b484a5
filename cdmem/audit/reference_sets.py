"""The training set T and the held-out set H of an audit, from whatever the auditor has: a run, a record, or images."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdmem.data.counts import KEY, report, told
from cdmem.data.pixels import ImagePool, PixelOptions, as_channels, match_channels
from cdmem.data.sources import load_source
from cdmem.data.subset import TrainingSet, content_digests, load_record
from cdmem.errors import InputError
from cdmem.io.arrays import UNREADABLE, read_arrays
from cdmem.io.text import parse_yaml, read_text
from cdmem.run.folder import CONFIG

RECORD = "training_set.json"
AS_STORED = PixelOptions()
PIXEL_KEYS = ("crop", "grayscale", "resolution", "skip_unreadable")
MAX_SIDE = 4096  # px; a record edited by hand must not ask for images that fill the memory


def read_images(
    path: str | Path,
    key: str,
    options: PixelOptions = AS_STORED,
    notes: list[str] | None = None,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Images of a folder or file, uint8 (m, C, H, W), in file order; see `cdmem.data.image_sets`.

    Args:
        path, key: where they lie; the option that says so.
        options: what is done to every image.
        notes: what was read and what was not is added here.
        shape: (C, H, W) of the training images that they have to fit.

    Raises:
        InputError: nothing there, unreadable or hostile content, another shape; names ``key``.
    """
    try:
        pool = load_source("folder", str(path), **asdict(options))
    except InputError as error:
        hint = error.hint.replace("data.", "--")
        if error.key == "data.crop":
            raise InputError("crop", options.crop, f"{error.problem} of --{key}", hint) from None
        one_size = error.key == "data.resolution"
        hint = "give images of one size, or bring them to one by --resolution or --crop" if one_size else hint
        raise InputError(key, path if one_size else error.value, error.problem, hint) from None
    notes = [] if notes is None else notes
    notes.append(f"{key}: {told(pool.provenance)}")
    if shape is None:
        return pool.images
    fitting = match_channels(pool.images, shape, key)
    if fitting.shape != pool.images.shape:
        grey = "grey images were compared as three equal channels: the training images are in colour"
        equal = "images of three equal channels were compared as grey: the training images are grey"
        notes.append(f"{key}: {grey if shape[0] == 3 else equal}")
    return fitting


def read_seeds(path: str | Path, key: str, count: int) -> list[int]:
    """Seeds that images were made from: ``seeds`` of an .npz, or their numbers from 0.

    Raises:
        InputError: not one whole number for each image, or one twice.
    """
    file = Path(path)
    try:
        seeds = read_arrays(file, ("seeds",)).get("seeds") if file.suffix == ".npz" else None
    except UNREADABLE as error:
        raise InputError(
            key, path, f"its seeds cannot be read ({type(error).__name__})", "write the file anew"
        ) from None
    if seeds is None:
        return list(range(count))
    if seeds.dtype.kind not in "iu" or seeds.shape != (count,) or len(np.unique(seeds)) != count:
        problem = f"its seeds are not {count} different whole numbers, one for each image"
        raise InputError(key, path, problem, "correct them, or leave `seeds` out of the file")
    return seeds.astype(np.int64).tolist()


def is_record(path: str | Path) -> bool:
    """Whether a path is a run folder's (or a study's) training set."""
    file = Path(path)
    return file.suffix == ".json" or (file.is_dir() and (file / RECORD).is_file())


def _data_section(folder: Path) -> dict[str, Any]:
    """The ``data`` settings of the run that wrote a record; empty when there is no config beside it."""
    for file in (folder / CONFIG, folder / "teacher" / CONFIG):
        try:
            settings = parse_yaml(read_text(file))
        except (OSError, ValueError):
            continue
        data = settings.get("data") if isinstance(settings, dict) else None
        if isinstance(data, dict) and "source" in data:
            return {k: v for k, v in data.items() if isinstance(v, str)}  # all that is asked for are paths
    return {}


def _whole(values: Any, least: int) -> bool:
    return isinstance(values, list) and all(type(v) is int and least <= v < 2**31 for v in values)


def _checked(path: str | Path, key: str) -> dict[str, Any]:
    """The record of :func:`load_record` with every field of its own type: it may have been edited by hand.

    Raises:
        InputError: naming the field.
    """
    try:
        record = load_record(path)
    except InputError as error:
        raise InputError(key, error.value, error.problem, error.hint) from None
    about, names = record.get("provenance"), record.get("class_names", [])
    right = {
        "indices": _whole(record["indices"], 0),
        "multiplicities": _whole(record["multiplicities"], 1),
        "held_out_indices": _whole(record["held_out_indices"], 0),
        "shape": _whole(record["shape"], 1) and len(record["shape"]) == 3 and max(record["shape"]) <= MAX_SIDE,
        "hash": isinstance(record["hash"], str),
        "flip": isinstance(record["flip"], bool),
        "source": isinstance(record.get("source"), str),
        "class_names": isinstance(names, list) and all(isinstance(n, str) for n in names),
        "spec": isinstance(record.get("spec", {}), dict),
        "provenance": isinstance(about, dict),
    }
    if right["provenance"] and right["shape"]:
        crop, side, classes = (about.get(name) for name in ("crop", "resolution", "classes"))
        whole = isinstance(classes, list) and all(isinstance(c, int | str) for c in classes)
        right["provenance.crop"] = crop is None or _whole([crop], 1)
        right["provenance.resolution"] = side is None or (type(side) is int and side == record["shape"][1])
        right["provenance.classes"] = classes is None or whole
    wrong = next((name for name, fine in right.items() if not fine), None)
    if wrong is not None:
        raise InputError(key, path, f"its field {wrong} is invalid", "name the training_set.json that a run wrote")
    return record


def from_record(path: str | Path, data_path: str | None = None, key: str = "training_set") -> TrainingSet:
    """Rebuild the training set that a record names, and prove it by its hash.

    Args:
        path: ``training_set.json`` or a folder that holds it.
        data_path: where the source's files lie now; None takes the path in the config beside the record.
        key: option named in errors.

    Raises:
        InputError: no record, no pixels, or pixels that are not those of the record.
    """
    record = _checked(path, key)
    data = _data_section(Path(path) if Path(path).is_dir() else Path(path).parent)
    pool = _source_of(record, data, data_path)
    wrong = InputError(key, path, f"names images that {record['source']} does not have", "give its data by --data_path")
    train, labels = _chosen(pool, record["indices"], wrong)
    held, held_labels = _held_out(record, data, pool, wrong)
    rebuilt = TrainingSet(
        images=train,
        labels=labels,
        indices=torch.tensor(record["indices"], dtype=torch.int64),
        multiplicities=torch.tensor(record["multiplicities"], dtype=torch.int64),
        held_out_images=held,
        held_out_labels=held_labels,
        held_out_indices=torch.tensor(record["held_out_indices"][: len(held)], dtype=torch.int64),
        flip=record["flip"],
        class_names=tuple(record.get("class_names", ())),
        source=record["source"],
        provenance={**record["provenance"], KEY: pool.provenance.get(KEY)},
        spec=record.get("spec", {}),
    )
    if rebuilt.hash != record["hash"]:
        hashes = f"hash {rebuilt.hash[:12]}, not {record['hash'][:12]}"
        problem = f"the pixels of {rebuilt.source} are not those of the record ({hashes})"
        raise InputError(key, path, problem, "give the data that the run was trained on, by --data_path")
    whole = len(held) == len(record["held_out_indices"])
    if whole and record.get("held_out_hash", rebuilt.held_out_hash) != rebuilt.held_out_hash:
        hint = "give the data of the run, by --data_path, or its own training_set.json"
        raise InputError(key, path, "the held-out images are not those of the record", hint)
    return rebuilt


def _pixel_options(record: dict[str, Any]) -> dict[str, Any]:
    options = {name: record["provenance"].get(name) for name in PIXEL_KEYS}
    return options | {name: bool(options[name]) for name in ("grayscale", "skip_unreadable")}


def _source_of(record: dict[str, Any], data: dict[str, Any], data_path: str | None) -> ImagePool:
    """All images of the source that a record names."""
    source, where = record["source"], None if record["source"] == "digits" else data_path or data.get("path")
    if source != "digits" and "." not in source and where is None:
        raise InputError("data_path", None, f"the record names {source}, but not where it lies", "give --data_path")
    try:
        pool = load_source(source, where, classes=record["provenance"].get("classes"), **_pixel_options(record))
        # A record of before grey sets were trained as grey has three equal channels.
        return replace(pool, images=as_channels(pool.images, record["shape"][0]))
    except InputError as error:
        if error.key == "data.source":
            raise
        name = "data_path" if error.key == "data.path" else error.key
        raise InputError(name, error.value, error.problem, f"{error.hint}, or say by --data_path where it is") from None
    except RuntimeError as error:  # ~ of a user that is not there
        raise InputError("data_path", where, str(error), "give --data_path") from None


def _chosen(pool: ImagePool, indices: list[int], wrong: InputError) -> tuple[Tensor, Tensor]:
    """Images and labels of a pool by the source's own numbers; raises ``wrong`` for numbers that it has not."""
    place = {int(index): k for k, index in enumerate(pool.indices.tolist())}
    if not place.keys() >= set(indices):
        raise wrong
    rows = torch.tensor([place[index] for index in indices], dtype=torch.int64)
    return pool.images[rows], pool.labels[rows]


def _held_out(
    record: dict[str, Any], data: dict[str, Any], pool: ImagePool, wrong: InputError
) -> tuple[Tensor, Tensor]:
    """H of a record: from the same source, or from the file beside it that the config names; none without its name."""
    indices = record["held_out_indices"]
    if "held_out" not in record["provenance"]:
        return _chosen(pool, indices, wrong)
    outside = data.get("held_out_path")
    if outside is None:
        return pool.images[:0], pool.labels[:0]
    other = load_source("folder", outside, **_pixel_options(record))
    return _chosen(replace(other, images=as_channels(other.images, record["shape"][0])), indices, wrong)


def from_rows(rows: Tensor, held_out: Tensor, flip: bool, source: str) -> TrainingSet:
    """T from rows: repeated rows become one image with its multiplicity.

    Args:
        rows: uint8 (N, C, H, W).
        held_out: H, uint8 (h, C, H, W), disjoint from T.
        flip: training mirrored images.
        source: for the record.
    """
    first: dict[bytes, int] = {}
    groups = torch.tensor([first.setdefault(d, len(first)) for d in content_digests(rows)], dtype=torch.int64)
    position = torch.full((len(first),), len(rows), dtype=torch.int64)
    position = position.scatter_reduce(0, groups, torch.arange(len(rows)), "amin")
    return TrainingSet(
        images=rows[position],
        labels=torch.zeros(len(position), dtype=torch.int64),
        indices=position,
        multiplicities=torch.bincount(groups, minlength=len(first)),
        held_out_images=held_out,
        held_out_labels=torch.zeros(len(held_out), dtype=torch.int64),
        held_out_indices=torch.arange(len(held_out)),
        flip=flip,
        class_names=(),
        source=source,
        provenance={"rows": len(rows)},
        spec={},
    )


def disjoint(held_out: Tensor, training: Tensor, flip: bool) -> tuple[Tensor, int, int]:
    """H without what is in T and without repetitions.

    Returns:
        the images kept, how many were training images, how many were repetitions.
    """
    seen, shared, repeated = set(content_digests(training, flip)), 0, 0
    fresh: dict[bytes, int] = {}
    for k, digest in enumerate(content_digests(held_out, flip)):
        if digest in seen:
            shared += 1
        elif digest in fresh:
            repeated += 1
        else:
            fresh[digest] = k
    return held_out[list(fresh.values())], shared, repeated


def load_references(
    training_set: str,
    held_out: str | None,
    flip: bool,
    data_path: str | None = None,
    options: PixelOptions = AS_STORED,
) -> tuple[TrainingSet, list[str]]:
    """T and H of an audit.

    Args:
        training_set: run folder, ``training_set.json``, or images.
        held_out: the same, or None; of a run it means *its* held-out images.
        flip: mirror images count as the same image; a record that says so wins.
        data_path: where the pixels of a record's source lie.
        options: what is done to images that no record describes.

    Returns:
        the sets, and notes for people (what was read, what was removed, what is missing).

    Raises:
        InputError: anything unreadable, mismatched or too small.
    """
    notes: list[str] = []
    if is_record(training_set):
        rebuilt = from_record(training_set, data_path)
        notes += report(rebuilt.provenance, "training_set", "its held-out images")
        if flip and not rebuilt.flip:
            notes.append("--flip was added to a training set whose record says that it was not mirrored")
    else:
        rows = read_images(training_set, "training_set", options, notes)
        rebuilt = from_rows(rows, rows[:0], flip, Path(training_set).name)
    held = rebuilt.held_out_images
    if held_out is not None:
        if is_record(held_out):
            held = match_channels(
                from_record(held_out, data_path, "held_out").held_out_images, rebuilt.shape, "held_out"
            )
        else:
            held = read_images(held_out, "held_out", options, notes, rebuilt.shape)
    mirrored = flip or rebuilt.flip
    held, shared, repeated = disjoint(held, rebuilt.images, mirrored)
    if shared:
        notes.append(f"{shared} of the held-out images are training images and were removed")
    if repeated:
        notes.append(f"{repeated} repeated held-out images were removed")
    if len(held) < 2:
        notes.append("no held-out images: the held-out control, quality to H and the copying baselines are missing")
        held = held[:0]
    return with_held_out(rebuilt, held, mirrored), notes


def with_held_out(training_set: TrainingSet, held_out: Tensor, flip: bool) -> TrainingSet:
    """The same T beside another H."""
    t, same = training_set, torch.equal(held_out, training_set.held_out_images)
    if flip == t.flip and same:
        return t
    return replace(
        t,
        held_out_images=held_out,
        # Other images come without labels; -1 is no class, so that nothing takes them for the first one.
        held_out_labels=t.held_out_labels if same else torch.full((len(held_out),), -1),
        held_out_indices=torch.arange(len(held_out)),
        flip=flip,
    )
