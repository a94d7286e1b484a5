"""Killed at any moment and started again, a run ends with the very bits of the run that nobody disturbed."""

from __future__ import annotations

import os
import shutil

import pytest

from cdmem.io.atomic import owned
from support.scenario import chosen, content

pytestmark = pytest.mark.slow  # each starts processes of its own


def test_the_moments_are_those_of_a_run(killed_teacher, killed_study):
    """Otherwise the kills below would miss training, evaluation or writing."""
    wanted = {"training_step", "update", "run", "samples", "append, half done", "save, half done", "replace", "fsync"}
    assert wanted <= set(killed_teacher.moments)
    assert {*wanted, "write_text, half done", "savez_compressed, half done"} <= set(killed_study.moments)
    again = killed_teacher.run("teacher_again")
    assert again.moments == killed_teacher.moments


@pytest.mark.parametrize("part", range(4))
def test_a_killed_teacher(killed_teacher, part):
    killed_teacher.survive(chosen(killed_teacher, 4, seed=1)[part], "KILL")


@pytest.mark.parametrize("name", ["append, half done", "save, half done", "link", "run"])
def test_killed_in_the_middle_of(killed_teacher, name):
    """A torn line, a torn checkpoint, between the two renames, inside an evaluation; the second time it happens."""
    killed_teacher.survive(killed_teacher.named(name)[1], "KILL")


def test_killed_before_the_last_numbered_checkpoint(killed_teacher):
    """Nothing is left to train then, yet the run's last file is missing."""
    killed_teacher.survive(killed_teacher.named("link")[-1], "KILL")


def test_a_killed_study(killed_study):
    killed_study.survive(next(k for k in killed_study.named("run") if k > len(killed_study.moments) * 0.6), "KILL")


def test_sigterm_stops_at_the_next_step_and_keeps_it(killed_teacher):
    inside_the_seventh = killed_teacher.named("training_step")[13]  # accumulated by two
    first = killed_teacher.survive(inside_the_seventh, "TERM")
    assert first.code == 143
    assert "it goes on from step 7" in first.output


def test_an_exception_inside_an_evaluation(killed_teacher):
    first = killed_teacher.survive(killed_teacher.named("samples")[1], "FAIL")
    assert first.code == 99 and "planted" in first.output


def test_a_torn_checkpoint_gives_way_to_the_one_before(killed_teacher):
    """Power loss: half of the last checkpoint is there, or a byte has changed that torch.load does not miss."""
    for tear in (lambda b: b[: len(b) // 2], lambda b: b[:3000] + bytes([b[3000] ^ 1]) + b[3001:]):
        shutil.rmtree(killed_teacher.place / killed_teacher.name, ignore_errors=True)
        assert killed_teacher.run(killed_teacher.name, killed_teacher.named("save")[-1]).code == -9
        last = killed_teacher.place / killed_teacher.name / "checkpoints/last.ckpt"
        last.write_bytes(tear(last.read_bytes()))
        again = killed_teacher.run(killed_teacher.name)
        assert again.code == 0, again.output
        assert "last.ckpt cannot be read" in again.output and "going on from previous.ckpt, step" in again.output
        (last.parent / "torn.ckpt").unlink()
        assert content(killed_teacher.place / killed_teacher.name) == killed_teacher.expected


def test_two_torn_checkpoints_are_one_line_and_stay(killed_teacher):
    shutil.rmtree(killed_teacher.place / killed_teacher.name, ignore_errors=True)
    assert killed_teacher.run(killed_teacher.name, len(killed_teacher.moments) - 2).code == -9
    folder = killed_teacher.place / killed_teacher.name / "checkpoints"
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / name).write_bytes(b"PK" + bytes(500))
    again = killed_teacher.run(killed_teacher.name)
    assert again.code == 2 and "move the folder checkpoints away to start anew" in again.output
    assert (folder / "last.ckpt").stat().st_size == 502


def test_one_folder_has_one_writer(killed_teacher, place):
    """A job that was requeued while the first still runs."""
    folder = place / "teacher_whole"
    with owned(folder):
        second = killed_teacher.run("teacher_whole")
    assert second.code == 2 and f"is in use by another process (pid {os.getpid()} on" in second.output
    assert killed_teacher.run("teacher_whole").output.strip().startswith("finished before, at step 14")


def test_a_full_disk_is_one_line_and_nothing_is_lost(killed_teacher):
    first = killed_teacher.survive(killed_teacher.named("save")[2], "FULL")
    assert first.code == 1
    line = first.output.strip().splitlines()[-1]
    assert line.startswith("cdmem: error:") and "free space, then the same command goes on" in line
    assert "Traceback" not in first.output


def test_a_study_killed_at_random_moments(killed_study):
    for at in chosen(killed_study, 20, seed=2):
        killed_study.survive(at, "KILL")
