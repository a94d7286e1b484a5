"""Progress in a log: a line for every tenth, no carriage returns, totals known where a run goes on."""

from __future__ import annotations

import io

import pytest
import torch

from cdmem.io.progress import ProgressLines
from cdmem.theory.experiment import Progress
from support.stages import cdmem, stage, write


@pytest.mark.parametrize(("total", "step", "lines"), [(2000, 1, 10), (7, 1, 7), (3, 2, 1), (1, 1, 1)])
def test_a_line_for_every_tenth(total, step, lines):
    out = io.StringIO()
    bar = ProgressLines(total, "work", file=out)
    for _ in range(total // step):
        bar.update(step)
    said = out.getvalue()
    assert said.count("\n") == lines and "\r" not in said and said.startswith("work: ")


def test_what_was_done_before_is_not_repeated():
    out = io.StringIO()
    bar = ProgressLines(100, "work", initial=50, file=out)
    bar.update(10)
    assert out.getvalue().startswith("work:  60 % (60/100)") and out.getvalue().count("\n") == 1


def test_nothing_is_said_without_a_total_or_when_disabled():
    out = io.StringIO()
    for bar in (ProgressLines(None, "work", file=out), ProgressLines(4, "work", disable=True, file=out)):
        bar.update(4)
    assert out.getvalue() == ""


def test_the_laboratories_of_theory_write_lines(capsys):
    assert list(Progress().bar(range(40), "work")) == list(range(40))
    said = capsys.readouterr().err
    assert "\r" not in said and len(said.splitlines()) == 10 and said.splitlines()[-1].startswith("work: 100 % (40/40)")
    assert list(Progress(quiet=True).bar([1], "work")) == [1] and capsys.readouterr().err == ""


def test_a_resumed_stage_knows_its_total(tmp_path, capsys):
    for steps in (20, 40):
        content = stage("teacher", {"max_steps": steps, "enable_progress_bar": True}, lr_schedule="constant")
        assert cdmem("fit", "--config", write(tmp_path / "t.yaml", content), "--run_dir", tmp_path / "r") == 0
    said = capsys.readouterr().out
    shares = [line for line in said.splitlines() if line.startswith("teacher: ")]
    assert "\r" not in said and len(shares) == 2
    assert shares[-1].startswith("teacher: 100 % (40/40)") and "train/loss" in shares[-1]
    assert torch.load(tmp_path / "r/checkpoints/last.ckpt", weights_only=True)["global_step"] == 40
