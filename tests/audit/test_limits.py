"""From the evaluations of a run to its limit: pairs by seed, the constant stretch alone, and why there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdmem.audit import limits
from cdmem.audit.distillation_curve import Copies, distillation_record, spent_error
from cdmem.audit.limits import limit_record, slow_phase_record
from cdmem.errors import InputError
from cdmem.run.folder import RunFolder

SEEDS = np.arange(2400)


def flags(share: float, seeds: np.ndarray = SEEDS) -> tuple[np.ndarray, np.ndarray]:
    """The first seeds are copies."""
    return seeds, seeds < share * len(SEEDS)


TEACHER = flags(0.9)


def curve() -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """0.9 - 0.4 exp(-t / 1,443): every seed has a rank of its own that is drawn anew now and then."""
    rng = np.random.default_rng(1)
    rank, made = np.arange(len(SEEDS)) / len(SEEDS), {}
    for step in range(500, 10_001, 500):
        rank = np.where(rng.random(len(SEEDS)) < 0.03, rng.random(len(SEEDS)), rank)
        made[step] = SEEDS, rank < 0.9 - 0.4 * 2.0 ** (-step / 1000)
    return made


CURVE = curve()


def test_the_limit_of_an_exponential_is_found():
    record = limit_record(CURVE, TEACHER, (0, 10_000), 50, 0.05)
    assert record["value"] == pytest.approx(0, abs=0.03) and record["evaluations"] >= 12
    assert record["ci95"][0] <= record["ci90"][0] <= record["ci90"][1] <= record["ci95"][1]
    # One of several looks gives a wider interval, under the same name.
    late = limit_record(CURVE, TEACHER, (0, 10_000), 50, 0.05 / 20)
    assert late["ci95"][0] <= record["ci95"][0] and late["ci95"][1] >= record["ci95"][1]


def test_only_the_constant_stretch_is_fitted(monkeypatch):
    asked = []
    monkeypatch.setattr(
        limits, "fit_limit", lambda steps, rows, least_spacing, bounds: asked.append((list(steps), least_spacing)) or ""
    )
    limit_record(CURVE | {0: flags(0.0)}, TEACHER, (2000, 4000), 50, 0.05)
    limit_record(CURVE | {0: flags(0.0)}, TEACHER, (0, 1000), 0, 0.05)
    assert asked == [([2000, 2500, 3000, 3500, 4000], 150), ([500, 1000], 0)]


def test_why_there_is_no_limit():
    assert limit_record(CURVE, TEACHER, None, 50, 0.05) == "no stretch at a constant learning rate"
    assert "were not kept" in limit_record(CURVE, None, (0, 10_000), 50, 0.05)
    assert limit_record(CURVE, TEACHER, (20_000, 30_000), 50, 0.05) == "no evaluations at a constant rate"
    assert "needs 12" in limit_record(CURVE, TEACHER, (0, 5000), 50, 0.05)
    assert "needs 12" in limit_record(CURVE, TEACHER, (0, 10_000), 400, 0.05)
    few = {step: (seeds[:1999], copies[:1999]) for step, (seeds, copies) in CURVE.items()}
    assert "1999 seeds" in limit_record(few, TEACHER, (0, 10_000), 50, 0.05)


def test_a_slow_phase():
    """From the last evaluation at the full rate to the end: 0.5 to 0.7 against a teacher of 0.9."""
    curve = {8000: flags(0.3), 9000: flags(0.5), 10_000: flags(0.7)}
    record = slow_phase_record(curve, TEACHER, (0, 9000))
    assert (record["from_step"], record["to_step"]) == (9000, 10_000)
    assert record["change"]["value"] == pytest.approx(0.2) and record["after"]["value"] == pytest.approx(-0.2)
    assert record["change"]["ci95"][0] > 0 > record["after"]["ci95"][1]
    assert slow_phase_record(curve, TEACHER, (0, 10_000)) is None and slow_phase_record(curve, None, (0, 9000)) is None
    assert slow_phase_record({0: flags(0.1), 10_000: flags(0.7)}, TEACHER, (0, 9000)) is None
    assert slow_phase_record({8000: flags(1, SEEDS + 9999), 9500: flags(1)}, TEACHER, (0, 9000)) is None


def kept(folder: RunFolder, name: str, copies: np.ndarray, tolerant: np.ndarray) -> None:
    """An evaluation whose strict and tolerant copies are these."""
    ratio = np.where(tolerant, 0.1, 0.9)
    columns = {"squared1": np.where(copies, 1, 90), "squared2": np.full(len(SEEDS), 100), "tolerant_ratio": ratio}
    folder.write_arrays(f"evaluations/{name}.npz", seeds=SEEDS, **columns)


def test_a_run_folder_tells_both_limits(tmp_path):
    """Of three copies one is a tolerant one alone: strict ones end at 0.6, tolerant ones at 0.9."""
    folder = RunFolder(tmp_path / "run")
    folder.write_text("config.yaml", "model: {class_path: x, init_args: {optimization: {schedule: constant}}}\n")
    kept(folder, "teacher", TEACHER[1], TEACHER[1])
    for step, (_, copies) in CURVE.items():
        kept(folder, f"step={step:08d}_nfe=1", copies & (SEEDS % 3 > 0), copies)
    torch_file = folder.path / "checkpoints/last.ckpt"
    torch_file.parent.mkdir(parents=True)
    state = {"schedule": [[0, 10_000, "constant"]], "cdmem": {"weights": "ema_50"}, "state_dict": {}}
    torch.save(state, torch_file)
    folder.write_text("metrics.jsonl", '{"step": 10000, "images_seen": 640000.0, "train/loss": 1.0}\n')
    record = distillation_record(folder, Copies(1 / 3, 0.5))
    assert record["constant_phase"] == [0, 10_000] and record["length"] == "10,000 steps (640,000 images seen)"
    assert record["limit"]["1"]["strict"]["value"] == pytest.approx(-0.3, abs=0.03)
    assert record["limit"]["1"]["tolerant"]["value"] == pytest.approx(0, abs=0.03)
    assert set(distillation_record(folder, Copies(1 / 3))["limit"]["1"]) == {"strict"}


def test_the_error_of_the_last_look_counts(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert spent_error(folder) == 0.05
    folder.write_json("rounds.json", {"looks": [{"error": 0.025}, {"error": 0.0083}]})
    assert spent_error(folder) == 0.0083
    for torn in ({}, {"looks": [{}]}, {"looks": 3}):
        folder.write_json("rounds.json", torn)
        with pytest.raises(InputError, match="rounds"):
            spent_error(folder)
