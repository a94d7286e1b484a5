"""A study's folder made by hand, for reports: every file that a real one has, no training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

SHAPE = (8, 8, 1)
HOSTILE = "<script>alert('x')</script>"


def estimate(value: float, width: float = 0.02) -> dict:
    return {"value": value, "ci95": [max(value - width, 0.0), min(value + width, 1.0)]}


def difference(value: float) -> dict:
    bounds = {f"ci{c}": [value - half, value + half] for c, half in ((95, 0.02), (90, 0.017))}
    return {"value": value, **bounds, "p_value": 1e-9, "p_holm": 2e-9}


def model(name: str, role: str, method: str, nfe: int, f_mem: float, rng: np.random.Generator) -> dict:
    cdf = np.linspace(0, 1, 101) ** (1 / (0.2 + f_mem))
    row = {"groups": 4, "p_hit": 0.5, "ci95": [0.1, 0.9]}
    rows = [row | {"copies": c, "hits_per_sample": 0.01 * c} for c in (1, 2, 8)]
    coverage = {
        "chao1": 9.0,
        "chao1_low": 7.0,
        "duplication_slope": 1.0,
        "duplication_slope_low": 0.9,
        "duplication_slope_high": 1.1,
    }
    coverage["detail"] = {"by_multiplicity": rows, "top": [{"image": k, "hits": 30 - k} for k in range(6)]}
    noise = [{"sigma": s, "gap": estimate(0.1 / s), "train": 0.1, "held_out": 0.2} for s in (0.1, 0.5, 2.0)]
    optimum = [{"sigma": s, "absolute": 0.1, "reference": 0.2, "ratio": 0.5} for s in (0.1, 0.5, 2.0)]
    found = {"name": name, "role": role, "method": method, "nfe": nfe, "weights": "ema_100", "step": 100}
    found |= {"samples": 60, "seeds": [0, 59], "digest": "0" * 64, "f_mem": estimate(f_mem), "unique": 6}
    found |= {
        "median_ratio": 0.5,
        "ratio_cdf": cdf.tolist(),
        "quality": {"fd_pixels": 4.0, "kid_pixels": 0.05, "fd_pixels_train": 1.0},
        "metrics": {
            "coverage": coverage,
            "authenticity_pixels": {"authenticity": float(rng.random()), "authenticity_heldout": 0.9},
            "copy_test_pixels": {"unavailable": "too few"},
        },
        "variance_ratio": 1.0,
        "rmse_to_teacher": 0.2,
        "same_basin": 0.7,
        "inside": {"loss_gap" if role == "teacher" else "loss_gap_f": noise, "optimum": {"train": optimum}},
    }
    if role == "student":
        transfer = {"kept_same": 20, "kept_other": 2, "lost": 25, "gained": 3, "neither": 10}
        matched = {"recognised_at": 0.45, "recognised": difference(-0.2), "noise": 12.5, "f_mem": 0.7}
        found["paired"] = {
            "difference": difference(-0.4),
            "transfer": transfer,
            "identity": {"same": 0.9, "ci95": [0.8, 1.0], "chance": 0.1, "kappa": 0.9},
            "log_ratio": {"median": 0.4, "p_value": 1e-5},
            "tolerant": difference(-0.35),
            "matched": matched | {"noised": "teacher", "common": 20, "difference": difference(-0.1)},
            "images": {"teacher": 14, "student": 9, "ratio": 0.7, "fewer": True},
            "lost_seeds": {
                "count": 25,
                "nearest_to_same": estimate(0.64),
                "chance": 0.034,
                "damaged": estimate(0.08),
            },
            "damaged": False,
            "seeds_belong_together": True,
            "equal_nfe": {"difference": difference(0.2)},
        }
        found["verdict"] = {
            "claim": "undecided",
            "reason": "now below, limit unclear",
            "statement": f"{name}, {nfe} NFE: undecided: now below, limit unclear.",
            "checks": {"amplitude": True, "for_tolerant_copies": False, "at_equal_noise": None},
            "equal_nfe": f"{name}, {nfe} NFE against the teacher at equal NFE: f_mem +20.0 points.",
            "limit": difference(-0.12) | {"from_step": 30},
        }
    return found


def make_study_folder(folder: Path, *, name: str = "student", n: int = 16, seed: int = 0) -> Path:
    """Write a folder as ``study`` leaves it; ``name`` is the student's, text from outside."""
    rng = np.random.default_rng(seed)
    (folder / "audit").mkdir(parents=True)
    (folder / "samples").mkdir()
    models = [
        model("teacher", "teacher", "heun", 35, 0.9, rng),
        model("teacher", "teacher", "euler", 1, 0.0, rng),
        model(name, "student", "consistency", 1, 0.3, rng),
        model(name, "student", "consistency", 2, 0.45, rng),
    ]
    stages = {"teacher": "teacher", "student": "student"}
    for m in models:
        stem = f"{m['name']}_{m['method']}_nfe={m['nfe']}"
        squared1 = rng.integers(1, 1000, 60)
        rows = {"seeds": np.arange(60), "squared1": squared1, "squared2": squared1 * rng.integers(1, 30, 60)}
        rows |= {"group1": rng.integers(0, n, 60), "nearest": rng.integers(0, n, 60)}
        if "/" not in stem:
            images = rng.integers(0, 256, (60, *SHAPE), dtype=np.uint8)
            np.savez(folder / f"audit/{stem}.npz", **rows)
            np.savez(folder / f"samples/{stem}.npz", images=images, seeds=np.arange(60))
    np.savez(folder / "audit/pictures.npz", ids=np.arange(n), images=rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8))
    copycat = {"f_mem": estimate(1.0), "samples": 60, "quality": {"fd_pixels": 4.5, "fd_pixels_train": 0.1}}
    held = estimate(0.0) | {"samples": 30, "ratio_cdf": np.clip(np.linspace(-1, 1, 101), 0, 1).tolist()}
    training_set = {"n": n, "rows": n, "groups": n, "hash": "ab" * 32, "held_out": 30, "source": f"digits {HOSTILE}"}
    summary = {
        "schema": 1,
        "training_set": training_set,
        "models": models,
        "control": {"heldout_f_mem": held, "copycat": copycat, "quality": {"fd_pixels_floor": 0.5}},
        "settings": {"samples": 60, "threshold": 1 / 3, "features": "pixels", "extractors": {"pixels": "exact"}},
        "distillation": {},
        "notes": [f"a note {HOSTILE}"],
    }
    (folder / "audit/summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "data": {"n": n}}))
    environment = {"python": "3.11", "platform": "Linux", "threads": 1, "packages": {"torch": "2"}}
    environment |= {"git": {"commit": "c" * 40, "dirty": True}, "command": ["python", "-m", "cdmem", "study", HOSTILE]}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "training_set.json").write_text(json.dumps({"n": n, "indices": list(range(n))}))
    for stage, role in stages.items():
        (folder / stage).mkdir()
        method = {"class_path": "cdmem.distillation.ConsistencyDistillation", "init_args": {"points": 10}}
        init = {"optimization": {"schedule": "cosine"}, "method": method}
        settings = {"model": {"class_path": role, "init_args": init}, "data": {"n": n}}
        (folder / stage / "config.yaml").write_text(yaml.safe_dump(settings))
        (folder / stage / "finished.json").write_text(json.dumps({"step": 100, "seconds": 1.5}))
        onset = {"tau_mem": {"step": 30.0, "between": [10, 60]}, "tau_gen": {"step": 15.0, "between": [10, 30]}}
        (folder / stage / "onset.json").write_text(json.dumps(onset))
        lines = []
        for k, step in enumerate((10, 30, 60, 100)):
            row = {"step": step, "quality/fd_pixels": 9.0 - k, "quality/fd_pixels_nfe2": 8.0 - k}
            for suffix in ("", "_nfe2"):
                row |= {f"memorization/f_mem{suffix}": 0.1 * k, f"distillation/rmse_to_teacher{suffix}": 0.4 - 0.05 * k}
                row |= {f"memorization/f_mem_low{suffix}": 0.08 * k, f"memorization/f_mem_high{suffix}": 0.12 * k}
            lines.append(json.dumps(row))
        (folder / stage / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder
