"""Settings of the laboratories: what cannot be run is refused with its key, before anything is computed."""

from __future__ import annotations

import pytest

from support.untrusted import refused

EDGE = [
    ({"mixture.n": 3}, "mixture.n"), ({"mixture.variance": 0.0}, "mixture.variance"),
    ({"training.steps": 0}, "training.steps"), ({"training.memory": 1.0}, "training.memory"),
    ({"images.n": 2}, "images.n"), ({"images.k": 11}, "images.k"), ({"images.source": "cifar10"}, "data.path"),
    ({"images.training.draws": 0}, "images.training.draws"), ({"sweep.n": [50, 50]}, "sweep.n"),
    ({"sweep.d": []}, "sweep.d"), ({"distillation.steps": [0]}, "distillation.steps"),
    ({"mixture.seeds": 0, "sweep.n": [], "images.n": 0}, "mixture.seeds"), ({"mixture": "[1]"}, "mixture"),
]  # fmt: skip
TWO_GAUSSIANS = [
    *(({"n": n}, "n") for n in ([], [1], [8, 8], list(range(2, 20)))),
    *(({key: value}, key) for key, value in {
        "widths": [0], "level": 1.0, "lr": 0.0, "samples": 5, "nfe": 0, "loss_step": 1000, "points": 2, "momentum": 1.0,
        "seeds": 0, "seed": -1,
    }.items()),
]  # fmt: skip
RANDOM_FEATURES = [
    ({"d": 1}, "d"), ({"psi_p": 1.0}, "psi_p"), ({"t": 0.0}, "t"), ({"t": 11.0}, "t"), ({"psi_n": 0.01}, "psi_n"),
    ({"psi_ns": [2, 2]}, "psi_ns"), ({"psi_ns": list(range(1, 9))}, "psi_ns"), ({"seeds": 0}, "seeds"),
    ({"draws": 1}, "draws"), ({"draws": -1}, "draws"), ({"sigma_x": 0.0}, "sigma_x"),
    ({"d": 3000, "psi_p": 64}, "psi_p"), ({"sigma": "levels", "levels": [1.0, 2.0, 3.0, 4.0]}, "levels"),
    ({"sigma": "levels", "levels": [-1.0]}, "levels"), ({"d": 2**70}, "d"),
    *(({f"distillation.{key}": value}, f"distillation.{key}") for key, value in (
        ("t_next", 0.1), ("t_next", 0.0), ("teacher_tau", 0.0), ("leak_draws", 0), ("levels", 3), ("n", []),
        ("n", [4, 4]), ("n", [1]), ("psi_p", 0.0), ("seeds", -1),
    )),
]  # fmt: skip
DECOMPOSITION = [
    ({"samples": 2}, "samples"), ({"steps": 1}, "steps"), ({"n": 2}, "n"), ({"scales": []}, "scales"),
    ({"scales": [-1.0]}, "scales"), ({"student": "s"}, "student"), ({"run": "nowhere"}, "run"),
    ({"run": "a", "teacher": "b"}, "teacher"), ({"training_set": "a"}, "training_set"),
]  # fmt: skip
BRIDGE = [
    ({"run": "nowhere"}, "run"), ({"sigmas": []}, "sigmas"), ({"sigmas": [0.5, 0.5]}, "sigmas"),
    ({"share": 1.0}, "share"), ({"points": 1}, "points"), ({"draws": 1}, "draws"),
    ({"jacobian_sigma": -1.0}, "jacobian_sigma"),
]  # fmt: skip
TABLES = {"edge": EDGE, "two-gaussians": TWO_GAUSSIANS, "random-features": RANDOM_FEATURES}
TABLES |= {"decomposition": DECOMPOSITION, "bridge": BRIDGE}
CASES = [(laboratory, flags, key) for laboratory, table in TABLES.items() for flags, key in table]


@pytest.mark.parametrize(("laboratory", "flags", "key"), CASES, ids=str)
def test_settings_that_cannot_be_run(laboratory, flags, key, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"--{name}={value}" for name, value in flags.items()]
    line = refused(["theory", laboratory, *words, "--quiet"], capsys, tmp_path)
    assert line.startswith(f"cdmem: error: {key}="), line
