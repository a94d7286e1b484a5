"""How long cdmem takes for what other code does too: ``make bench``, or ``python benchmarks/speed [PART ...]``.

Needs ``pip install 'cdmem[benchmarks]'``. Every row first asserts that both agree, then lets them take turns, on one
thread (a student's step also on a second core, if there is one). The last column is the goal for the ratio of times.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from speed import metrics, search, training
from speed.harness import measure

PARTS = {"training": training, "search": search, "metrics": metrics}
RESULTS = Path(__file__).with_name("results.json")


def machine() -> dict[str, object]:
    """Where and with what."""
    names = ("torch", "lightning", "numpy", "scipy", "clean-fid", "torch-fidelity", "torchmetrics", "prdc", "faiss-cpu")
    info = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "processor": next((x.split(":")[1].strip() for x in info if "model name" in x), platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in names},
    }


def main(parts: list[str]) -> None:
    """Print a line a row, and keep all in results.json."""
    torch.set_num_threads(1)
    print(f"{'':45s} {'against':32s} {'ours':>8s} {'theirs':>8s}  ratio {'range':12s} goal")
    done = []
    for part in parts or PARTS:
        for row in PARTS[part].rows():
            r = measure(row)
            done.append({"part": part} | r)
            span = f"{r['range'][0]:.2f}-{r['range'][1]:.2f}"
            times = f"{1e3 * r['ours_s']:6.0f}ms {1e3 * r['theirs_s']:6.0f}ms"
            print(f"{r['what']:45s} {r['peer']:32s} {times} {r['ratio']:6.2f} {span:12s} {r['goal']:.2f}", flush=True)
    RESULTS.write_text(json.dumps(machine() | {"rows": done}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
