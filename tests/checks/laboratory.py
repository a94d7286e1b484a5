"""A laboratory that takes no time, for tests of the command around the real ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cdmem.report.lines import Series, curves
from cdmem.theory.experiment import Figure, Outcome, Progress, Section, Table


@dataclass(frozen=True)
class Settings:
    """Settings of a laboratory for tests.

    Attributes:
        t: a time.
        widths: a list.
        kind: a choice.
        seed: of everything.
    """

    t: float = 0.1
    widths: list[int] = field(default_factory=lambda: [1, 2])
    kind: Literal["plain", "<b>bold</b>"] = "plain"
    seed: int = 0


def run(settings: Settings, progress: Progress) -> Outcome:
    """A curve and a table."""
    progress("begins")
    values = [w * settings.t for w in progress.bar(settings.widths, "widths")]
    chart = curves("line", [Series("y", "teacher", settings.widths, values)], "width", "y", alt="a line")
    table = Table(("kind", "value"), [(settings.kind, str(values[0]))], "one row")
    section = Section("A part", ["<script>text</script>"], [Figure(chart, "a line"), table], reconstruction=True)
    results = {"values": np.array(values), "none": float("nan"), "seed": settings.seed}
    return Outcome("A laboratory", [f"first value {values[0]:.3f}"], results, [section])
