"""The promise of the neighbour benchmark, at a tenth of its size: less than half of faiss's time, the same answers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from support.source import ROOT


@pytest.mark.slow
def test_neighbours_take_less_than_half_of_faiss_time():
    pytest.importorskip("faiss", reason="faiss-cpu is not installed (pip install 'cdmem[benchmarks]')")
    sizes = ["--rows", "20000", "--queries", "4000"]
    command = [sys.executable, str(ROOT / "benchmarks/neighbors.py"), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True, cwd=ROOT)
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["nearest_agree"] + record["ties"] == record["queries"] == 4000
    assert record["cdmem_extra_mib"] < 1024
    if record["int8_products"]:
        assert record["ratio"] < 0.5
