"""A pickle that leaves a mark when it is read, in the forms in which an untrusted file could hold it."""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


class Song:
    """Unpickled anywhere, it creates the file ``mark``."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


Make = Callable[[Path, Song, dict], None]  # of a file, with the song and a good checkpoint


def bare(file: Path, song: Song, good: dict) -> None:
    file.write_bytes(pickle.dumps(song))


def within(part: str, change: Callable[[Song, object], object], **options: object) -> Make:
    """A whole checkpoint of ours whose one part holds the song."""
    return lambda file, song, good: torch.save(good | {part: change(song, good.get(part))}, file, **options)


def legacy_before_archive(file: Path, song: Song, good: dict) -> None:
    """A pickle for whoever reads from the start, an innocent archive for whoever reads from the end."""
    torch.save(good, file)
    file.write_bytes(pickle.dumps(song) + file.read_bytes())


def second_structure(file: Path, song: Song, good: dict) -> None:
    """Two parts called data.pkl."""
    torch.save(good, file)
    with zipfile.ZipFile(file, "a") as parts:
        name = next(n for n in parts.namelist() if n.endswith("data.pkl"))
        with contextlib.suppress(UserWarning):
            parts.writestr(zipfile.ZipInfo(f"{name.split('/')[0]}/./data.pkl"), pickle.dumps(song))


PICKLES: dict[str, Make] = {
    "bare": bare,
    "in_archive": within("callbacks", lambda song, _: {"RunCheckpoint": song}),
    "in_record": within("cdmem", lambda song, record: record | {"version": song}),
    "in_optimizer": within("optimizer_states", lambda song, _: [song]),
    "in_averages": within("state_dict", lambda song, v: v | {next(n for n in v if n.startswith("ema.")): song}),
    "old_format": within("callbacks", lambda song, _: song, _use_new_zipfile_serialization=False),
    "legacy_before_archive": legacy_before_archive,
    "newer_protocol": within("callbacks", lambda song, _: song, pickle_protocol=4),  # names classes in another way
    "second_structure": second_structure,
}


def object_array(file: Path, song: Song, *names: str) -> Path:
    """An ``.npz`` of pickled objects, or with an ``.npy`` name one array of them."""
    array = np.array([song, song], dtype=object)
    if file.suffix == ".npy":
        np.save(file, array)
    else:
        np.savez(file, **dict.fromkeys(names or ("images",), array))
    return file
