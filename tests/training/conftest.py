"""A trained teacher for the tests of this room."""

from __future__ import annotations

import pytest

import support


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory):
    """Checkpoint of two steps; the network of the teacher is the default of :func:`support.make_teacher`."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.ckpt"
    support.fit(support.make_teacher(), 2).trainer.save_checkpoint(path)
    return str(path)
