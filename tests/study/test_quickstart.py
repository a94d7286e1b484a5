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
    """A teacher that memorises, a student of its amplitude, its limit beside its ceiling, and an honest claim."""
    run = tmp_path / "quickstart"
    command = [sys.executable, "-m", "cdmem", "study", "--config", "configs/quickstart.yaml", "--run_dir", str(run)]
    env = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((run / "audit/summary.json").read_text())
    teacher = summary["models"][0]
    students = [m for m in summary["models"] if m["role"] == "student"]
    assert [m["nfe"] for m in students] == [1, 2]
    assert teacher["samples"] >= 1000 and teacher["f_mem"]["value"] >= 0.5
    assert summary["control"]["heldout_f_mem"]["value"] <= 0.03
    lines = [json.loads(line) for line in (run / "student/metrics.jsonl").read_text().splitlines()]
    rmse = [row["distillation/rmse_to_teacher"] for row in lines if "distillation/rmse_to_teacher" in row]
    assert rmse[-1] < 0.7 * rmse[0]
    page = (run / "report.html").read_text(encoding="utf-8")
    for student in students:
        verdict, paired = student["verdict"], student["paired"]
        assert 0.9 <= student["variance_ratio"] <= 1.1  # .945 to .963 over seeds 0 to 2
        assert verdict["checks"]["rmse_not_rising"] is not False
        assert verdict["statement"] in done.stdout and "8,000 steps" in verdict["statement"]
        low, high = verdict["limit"]["ci95"]
        assert low - 0.1 < verdict["limit"]["ceiling"]["value"] < high + 0.1
        assert high <= 1 - teacher["f_mem"]["ci95"][0] + 0.01  # no more than all seeds
        assert verdict["lost_seeds"]["nearest_to_same"]["ci95"][0] > verdict["lost_seeds"]["chance"]
        assert sum(paired["transfer"].values()) == student["samples"]
        assert verdict["claim"] in page
    # Two steps stand 1.4 to 1.9 points below the teacher over seeds 0 to 2: far from the margin of 3.
    assert students[1]["verdict"]["claim"] in ("reduced", "transient", "unchanged", "amplified")
    assert page.count('class="chart"') >= 8
    assert str(run) in done.stdout
