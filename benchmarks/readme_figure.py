"""The README's figure: f_mem of teacher and student along the quick start.

python benchmarks/readme_figure.py --run runs/quickstart --out docs/quickstart.png     (needs pip install -e '.[plots]')
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

TEACHER, STUDENT, STUDENT2 = "#0072B2", "#D55E00", "#E69F00"  # Okabe-Ito, distinct for colour-blind readers


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Rows of the record that hold f_mem."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "memorization/f_mem" in row]


def main() -> None:
    """Draw two panels: training of the teacher, distillation of the student."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--out", type=Path, default=Path("docs/quickstart.png"))
    options = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, constrained_layout=True)
    curves = [
        (left, "teacher", "", TEACHER, "teacher, full ODE", "o"),
        (right, "student", "", STUDENT, "student, 1 NFE", "s"),
        (right, "student", "_nfe2", STUDENT2, "student, 2 NFE", "^"),
    ]
    for axis, stage, suffix, colour, label, marker in curves:
        rows = evaluations(options.run / stage)
        steps = [r["step"] for r in rows]
        value, low, high = (
            [100 * r[f"memorization/f_mem{end}{suffix}"] for r in rows] for end in ("", "_low", "_high")
        )
        axis.plot(steps, value, color=colour, marker=marker, markersize=4, label=label)
        axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    summary = json.loads((options.run / "audit/summary.json").read_text(encoding="utf-8"))
    final = 100 * summary["models"][0]["f_mem"]["value"]
    right.axhline(final, color=TEACHER, linestyle="--", linewidth=1, label="finished teacher")
    left.set(xlabel="training step", ylabel="memorised samples (%)", ylim=(-2, 100), title="teacher")
    right.set(xlabel="distillation step", title="student")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=130)


if __name__ == "__main__":
    main()
