"""A folder with the user's own files, something hostile to put there, and the runner of refused commands."""

from __future__ import annotations

import shlex
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cdmem.study.stage import build
from support.hostile import Song
from support.untrusted import memory, refused, write_settings


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A study's folder with a trained teacher and student, the user's own configs and images; both checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    write_settings(folder)
    run = folder / "run"
    for config, options in (("own", []), ("student", ["--model.teacher", f"{run}/teacher"])):
        name = "teacher" if config == "own" else "student"
        settings = ["--config", f"{folder}/{config}.yaml", "--run_dir", f"{run}/{name}", "--threads", "1"]
        build("fit", [*settings, *options]).execute()
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images)
    teacher, student = (torch.load(run / name / "checkpoints/last.ckpt", weights_only=True) for name in
                        ("teacher", "student"))  # fmt: skip
    return SimpleNamespace(folder=folder, teacher=teacher, student=student)


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
