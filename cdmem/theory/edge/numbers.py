"""Results of the parts as nested dicts for ``results.json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from cdmem.theory.edge.study import References, Study
from cdmem.theory.edge.transition import Transition


def shares(found: Transition, n: int) -> dict[str, float | None]:
    """A transition as shares M/N: start, end, M_pt and its interval."""
    values = {"start": found.start, "end": found.end, "M_pt": found.middle, "low": found.low, "high": found.high}
    return {key: None if value is None else value / n for key, value in values.items()}


def averages(found: Study, key: str) -> list[Any]:
    """A field of the rows, averaged over seeds, per capacity."""
    table = np.array([[getattr(row, key) for row in rows] for rows in found.rows], dtype=float)
    return table.mean(0).tolist()


def mean_book(found: Study, key: str) -> list[Any]:
    """A field of the bookkeeping of means, averaged over seeds, per capacity."""
    table = np.array([[getattr(row.means, key) for row in rows] for rows in found.rows], dtype=float)
    return table.mean(0).tolist()


def study_numbers(found: Study, times: list[float]) -> dict[str, Any]:
    """Everything measured on the trained models."""
    n = len(found.problems[0].data)
    both = found.pooled()
    book = ("near_true", "near_sample", "to_true", "to_sample", "to_true_percentiles", "to_sample_percentiles")
    return {
        "capacity": found.capacities,
        "ratio": [c.ratio for c in both],
        "ratio_low": [c.low for c in both],
        "ratio_high": [c.high for c in both],
        "samples": both[0].samples,
        "seeds": len(found.problems),
        "ratio_of_each_seed": [[row.copies.ratio for row in rows] for rows in found.rows],
        "transition": asdict(found.transition()),
        "transition_over_n": shares(found.transition(), n),
        "M_pt_over_n_of_each_seed": [None if t.middle is None else t.middle / n for t in found.each()],
        "variance": averages(found, "var"),
        "variance_ratio": averages(found, "spread"),
        "means": {key: mean_book(found, key) for key in book},
        "t": times,
        "train_loss": averages(found, "train"),
        "test_loss": averages(found, "fresh"),
    }


def reference_numbers(found: References) -> dict[str, Any]:
    """Losses of generalising, memorising and partly memorising denoisers of one seed, with intervals."""
    single = {
        key: {"mean": [e.mean for e in value], "low": [e.low for e in value], "high": [e.high for e in value]}
        for key, value in (
            ("gen", found.gen),
            ("gen_test", found.gen_fresh),
            ("mem", found.mem),
            ("mem_test", found.mem_fresh),
        )
    }
    return {
        "t": found.times,
        **single,
        "capacity": found.capacities,
        "pmem": found.pmem,
        "pmem_test": found.pmem_fresh,
    }
