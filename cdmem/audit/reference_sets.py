"""The training set T and the held-out set H of an audit, from whatever the auditor has: a run, a record, or images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
        raise InputError(key, error.value, error.problem, error.mend) from None


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
        raise InputError(key, error.value, error.problem, error.mend) from None
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
        sides = {None, record["shape"][1]}
        right["provenance.crop"] = about.get("crop") is None or _whole([about["crop"]], 1)
        right["provenance.resolution"] = not isinstance(about.get("resolution"), list | dict | float) and (
            about.get("resolution") in sides
        )
        classes = about.get("classes")
        whole = isinstance(classes, list) and all(isinstance(c, int | str) for c in classes)
        right["provenance.classes"] = classes is None or whole
    for name, fine in right.items():
        if not fine:
            raise InputError(
                key, path, f"its field {name} makes no sense", "name the training_set.json that a run wrote"
            )
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
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    data, about = _data_section(folder), record["provenance"]
    source = str(record["source"])
    where = None if source == "digits" else data_path or data.get("path")
    if source != "digits" and where is None:
        raise InputError("data_path", None, f"the record names {source}, but not where it lies", "give --data_path")
    pixels = {name: about.get(name) for name in PIXEL_KEYS}
    try:
        pool = load_source(
            source, where, classes=about.get("classes"), **{**pixels, "grayscale": bool(pixels["grayscale"])}
        )
    except InputError as error:
        name = "data_path" if error.key == "data.path" else error.key
        raise InputError(name, error.value, error.problem, f"{error.mend}, or say by --data_path where it is") from None
    except RuntimeError as error:  # ~ of a user that is not there
        raise InputError("data_path", where, str(error), "give --data_path") from None
    place = {int(index): k for k, index in enumerate(pool.indices.tolist())}

    def images(indices: list[int], of: Any, places: dict[int, int]) -> tuple[Tensor, Tensor]:
        try:
            rows = torch.tensor([places[int(i)] for i in indices], dtype=torch.int64)
        except KeyError:
            problem = f"names images that {source} does not have"
            raise InputError(key, path, problem, "give the same data, by --data_path") from None
        return of.images[rows], of.labels[rows]

    train, labels = images(record["indices"], pool, place)
    if "held_out" in about:
        outside = data.get("held_out_path")
        if outside is None:
            held, held_labels = train[:0], labels[:0]
        else:
            kind = "array" if str(outside).endswith(ARRAYS) else "folder"
            other = load_source(kind, outside, **{**pixels, "grayscale": bool(pixels["grayscale"])})
            held, held_labels = images(
                record["held_out_indices"], other, {int(i): k for k, i in enumerate(other.indices)}
            )
    else:
        held, held_labels = images(record["held_out_indices"], pool, place)
    found = TrainingSet(
        images=train,
        labels=labels,
        indices=torch.tensor(record["indices"], dtype=torch.int64),
        multiplicities=torch.tensor(record["multiplicities"], dtype=torch.int64),
        held_out_images=held,
        held_out_labels=held_labels,
        held_out_indices=torch.tensor(record["held_out_indices"][: len(held)], dtype=torch.int64),
        flip=bool(record["flip"]),
        class_names=tuple(record.get("class_names", ())),
        source=source,
        provenance=about,
        spec=record.get("spec", {}),
    )
    if found.hash != record["hash"]:
        problem = (
            f"the pixels of {source} are not those of the record (hash {found.hash[:12]}, not {record['hash'][:12]})"
        )
        raise InputError(key, path, problem, "give the data that the run was trained on, by --data_path")
    if len(held) == len(record["held_out_indices"]) and record.get("held_out_hash", found.held_out_hash) != (
        found.held_out_hash
    ):
        problem = "the held-out images are not those of the record"
        raise InputError(key, path, problem, "give the data of the run, by --data_path, or its own training_set.json")
    return found


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
    seen, kept, shared, repeated = set(content_digests(training, flip)), [], 0, 0
    fresh: set[bytes] = set()
    for k, digest in enumerate(content_digests(held_out, flip)):
        if digest in seen:
            shared += 1
        elif digest in fresh:
            repeated += 1
        else:
            fresh.add(digest)
            kept.append(k)
    return held_out[kept], shared, repeated


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
    notes: list[str] = []
    if is_record(training_set):
        found = from_record(training_set, data_path)
        if flip and not found.flip:
            notes.append("--flip was added to a training set whose record says that it was not mirrored")
    else:
        rows = read_images(training_set, "training_set")
        found = from_rows(rows, rows[:0], flip, Path(training_set).name)
    held = found.held_out_images
    if held_out is not None:
        other = from_record(held_out, data_path, "held_out").held_out_images if is_record(held_out) else None
        held = match_channels(read_images(held_out, "held_out") if other is None else other, found.shape, "held_out")
    mirrored = flip or found.flip
    held, shared, repeated = disjoint(held, found.images, mirrored)
    if shared:
        notes.append(f"{shared} of the held-out images are training images and were removed")
    if repeated:
        notes.append(f"{repeated} repeated held-out images were removed")
    if len(held) < 2:
        notes.append("no held-out images: the held-out control, quality to H and the copying baselines are missing")
        held = held[:0]
    return with_held_out(found, held, mirrored), notes


def with_held_out(training_set: TrainingSet, held_out: Tensor, flip: bool) -> TrainingSet:
    """The same T beside another H."""
    t = training_set
    same = torch.equal(held_out, t.held_out_images)
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
