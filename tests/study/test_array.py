"""The job array of docs/sweeps.md, submitted to a stand-in for sbatch, makes the cells that ``--sweep`` makes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from cdmem.study.config import read_study
from cdmem.study.sweep import cells_of, parse_grid

ROOT = Path(__file__).resolve().parents[2]
SBATCH = """#!/bin/bash
tasks=$(sed -n 's/^#SBATCH --array=//p' "$1")
for task in $(seq "${tasks%-*}" "${tasks#*-}"); do SLURM_ARRAY_TASK_ID=$task bash "$1" || exit 1; done
"""
PYTHON = """#!/bin/bash
echo "$@" >> "$SAID"
"""


def test_the_array_is_the_sweep(tmp_path, monkeypatch):
    page = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    script = next(b for b in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "#SBATCH" in b)
    (tmp_path / "array.sh").write_text(script)
    for name, text in (("sbatch", SBATCH), ("python", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(tmp_path / "said")}
    subprocess.run([tmp_path / "sbatch", "array.sh"], cwd=tmp_path, env=environment, check=True, timeout=60)
    said = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    assert all(line[:3] == ["-m", "cdmem", "study"] for line in said)
    monkeypatch.chdir(ROOT)
    studies = [read_study(line[3:]) for line in said]
    wanted = [f"/shared/runs/sweep/{cell.folder}" for cell in cells_of(parse_grid(["data.n=32,64,128", "seed=0,1,2"]))]
    assert [str(study.run_dir) for study in studies] == wanted
    for study in studies:
        n, seed = map(int, re.findall(r"=(\d+)", str(study.run_dir)))
        assert study.seed == seed and study.stages["teacher"][1]["data.n"] == n
