"""No claim without ground: students that only look forgetful, too few images, classes without labels."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cdmem.audit.reference_sets import with_held_out
from cdmem.cli.main import main
from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from cdmem.images import to_float, to_uint8
from cdmem.metrics.comparison.equal_noise import fidelity_matched
from cdmem.metrics.comparison.paired import PairedWithTeacher, adjust, compare
from cdmem.metrics.comparison.verdict import judge
from cdmem.metrics.memorization.fraction import fraction
from cdmem.metrics.memorization.ratio import memorized, ratios
from cdmem.metrics.neighbors.index import group_index
from cdmem.metrics.quality.fidelity import Fidelity
from cdmem.metrics.whitebox.record import whitebox_record


@pytest.fixture(scope="module")
def t():
    return choose(load_source("digits"), SubsetSpec(n=100, seed=0, held_out=400))


def test_two_images_have_a_fraction_but_no_distance(tmp_path, t):
    for name, images in {"t": t.images, "h": t.held_out_images[:60], "two": t.images[:2]}.items():
        np.savez(tmp_path / f"{name}.npz", images=images[:, 0].numpy())
    files = {"generator": "two.npz", "training_set": "t.npz", "held_out": "h.npz", "out": "no/such/o.json"}
    options = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    with pytest.raises(SystemExit) as stop:
        main(["audit", "--quiet", *options])
    assert stop.value.code == 0
    (model,) = json.loads((tmp_path / "no/such/o.json").read_text(), parse_constant=pytest.fail)["models"]
    assert model["f_mem"]["value"] == 1.0 and model["quality"]["fd_pixels"] is None


def test_a_model_with_classes_needs_labels(t):
    """Images without labels must not pass for the first class."""
    other = with_held_out(t, t.held_out_images[:5], False)
    assert set(other.held_out_labels.tolist()) == {-1}
    assert with_held_out(t, t.held_out_images, True).held_out_labels.equal(t.held_out_labels)
    model = SimpleNamespace(num_classes=3, role="teacher")
    empty = torch.zeros(1, dtype=torch.int64)
    record = whitebox_record(model, t, None, t.images[:1], empty, empty.bool(), torch.device("cpu"))
    assert set(record) == {"unavailable"}


# ---- students that only look forgetful -------------------------------------------------------------------------------

SEEDS = 600
STOPPED = {"trend": "stopped", "change": 0.0, "low": -0.01, "high": 0.01, "from_step": 1, "to_step": 2, "samples": 999}


@pytest.fixture(scope="module")
def bench(t):
    """A teacher that copies 80 % of its seeds, and the verdict on any student of it."""
    draw = torch.Generator().manual_seed(1)
    copies = to_float(t.images[torch.randint(100, (SEEDS,), generator=draw)])
    copies = copies + 0.02 * torch.randn(copies.shape, generator=draw)
    new = to_float(t.held_out_images[torch.randint(400, (SEEDS,), generator=draw)])
    x = torch.where((torch.arange(SEEDS) < 480)[:, None, None, None], copies, new)
    noise, search, seeds = torch.randn(x.shape, generator=draw), group_index(t), torch.arange(SEEDS)
    control = search.query(t.held_out_images, 2).squared
    fidelity = Fidelity(interval=True).prepare(t)

    def rows(y):
        found = search.query(to_uint8(y), 2)
        return {"seeds": seeds, "squared": found.squared, "groups": found.groups}

    def distance(y):
        fidelity.reset()
        fidelity.update(to_uint8(y), seeds)
        return fidelity.compute()

    def ci95(squared):
        return tuple(fraction(memorized(squared[:, 0], squared[:, 1]))["ci95"])

    teacher, bound = rows(x), distance(x)["fd_pixels_high"]

    def verdict(y):
        student = rows(y)
        paired = compare(teacher, student, 1 / 3)
        adjust([paired])
        paired["matched"] = fidelity_matched(to_uint8(x), teacher, student, search, 1 / 3, ratios(control))
        pair = PairedWithTeacher()
        pair.prepare(t)
        pair.update(y, x, seeds)
        return judge(
            variance_ratio=pair.compute()["variance_ratio"],
            paired=paired,
            teacher_ci95=ci95(teacher["squared"]),
            control_ci95=ci95(control),
            f_mem_trend=STOPPED,
            rmse_trend=STOPPED,
            annealed=False,
            as_real=distance(y)["fd_pixels_low"] <= bound,
        )

    return SimpleNamespace(x=x, new=new, noise=noise, verdict=verdict)


@pytest.mark.parametrize("level", [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0])
def test_noise_of_renormalised_variance_is_no_forgetting(bench, level):
    mean, variance = bench.x.mean(0), bench.x.var(0, correction=0).mean()
    student = mean + (bench.x - mean + level * bench.noise) / (1 + level**2 / variance) ** 0.5
    assert bench.verdict(student).claim == "undecided"


def test_other_damage_of_equal_variance_is_no_forgetting(bench):
    mean, variance = bench.x.mean(0), bench.x.var(0, correction=0).mean()
    for student in (-bench.x, bench.x + 0.3, bench.x + 1.0, bench.x.flip(-1), bench.x.roll(1, -1)):
        assert bench.verdict(student).claim == "undecided"
    assert bench.verdict(mean + variance**0.5 * bench.noise).claim == "undecided"


def test_students_that_do_forget_are_found(bench):
    assert bench.verdict(bench.new).claim == "reduced"
    half = bench.x.clone()
    half[:300] = bench.new[:300]
    assert bench.verdict(half).claim == "reduced"
    assert bench.verdict(bench.x).claim == "unchanged"
