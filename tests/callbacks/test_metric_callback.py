"""Every metric by its class path in a config, on a student at two NFE, without any file of the user's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from cdmem.cli.main import main
from support.settings import nested

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
}
FEATURES = """
from torch import nn


class Corner(nn.Module):
    def forward(self, images):
        return images[:, 0, 2:4, 2:5].flatten(1).float()
"""


def entry(name: str, **options) -> dict:
    metric = {"class_path": f"cdmem.metrics.{name}", "init_args": METRICS[name][0]}
    return {
        "class_path": "callbacks.MetricCallback",
        "init_args": {"metric": metric, "cadence": {"samples": 32, "points": 1}, **options},
    }


NETWORK = {"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1}}


def config(*callbacks: dict) -> dict:
    return {
        "threads": 1,
        "data": {"n": 10, "held_out": 40, "batch_size": 4},
        "model": {
            "class_path": "cdmem.training.Student",
            "init_args": nested("student", points=4, teacher="analytic:empirical", network=NETWORK),
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": list(callbacks),
        },
    }


def fit(path: Path, settings: dict) -> tuple[int, Path]:
    settings["model"]["init_args"]["network"] = {
        "class_path": "cdmem.networks.MLP",
        "init_args": {"width": 16, "depth": 1},
    }
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(path), "--run_dir", str(path.parent / "run"), "--seed", "0"])
    return int(stop.value.code), path.parent / "run"


def test_every_metric_is_one_entry_in_a_config(tmp_path, monkeypatch):
    (tmp_path / "my_features.py").write_text(FEATURES)
    monkeypatch.syspath_prepend(str(tmp_path))
    callbacks = [entry(name, nfe=[1, 2]) for name in METRICS]
    callbacks.append(
        {"class_path": "callbacks.WhiteboxCallback", "init_args": {"cadence": {"points": 1, "samples": 4}}}
    )
    code, run = fit(tmp_path / "c.yaml", config(*callbacks))
    assert code == 0
    last: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        last |= json.loads(line)
    for name, (_, key) in METRICS.items():
        for suffix in ("", "_nfe2"):
            assert math.isfinite(last[f"{name.lower()}/{key}{suffix}"]), name
    assert math.isfinite(last["internal/endpoint_s0.5"]) and math.isfinite(last["internal/loss_gap_f_s0.5"])


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        ({**entry("AdaptiveExtraction")["init_args"], "metric": None}, "metric"),
        (entry("ManifoldQuality", cadence={"samples": 2})["init_args"], "samples"),
    ],
)
def test_impossible_entries_stop_before_training(tmp_path, capsys, callback, words):
    code, run = fit(tmp_path / "c.yaml", config({"class_path": "callbacks.MetricCallback", "init_args": callback}))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and words in error and not (run / "checkpoints").exists()


def test_a_metric_that_this_training_set_cannot_have_stops_at_once(tmp_path, capsys):
    settings = config(entry("AdaptiveExtraction"))
    settings["trainer"]["callbacks"][0]["init_args"]["metric"]["init_args"] = {"neighbors": 50}
    code, run = fit(tmp_path / "c.yaml", settings)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "50 neighbours" in error and not (run / "checkpoints/last.ckpt").exists()
