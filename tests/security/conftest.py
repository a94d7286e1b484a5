"""A folder with the user's own files, something hostile to put there, and the runner of refused commands."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cdmem.study.stage import build
from support.fuzz import Sandbox, furnish, furnish_more
from support.hostile import Song
from support.untrusted import memory, refused, write_settings


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A study's folder with a trained teacher and student, the user's own configs and images; both checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    write_settings(folder)
    np.savez(folder / "images.npz", images=np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8))
    checkpoints = {}
    for name, settings in (("teacher", ["own.yaml"]), ("student", ["student.yaml", "--model.teacher=run/teacher"])):
        with contextlib.chdir(folder):
            build("fit", ["--config", *settings, "--run_dir", f"run/{name}", "--threads", "1"]).execute()
        checkpoints[name] = torch.load(folder / f"run/{name}/checkpoints/last.ckpt", weights_only=True)
    return SimpleNamespace(folder=folder, **checkpoints)


@pytest.fixture
def place(trained, tmp_path):
    """A copy of that folder, the working directory of one test."""
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def song(tmp_path_factory):
    made = Song(tmp_path_factory.mktemp("mark") / "sung")
    yield made
    assert not made.mark.exists(), "untrusted code has run"


@pytest.fixture
def refuse(place, capsys):
    """Run a command that must end with one line naming a key, within 1 GiB, and leave every file as it was."""

    def run(command: str, key: str, *words: str) -> str:
        with memory(1024):
            error = refused(shlex.split(command), capsys, place)
        assert error.startswith(f"cdmem: error: {key}"), error
        assert all(word in error for word in words), error
        return error

    return run


@pytest.fixture(scope="session")
def furnished(tmp_path_factory):
    """The watched folder, and the working directory below it: ``../../x`` is watched too."""
    root = tmp_path_factory.mktemp("fuzz")
    place = root / "above" / "place"
    place.mkdir(parents=True)
    with contextlib.chdir(place):
        furnish(place)
        furnish_more(place)
    (place.parent / "mine.txt").write_text("mine")
    return root, place


@pytest.fixture
def sandbox(furnished, monkeypatch):
    monkeypatch.chdir(furnished[1])
    return Sandbox(*furnished)
