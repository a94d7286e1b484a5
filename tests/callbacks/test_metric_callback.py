"""Every metric by its class path in a config, on a student at two NFE, without any file of the user's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from support import stages
from support.stages import callback, last_line, mlp, rows, stage

METRICS = {
    "MemorizedFraction": ({"near_duplicates": "auto"}, "f_mem"),
    "AbsoluteExtraction": ({"delta": 0.2}, "extracted"),
    "AdaptiveExtraction": ({"neighbors": 4}, "extracted"),
    "HitCoverage": ({"threshold": 0.9}, "unique"),
    "Authenticity": ({}, "authenticity"),
    "CopyTest": ({"cells": 1}, "c_t"),
    "TrainPreference": ({"repetitions": 20}, "train_preference"),
    "TwoSampleAccuracy": ({}, "two_sample"),
    "FeatureLikelihood": ({}, "fld"),
    "Fidelity": ({"features": {"class_path": "my_features.Corner"}}, "fd_corner"),
    "ManifoldQuality": ({"k": 2}, "precision"),
    "CopyDetection": ({}, "copied"),
    "TolerantCopies": ({}, "copied"),
}
FEATURES = """
from torch import nn


class Corner(nn.Module):
    def forward(self, images):
        return images[:, 0, 2:4, 2:5].flatten(1).float()
"""


def entry(name: str, samples: int = 32, own: dict | None = None, **options) -> dict:
    metric = {"class_path": f"cdmem.metrics.{name}", "init_args": own or METRICS[name][0]}
    return callback("MetricCallback", samples, **{"metric": metric, **options})


def fit(folder: Path, *callbacks: dict) -> int:
    data, model = {"n": 10, "held_out": 99}, {"points": 4, "teacher": "analytic:empirical", "network": mlp()}
    trainer = {"max_steps": 2, "callbacks": list(callbacks)}
    return stages.fit(folder, stage("student", trainer, data, **model), "--seed", 0)


def test_every_metric_is_one_entry_in_a_config(tmp_path, monkeypatch):
    (tmp_path / "my_features.py").write_text(FEATURES)
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = [entry(name, nfe=[1, 2]) for name in METRICS]
    assert fit(tmp_path, *entries, callback("WhiteboxCallback", 4)) == 0
    last: dict[str, float] = {}
    for row in rows(tmp_path / "run"):
        last |= row
    for name, (_, key) in METRICS.items():
        for suffix in ("", "_nfe2"):
            assert math.isfinite(last[f"{name.lower()}/{key}{suffix}"]), name
    assert math.isfinite(last["internal/endpoint_s0.5"]) and math.isfinite(last["internal/loss_gap_f_s0.5"])


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (entry("AdaptiveExtraction", metric=None), "metric"),
        (entry("ManifoldQuality", 2), "samples"),
        # What this training set cannot have is known at once.
        (entry("AdaptiveExtraction", own={"neighbors": 50}), "50 neighbours"),
    ],
)
def test_impossible_entries_stop_before_training(tmp_path, capsys, broken, words):
    assert fit(tmp_path, broken) == 2 and words in last_line(capsys)
    assert not (tmp_path / "run/checkpoints").exists()
