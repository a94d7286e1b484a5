"""What a run logs of copies, and the rows it keeps of them by seed."""

from __future__ import annotations

import numpy as np
import pytest

from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from cdmem.metrics.neighbors.tolerant import tolerant_search
from cdmem.metrics.statistics import wilson_interval
from support import stages
from support.stages import callback, mlp, rows, stage


def distil(folder, held_out: int) -> dict[str, float]:
    """A student of two steps at one and two NFE; its last row of numbers."""
    data = {"n": 10, "held_out": held_out, "subset_seed": 3}
    model = {"points": 4, "teacher": "analytic:empirical", "network": mlp()}
    trainer = {"max_steps": 2, "callbacks": [callback("MemorizationCallback", 32, 1, nfe=[1, 2])]}
    assert stages.fit(folder, stage("student", trainer, data, **model), "--seed", 0) == 0
    return next(row for row in reversed(rows(folder / "run")) if "memorization/f_mem" in row)


@pytest.mark.parametrize("held_out", [98, 99])
def test_tolerant_copies_are_logged_and_kept_where_h_allows_it(tmp_path, held_out):
    logged = distil(tmp_path, held_out)
    keys = [f"memorization/tolerant_copies{end}{nfe}" for end in ("", "_low", "_high") for nfe in ("", "_nfe2")]
    assert [key in logged for key in keys] == [held_out == 99] * 6
    with np.load(tmp_path / "run/evaluations/step=00000002_nfe=2.npz") as file:
        kept = dict(file)
    assert {"seeds", "squared1", "squared2", "group1", "squared_error"} <= kept.keys()
    assert ("tolerant_ratio" in kept) == ("tolerant_group" in kept) == (held_out == 99)
    if held_out == 99:
        assert kept["tolerant_ratio"].dtype == np.float64 and kept["tolerant_group"].dtype == np.int64
        t = choose(load_source("digits"), SubsetSpec(n=10, held_out=99, seed=3))
        strict = np.sqrt(kept["squared1"] / kept["squared2"]) < 1 / 3
        copies = int((strict | (kept["tolerant_ratio"] < tolerant_search(t).threshold)).sum())
        assert [logged[key] for key in keys[1::2]] == pytest.approx([copies / 32, *wilson_interval(copies, 32)])
