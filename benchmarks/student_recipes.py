"""Which stable recipe should `configs/methods/small.yaml` be? Chosen by rmse to the teacher's endpoints, not by f_mem.

For every seed configs/digits32.yaml is run (teacher and student), then the same teacher is distilled by the other
candidates with the same steps. Run again, it skips what is finished::

    python benchmarks/student_recipes.py --seeds 0 1 2 --out runs/recipes
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CONFIG = "configs/digits32.yaml"
STUDENT = "configs/digits32/student.yaml"
CANDIDATES = {
    "l2, log-normal": ["--model.method.distance", "{class_path: cdmem.diffusion.L2}"],
}
COLUMNS = (
    "distillation/rmse_to_teacher",
    "distillation/variance_ratio",
    "distillation/same_basin",
    "memorization/f_mem",
)


def cdmem(*args: str) -> None:
    """Run a command of cdmem; its output goes through."""
    subprocess.run([sys.executable, "-m", "cdmem", *args], check=True)


def last_metrics(folder: Path) -> dict[str, float]:
    """The last evaluation in a run folder's record."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "memorization/f_mem" in row][-1]


def run(seed: int, out: Path) -> dict[str, dict[str, float]]:
    """All candidates of one seed: name -> last evaluation."""
    study = out / f"seed={seed}"
    cdmem("study", "--config", CONFIG, "--run_dir", str(study), "--seed", str(seed))
    found = {"pseudo-Huber, log-normal (small)": last_metrics(study / "student")}
    for name, choices in CANDIDATES.items():
        folder = study / name.replace(", ", "_")
        if not (folder / "finished.json").is_file():
            go_on = ["--ckpt_path", "last"]
            common = ["--config", STUDENT, "--run_dir", str(folder), "--seed", str(seed)]
            cdmem("fit", *common, "--model.teacher", str(study / "teacher"), *choices, *go_on)
        found[name] = last_metrics(folder)
    return found


def main() -> None:
    """Print one row a candidate: mean (standard deviation) over seeds, one sampling step, 512 samples each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    options = parser.parse_args()
    results = [run(seed, options.out) for seed in options.seeds]
    print(f"\nseeds {options.seeds}; " + " | ".join(c.split("/")[1] for c in COLUMNS))
    for name in results[0]:
        cells = []
        for column in COLUMNS:
            values = [r[name][column] for r in results]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ({spread:.3f})")
        print(f"{name:34s} " + " | ".join(cells))


if __name__ == "__main__":
    main()
