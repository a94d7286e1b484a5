"""The training set T and the held-out set H of an audit, from whatever the auditor has: a run, a record, or images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdmem.data.pixels import ImagePool
from cdmem.data.sources import load_source
from cdmem.data.subset import TrainingSet, content_digests, load_record
from cdmem.errors import InputError
from cdmem.io.text import parse_yaml, read_text
from cdmem.run.folder import CONFIG

RECORD = "training_set.json"
ARRAYS = (".npz", ".npy")
PIXEL_KEYS = ("crop", "grayscale", "resolution")
MAX_SIDE = 4096  # px; a record edited by hand must not ask for images that fill the memory


def read_images(path: str | Path, key: str) -> Tensor:
    """Images of an ``.npz``/``.npy`` file or a folder, uint8 (m, C, H, W), in file order.

    Raises:
        InputError: nothing there, unreadable or hostile content; names ``key``.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise InputError(key, path, "no such file or folder", "give a run folder, an .npz file or a folder of images")
    kind = "folder" if file.is_dir() else "array"
    try:
        return load_source(kind, str(file)).images
    except InputError as error:
        if error.key == "data.resolution":  # no option of an audit resizes
            raise InputError(key, path, error.problem, "give images of one size") from None
        raise InputError(key, error.value, error.problem, error.hint) from None


def match_channels(images: Tensor, shape: tuple[int, ...], key: str) -> Tensor:
    """Bring images (m, C, H, W) to the channels of T where that loses nothing: grey in three equal channels and back.

    Raises:
        InputError: another size, or colour against grey.
    """
    channels = images.shape[1]
    if channels == 3 and shape[0] == 1 and bool((images == images[:, :1]).all()):
        images = images[:, :1]
    elif channels == 1 and shape[0] == 3:
        images = images.expand(-1, 3, -1, -1).contiguous()
    if tuple(images.shape[1:]) != tuple(shape):
        problem = f"the training images have shape {list(shape)} (channels, height, width)"
        raise InputError(key, list(images.shape[1:]), problem, "convert them, or give the right training set")
    return images


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
        provenance=record["provenance"],
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
    return options | {"grayscale": bool(options["grayscale"])}


def _source_of(record: dict[str, Any], data: dict[str, Any], data_path: str | None) -> ImagePool:
    """All images of the source that a record names."""
    source, where = record["source"], None if record["source"] == "digits" else data_path or data.get("path")
    if source != "digits" and "." not in source and where is None:
        raise InputError("data_path", None, f"the record names {source}, but not where it lies", "give --data_path")
    try:
        return load_source(source, where, classes=record["provenance"].get("classes"), **_pixel_options(record))
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
    kind = "array" if outside.endswith(ARRAYS) else "folder"
    return _chosen(load_source(kind, outside, **_pixel_options(record)), indices, wrong)


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
    training_set: str, held_out: str | None, flip: bool, data_path: str | None = None
) -> tuple[TrainingSet, list[str]]:
    """T and H of an audit.

    Args:
        training_set: run folder, ``training_set.json``, ``.npz`` or folder of images.
        held_out: the same, or None; of a run it means *its* held-out images.
        flip: mirror images count as the same image; a record that says so wins.
        data_path: where the pixels of a record's source lie.

    Returns:
        the sets, and notes for people (what was removed, what is missing).

    Raises:
        InputError: anything unreadable, mismatched or too small.
    """
    notes = []
    if is_record(training_set):
        rebuilt = from_record(training_set, data_path)
        if flip and not rebuilt.flip:
            notes.append("--flip was added to a training set whose record says that it was not mirrored")
    else:
        rows = read_images(training_set, "training_set")
        rebuilt = from_rows(rows, rows[:0], flip, Path(training_set).name)
    held = rebuilt.held_out_images
    if held_out is not None:
        other = from_record(held_out, data_path, "held_out").held_out_images if is_record(held_out) else None
        held = match_channels(read_images(held_out, "held_out") if other is None else other, rebuilt.shape, "held_out")
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
