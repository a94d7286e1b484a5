"""For tests of the laboratories: one that takes no time, and what their tests share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from cdmem.cli.main import main
from cdmem.report.charts.curves import Series, curves
from cdmem.theory.experiment import Figure, Outcome, Progress, Section, Table
from cdmem.theory.settings import each, number, seed

QUIET = Progress(quiet=True)


def succeed(*words: object) -> None:
    """Run a command of cdmem that must succeed."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0


def tensor(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Standard normal numbers, float64, from numpy's generator."""
    return torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(shape))


@dataclass(frozen=True)
class Group:
    """A group of settings.

    Attributes:
        widths: a list.
    """

    widths: list[int] = field(default_factory=lambda: [1, 2], metadata=each(1, 100))


@dataclass(frozen=True)
class Settings:
    """Settings of a laboratory for tests.

    Attributes:
        t: a time.
        group: a group.
        kind: a choice.
        seed: of everything.
    """

    t: float = number(0.1, 0, open=True)
    group: Group = field(default_factory=Group)
    kind: Literal["plain", "<b>bold</b>"] = "plain"
    seed: int = seed()


def run(settings: Settings, progress: Progress) -> Outcome:
    """A curve and a table."""
    progress("begins")
    widths = settings.group.widths
    values = [w * settings.t for w in progress.bar(widths, "widths")]
    chart = curves("line", [Series("y", "teacher", widths, values)], "width", "y", alt="a line")
    table = Table(("kind", "value"), [(settings.kind, str(values[0]))], "one row")
    section = Section("A part", ["<script>text</script>"], [Figure(chart, "a line"), table], reconstruction=True)
    results = {"values": np.array(values), "none": float("nan"), "seed": settings.seed}
    return Outcome([f"first value {values[0]:.3f}"], results, [section], "A laboratory")
