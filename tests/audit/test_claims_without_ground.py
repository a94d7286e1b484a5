"""No claim without ground: students that only look forgetful, too few images, classes without labels."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cdmem.audit.pairs import Samples, Yardstick, pair_record
from cdmem.audit.reference_sets import with_held_out
from cdmem.cli.main import main
from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from cdmem.images import to_float, to_uint8
from cdmem.metrics.comparison.paired import PairedWithTeacher
from cdmem.metrics.comparison.verdict import Evidence, judge
from cdmem.metrics.memorization.fraction import fraction
from cdmem.metrics.memorization.ratio import memorized, ratios
from cdmem.metrics.neighbors.index import group_index
from cdmem.metrics.neighbors.tolerant import tolerant_search
from cdmem.metrics.quality.fidelity import Fidelity
from cdmem.metrics.whitebox.record import whitebox_record


@pytest.fixture(scope="module")
def t():
    return choose(load_source("digits"), SubsetSpec(n=100, seed=0, held_out=400))


def audited(folder, capsys, *more: str, **images):
    """The record of an audit of ``generator`` against ``training_set`` and ``held_out``, and what was printed."""
    for name, pixels in images.items():
        np.savez(folder / f"{name}.npz", images=pixels[:, 0].numpy())
    options = [word for name in images for word in (f"--{name}", str(folder / f"{name}.npz"))]
    with pytest.raises(SystemExit) as stop:
        main(["audit", "--quiet", *options, "--out", str(folder / "no/such/o.json"), *more])
    assert stop.value.code == 0
    text = (folder / "no/such/o.json").read_text()
    return json.loads(text, parse_constant=pytest.fail), capsys.readouterr().out


@pytest.mark.parametrize(("samples", "held_out"), [(2, 60), (3, 60), (9, 60), (10, 60), (10, 9), (10, 0)])
def test_a_few_images_have_a_fraction_but_no_distance(tmp_path, capsys, t, samples, held_out):
    """No Frechet or kernel distance of fewer than ten images, or to fewer; the reason stands in every place."""
    h = {"held_out": t.held_out_images[:held_out]} if held_out else {}
    record, printed = audited(tmp_path, capsys, training_set=t.images, generator=t.images[:samples], **h)
    (model,) = record["models"]
    assert model["f_mem"]["value"] == 1.0
    found = {key: model["quality"].get(key) is not None for key in ("fd_pixels", "kid_pixels", "fd_pixels_train")}
    assert found["fd_pixels_train"] is (samples >= 10)
    assert found["fd_pixels"] is found["kid_pixels"] is (min(samples, held_out) >= 10)
    few = samples if samples < 10 else held_out
    said = [] if few in (0, 60) else [r for r in model["quality"]["unavailable"] if f" {few} " in r and "nothing" in r]
    assert len(said) == (few not in (0, 60)) and all(r in record["notes"] and f"note: {r}" in printed for r in said)
    assert "unavailable" in model["quality"] or few in (0, 60)


@pytest.mark.parametrize("kind", ["all", "half", "repeated"])
def test_the_likelihood_gap_of_a_perfect_copycat_is_unbounded(tmp_path, capsys, t, kind):
    """In JSON and on the terminal, and nothing astronomical in any number."""
    copies = {"all": t.images, "half": t.images[:50], "repeated": t.images[:5].repeat(20, 1, 1, 1)}[kind]
    options = {"training_set": t.images, "held_out": t.held_out_images[:60], "generator": copies}
    record, printed = audited(tmp_path, capsys, "--metrics", "copying", **options)
    found = record["models"][0]["metrics"]["likelihood_pixels"]
    assert (found["fld"], found["fld_gap"], found["fld_nll_heldout"]) == ("inf", "-inf", "inf")
    assert found["fld_nll_train"] == ("-inf" if kind == "all" else "inf") and found["fld_gap_se"] is None
    assert all(abs(float(v)) < 1e6 for key, v in found.items() if v is not None and "inf" not in str(v))
    rows = [line for line in printed.splitlines() if line.startswith(("images ", "copies of T"))]
    assert all("-inf" in row for row in rows[2:]) and len(rows) == 4 and "e+" not in printed


def test_one_fresh_image_makes_the_likelihood_gap_a_number(tmp_path, capsys, t):
    images = torch.cat([t.images, t.held_out_images[60:61]])
    options = {"training_set": t.images, "held_out": t.held_out_images[:60], "generator": images}
    record, _ = audited(tmp_path, capsys, "--metrics", "copying", **options)
    assert -1e6 < record["models"][0]["metrics"]["likelihood_pixels"]["fld_gap"] < -10


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


@pytest.fixture(scope="module")
def bench(t):
    """A teacher that copies 80 % of its seeds, and the verdict on any student of it that is taken as converged."""
    draw = torch.Generator().manual_seed(1)
    copies = to_float(t.images[torch.randint(100, (SEEDS,), generator=draw)])
    copies = copies + 0.02 * torch.randn(copies.shape, generator=draw)
    new = to_float(t.held_out_images[torch.randint(400, (SEEDS,), generator=draw)])
    x = torch.where((torch.arange(SEEDS) < 480)[:, None, None, None], copies, new)
    noise, search, seeds = torch.randn(x.shape, generator=draw), group_index(t), torch.arange(SEEDS)
    control, tolerant = search.query(t.held_out_images, 2).squared, tolerant_search(t)
    yardstick = Yardstick(search, 1 / 3, ratios(control), tolerant.threshold)
    fidelity = Fidelity(interval=True).prepare(t)

    def samples(y):
        images = to_uint8(y)
        found, near = search.query(images, 2), tolerant.index.query(images)
        rows = {"seeds": seeds, "squared": found.squared, "groups": found.groups}
        return Samples(images, rows | {"tolerant_ratio": near.ratio, "tolerant_group": near.groups})

    def distance(y):
        fidelity.reset()
        fidelity.update(to_uint8(y), seeds)
        return fidelity.compute()

    def ci95(squared):
        return tuple(fraction(memorized(squared[:, 0], squared[:, 1]))["ci95"])

    teacher, bound = samples(x), distance(x)["fd_pixels_high"]

    def verdict(y):
        pair = PairedWithTeacher().prepare(t)
        pair.update(y, x, seeds)
        values = pair.compute()
        belong = values["same_basin_low"] > values["same_basin_chance"]
        evidence = Evidence(
            variance_ratio=values["variance_ratio"],
            teacher_ci95=ci95(teacher.rows["squared"]),
            control_ci95=ci95(control),
            pair=pair_record(teacher, samples(y), yardstick, belong),
            converged=True,
            as_real=distance(y)["fd_pixels_low"] <= bound,
        )
        return judge(evidence)

    return SimpleNamespace(x=x, new=new, noise=noise, verdict=verdict)


@pytest.mark.parametrize("level", [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0])
def test_noise_of_renormalised_variance_is_no_forgetting(bench, level):
    """On the images as saved, strong noise of the same variance is partly cut off: it may be no distillation at all."""
    mean, variance = bench.x.mean(0), bench.x.var(0, correction=0).mean()
    student = mean + (bench.x - mean + level * bench.noise) / (1 + level**2 / variance) ** 0.5
    assert bench.verdict(student).claim in ("undecided", "not_distilled")


def test_other_damage_of_equal_variance_is_no_forgetting(bench):
    mean, variance = bench.x.mean(0), bench.x.var(0, correction=0).mean()
    damaged = (-bench.x, bench.x + 0.3, bench.x + 1.0, bench.x.flip(-1), bench.x.roll(1, -1))
    for student in (*damaged, mean + variance**0.5 * bench.noise):
        assert bench.verdict(student).claim in ("undecided", "not_distilled")


def test_students_that_do_forget_are_found(bench):
    assert bench.verdict(bench.new).claim == "reduced"
    half = bench.x.clone()
    half[:300] = bench.new[:300]
    assert bench.verdict(half).claim == "reduced"
    assert bench.verdict(bench.x).claim == "unchanged"
