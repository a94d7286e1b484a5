"""The quick start keeps its promises, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.sensitive
def test_the_quick_start_shows_the_phenomenon(tmp_path):
    """Bounds are those of the claims. README's three seeds: f_mem of the teacher .895 to .923, of held-out images 0 to
    .002, variance ratios .929 to 1.011, where the verdict asks for .9 to 1.1; rmse falls to .53 of its start (seed 0).
    """
    run = tmp_path / "quickstart"
    command = [sys.executable, "-m", "cdmem", "study", "--config", "configs/quickstart.yaml", "--run_dir", str(run)]
    env = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((run / "audit/summary.json").read_text())
    teacher = summary["models"][0]
    students = [m for m in summary["models"] if m["role"] == "student"]
    assert teacher["samples"] >= 1000 and teacher["f_mem"]["value"] >= 0.5
    assert summary["control"]["heldout_f_mem"]["value"] <= 0.005
    for student in students:
        assert 0.9 <= student["variance_ratio"] <= 1.1, student["nfe"]
    lines = [json.loads(line) for line in (run / "student/metrics.jsonl").read_text().splitlines()]
    rmse = [row["distillation/rmse_to_teacher"] for row in lines if "distillation/rmse_to_teacher" in row]
    assert rmse[-1] <= 1.02 * min(rmse) and rmse[-1] < 0.7 * rmse[0]
    # Either a claim with its condition, or none: never a reduction while f_mem moves or the rate was annealed.
    for student in students:
        verdict = student["verdict"]
        assert verdict["claim"] == "undecided" and verdict["statement"] in done.stdout
        assert sum(student["paired"]["transfer"].values()) == student["samples"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('class="chart"') >= 10 and "undecided" in page
    assert str(run) in done.stdout
