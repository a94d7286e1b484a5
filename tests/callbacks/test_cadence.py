"""The cadence in a config and on the command line: what is left out keeps the callback's own value; one-line errors."""

from __future__ import annotations

import json

import pytest

from callbacks import Cadence
from callbacks.evaluation import evaluation_steps
from cdmem.study.stage import build
from support.fuzz import TEACHER, main

GRID = {"class_path": "callbacks.SampleGridCallback"}
OWN = Cadence(samples=16, points=4)  # of a grid


def arguments(folder, *callbacks: dict) -> list[str]:
    settings = {**TEACHER, "trainer": {**TEACHER["trainer"], "callbacks": list(callbacks)}}
    (folder / "teacher.yaml").write_text(json.dumps(settings))
    return ["--config", str(folder / "teacher.yaml"), "--run_dir", str(folder / "run")]


def cadences(arguments: list[str]) -> list[Cadence]:
    return [c.cadence for c in build("fit", arguments).trainer.callbacks if hasattr(c, "cadence")]


def test_what_is_left_out_keeps_the_callbacks_own_value(tmp_path):
    few = {**GRID, "init_args": {"cadence": {"points": 2, "spacing": "linear"}}}
    assert cadences(arguments(tmp_path, GRID, few)) == [OWN, Cadence(samples=16, points=2, spacing="linear")]


def test_the_command_line_overrides_the_last_callback_of_the_list(tmp_path):
    args = [*arguments(tmp_path, GRID, GRID), "--trainer.callbacks.cadence.samples", "64"]
    assert cadences(args) == [OWN, Cadence(samples=64, points=4)]
    args = [*arguments(tmp_path, GRID), "--trainer.callbacks+=callbacks.DecompositionCallback"]
    args += ["--trainer.callbacks.cadence.points=3"]
    assert cadences(args) == [OWN, Cadence(samples=64, points=3, test_samples=256)]


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"cadence": {"pints": 3}}, "pints"),
        ({"cadence": {"points": 3.5}}, "points"),
        ({"cadence": {"spacing": "cubic"}}, "spacing"),
        ({"cadence": {"samples": 1}}, "SampleGridCallback.cadence.samples=1"),
        ({"cadence": 7}, ""),  # the parser passes it on, and names no key
        ({"cadence": None}, ""),
        ({"samples": 64}, "samples"),
    ],
)
def test_bad_cadences_are_one_line(tmp_path, capsys, given, key):
    assert main("fit", *arguments(tmp_path, {**GRID, "init_args": given})) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and key in lines[0], lines
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_steps_of_the_spacings():
    assert evaluation_steps(64, 7, "log") == [1, 2, 4, 8, 16, 32, 64]
    assert evaluation_steps(100, 4, "linear") == [25, 50, 75, 100]
    assert evaluation_steps(10_000, 10, "sqrt") == [100 * k**2 for k in range(1, 11)]
    assert evaluation_steps(3, 10, "sqrt") == [1, 2, 3] and evaluation_steps(100, 0, "sqrt") == []
