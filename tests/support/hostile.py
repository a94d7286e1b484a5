"""A pickle that leaves a mark when it is read, in the forms in which a stranger could hand it over."""

from __future__ import annotations

import contextlib
import pickle
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers import DDPMScheduler

from support.folders import make_unet, saved
from support.strangers import STAGE, stage


class Song:
    """Unpickled anywhere, it creates the file ``mark``."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def bare(file: Path, song: Song, good: dict) -> None:
    file.write_bytes(pickle.dumps(song))


def in_archive(file: Path, song: Song, good: dict) -> None:
    """A whole checkpoint of ours, and one value more."""
    torch.save(good | {"callbacks": {"RunCheckpoint": song}}, file)


def in_record(file: Path, song: Song, good: dict) -> None:
    torch.save(good | {"cdmem": good["cdmem"] | {"version": song}}, file)


def in_optimizer(file: Path, song: Song, good: dict) -> None:
    torch.save(good | {"optimizer_states": [song]}, file)


def in_averages(file: Path, song: Song, good: dict) -> None:
    name = next(n for n in good["state_dict"] if n.startswith("ema."))
    torch.save(good | {"state_dict": good["state_dict"] | {name: song}}, file)


def old_format(file: Path, song: Song, good: dict) -> None:
    torch.save(good | {"callbacks": song}, file, _use_new_zipfile_serialization=False)


def legacy_before_archive(file: Path, song: Song, good: dict) -> None:
    """A pickle for whoever reads from the start, an innocent archive for whoever reads from the end."""
    torch.save(good, file)
    file.write_bytes(pickle.dumps(song) + file.read_bytes())


def stack_global(file: Path, song: Song, good: dict) -> None:
    """The same, pickled by a newer protocol, which names classes in another way."""
    torch.save(good | {"callbacks": song}, file, pickle_protocol=4)


def second_structure(file: Path, song: Song, good: dict) -> None:
    """Two parts called data.pkl."""
    torch.save(good, file)
    with zipfile.ZipFile(file, "a") as parts:
        name = next(n for n in parts.namelist() if n.endswith("data.pkl"))
        with contextlib.suppress(UserWarning):
            parts.writestr(zipfile.ZipInfo(f"{name.split('/')[0]}/./data.pkl"), pickle.dumps(song))


PICKLES: dict[str, Callable[[Path, Song, dict], None]] = {
    f.__name__: f
    for f in (
        bare,
        in_archive,
        in_record,
        in_optimizer,
        in_averages,
        old_format,
        legacy_before_archive,
        stack_global,
        second_structure,
    )
}


def student() -> dict:
    """Settings of a student for the teacher that STAGE describes."""
    init = {"averaging": {"half_lives": [2]}}
    return stage(model={"class_path": "cdmem.training.Student", "init_args": init})


def write_settings(folder: Path) -> None:
    """own.yaml, student.yaml and study.yaml: the user's own configs."""
    (folder / "own.yaml").write_text(yaml.safe_dump(STAGE))
    (folder / "student.yaml").write_text(yaml.safe_dump(student()))
    study = {"teacher": "own.yaml", "students": {"student": "student.yaml"}, "audit": {"samples": 8}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))


def make_pipeline(folder: Path) -> Path:
    return saved(folder, make_unet(), DDPMScheduler())


def object_array(file: Path, song: Song, *names: str) -> Path:
    """An ``.npz`` of pickled objects, or with an ``.npy`` name one array of them."""
    array = np.array([song, song], dtype=object)
    if file.suffix == ".npy":
        np.save(file, array)
    else:
        np.savez(file, **dict.fromkeys(names or ("images",), array))
    return file


@contextlib.contextmanager
def memory(megabytes: int) -> Iterator[None]:
    """No more than so much memory on top of what the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
