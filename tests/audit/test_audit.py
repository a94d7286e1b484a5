"""A whole audit of teachers whose answer is known."""

from __future__ import annotations

import json

import pytest
import torch
from scipy import stats

from cdmem.audit.auditor import Auditor
from cdmem.audit.gate import detectors, judge_gate
from cdmem.audit.generators import Generator
from cdmem.audit.result import AuditResult
from cdmem.audit.settings import AuditSettings
from cdmem.audit.text import table
from cdmem.data.pixels import ImagePool
from cdmem.data.subset import SubsetSpec, choose
from cdmem.diffusion.analytic import EmpiricalDenoiser, GaussianDenoiser
from cdmem.diffusion.noise import sampler_sigmas
from cdmem.diffusion.sampling import OdeSampler
from cdmem.diffusion.solvers import heun_step
from cdmem.distillation.ceiling import CeilingSampler
from cdmem.images import to_float
from cdmem.metrics.neighbors.pixels import int_mm_works
from cdmem.metrics.statistics import wilson_interval
from cdmem.seeds import first_sample

SHAPE = (1, 8, 8)
SAMPLES = 400


def training_set(held_out=30):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, *SHAPE), generator=generator, dtype=torch.uint8)
    pool = ImagePool(images, torch.zeros(60, dtype=torch.int64), (), torch.arange(60), "random", {})
    groups = [{"fraction": 0.25, "copies": 8}, {"fraction": 0.25, "copies": 2}]
    return choose(pool, SubsetSpec(n=12, duplication=groups, held_out=held_out))


def subject(denoiser, name="teacher", role="teacher"):
    sampler = OdeSampler(denoiser, sampler_sigmas(18), heun_step, SHAPE)
    return Generator(name, role, "heun", sampler, "raw", 0)


def empirical(t):
    return EmpiricalDenoiser(to_float(t.images), t.multiplicities)


def auditor(t, samples=SAMPLES, sampling_seed=0, **settings):
    return Auditor(t, AuditSettings(samples=samples, **settings), sampling_seed, progress=False)


@pytest.fixture(scope="module")
def t():
    return training_set()


@pytest.fixture(scope="module")
def result(t):
    gaussian = GaussianDenoiser.fit(to_float(t.images), t.multiplicities)
    return auditor(t).run([subject(empirical(t)), subject(gaussian, "smooth", "student")])


def test_the_exact_teacher_copies_in_proportion_to_the_multiplicities(t):
    assert sorted(t.multiplicities.tolist()) == [1] * 6 + [2] * 3 + [8] * 3
    audit = auditor(t)
    drawn = audit.draw(subject(empirical(t)))
    entry = audit.measure(drawn, None)
    assert entry["f_mem"]["value"] == 1.0 and entry["f_mem"]["ci95"] == list(wilson_interval(SAMPLES, SAMPLES))
    assert entry["unique"] == 12 and entry["median_ratio"] == 0.0
    assert entry["rmse_to_teacher"] is entry["same_basin"] is entry["variance_ratio"] is None
    hits = torch.bincount(drawn.rows["groups"][:, 0], minlength=12)
    slope = entry["metrics"]["coverage"]
    assert 0.8 < slope["duplication_slope"] < 1.2 and slope["unique"] == 12
    expected = t.multiplicities.double() / t.rows * SAMPLES
    assert stats.chisquare(hits.numpy(), expected.numpy()).pvalue > 1e-4
    # The test has the power to tell this from copying every image equally often.
    assert stats.chisquare(hits.numpy()).pvalue < 1e-9


def test_entries(result, t):
    teacher, smooth = result.models
    assert (teacher["name"], teacher["role"], teacher["method"], teacher["nfe"]) == ("teacher", "teacher", "heun", 35)
    assert teacher["samples"] == SAMPLES and teacher["seeds"] == [0, SAMPLES - 1]
    assert teacher["rmse_to_teacher"] == 0.0 and teacher["same_basin"] == 1.0 and teacher["variance_ratio"] == 1.0
    assert smooth["rmse_to_teacher"] > 0.1 and smooth["same_basin"] < 1.0
    about = result.training_set
    assert (about["n"], about["rows"], about["held_out"], about["hash"]) == (12, 36, 30, t.hash)
    settings = {"samples": SAMPLES, "threshold": 1 / 3, "features": "pixels", "extractors": {"pixels": "exact"}}
    assert settings.items() <= result.settings.items()
    again = AuditResult.from_dict(json.loads(result.to_json()) | {"key of a later version": 1})
    assert again.to_json() == result.to_json()


@pytest.mark.skipif(not int_mm_works(torch.device("cpu")), reason="no int8 product")
def test_the_path_of_the_products_is_recorded_and_changes_no_number(t, monkeypatch):
    records = []
    for path in ("int8", "float32"):
        audit = auditor(t, 40)
        monkeypatch.setattr(audit.search.index, "use_int_mm", path == "int8")
        record = json.loads(audit.run([subject(empirical(t))]).to_json())
        assert record["settings"].pop("neighbor_products") == path
        records.append(record)
    assert records[0] == records[1]


def test_a_teacher_that_generalises_is_far_below(result):
    teacher, smooth = result.models
    assert teacher["f_mem"]["value"] == 1.0
    assert smooth["f_mem"]["ci95"][1] < 0.2
    assert smooth["median_ratio"] > 0.4


def test_controls(result):
    control = result.control
    held = {"value": 0.0, "ci95": list(wilson_interval(0, 30)), "samples": 30}
    assert held.items() <= control["heldout_f_mem"].items()
    assert control["quality"]["fd_pixels_copycat"] > 0 and control["quality"]["fd_pixels_floor"] > 0
    assert control["copycat"]["f_mem"] == {"value": 1.0, "ci95": list(wilson_interval(SAMPLES, SAMPLES))}
    # The exact optimum is a copycat: as far from the held-out images, up to the draw.
    copycat, teacher = control["copycat"]["quality"], result.models[0]["quality"]
    assert set(copycat) == set(teacher) >= {"fd_pixels", "kid_pixels", "fd_pixels_train", "kid_pixels_low"}
    assert teacher["fd_pixels_low"] < teacher["fd_pixels"] < teacher["fd_pixels_high"]
    assert teacher["fd_pixels"] == pytest.approx(copycat["fd_pixels"], rel=0.1)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_batch_size_changes_no_number(t, batch_size):
    smooth = GaussianDenoiser.fit(to_float(t.images), t.multiplicities)
    subjects = [subject(empirical(t)), subject(smooth, "smooth", "student")]
    texts = [auditor(t, 60, batch_size=size).run(subjects).to_json() for size in (256, batch_size)]
    one, other = map(json.loads, texts)
    for key in ("f_mem", "thresholds", "unique", "same_basin"):
        assert [m[key] for m in one["models"]] == [m[key] for m in other["models"]]
    # Other counts are the same as well, and floats up to their last bits.
    assert one == json.loads(texts[1], parse_float=lambda x: pytest.approx(float(x), rel=1e-6, abs=1e-9))


def test_sampling_seeds_share_no_sample(t):
    a, b = auditor(t, 20), auditor(t, 20, sampling_seed=3)
    gaussian = subject(GaussianDenoiser.fit(to_float(t.images)))
    assert b.seeds(gaussian) == list(range(first_sample(3), first_sample(3) + 20))
    assert not torch.equal(a.draw(gaussian).images, b.draw(gaussian).images)
    assert torch.equal(a.draw(gaussian).images[:5], auditor(t, 5).draw(gaussian).images)


def test_without_held_out_images():
    alone = training_set(held_out=0)
    result = auditor(alone, 20).run([subject(empirical(alone))])
    assert result.control["heldout_f_mem"] is None
    quality = result.models[0]["quality"]
    assert quality["fd_pixels"] is quality["kid_pixels"] is None and quality["fd_pixels_train"] >= 0
    assert "held_out" in result.models[0]["metrics"]["copy_test_pixels"]["unavailable"]
    assert result.models[0]["f_mem"]["value"] == 1.0


def test_the_same_student_is_kept_and_a_forgetful_one_loses(result, t):
    """The exact teacher against itself under another name, and against a smooth student: fates of all seeds."""
    twins = auditor(t).run([subject(empirical(t)), subject(empirical(t), "twin", "student")])
    twin = twins.models[1]["paired"]
    assert twin["transfer"]["kept_same"] == SAMPLES and twin["difference"]["value"] == 0
    assert twin["difference"]["p_holm"] == 1 and twin["identity"]["kappa"] == 1
    assert twin["matched"]["noise"] == 0 and twin["matched"]["difference"]["value"] == 0
    smooth = result.models[1]["paired"]
    assert smooth["transfer"]["lost"] > 0.8 * SAMPLES and smooth["difference"]["ci95"][1] < -0.8
    assert sum(smooth["transfer"].values()) == SAMPLES
    # Nobody followed these students along a distillation.
    assert twins.models[1]["verdict"]["reason"] == "no limit can be given: no evaluations along the distillation"
    assert result.models[1]["verdict"]["claim"] in ("not_distilled", "undecided")


def test_a_ceiling_is_measured_beside_its_student_and_never_judged(t):
    """The exact teacher down a grid of its own copies everything, whatever its student does; no gate looks at it."""
    smooth = subject(GaussianDenoiser.fit(to_float(t.images), t.multiplicities), "student", "student")
    sampler = CeilingSampler.of(empirical(t), 10, "heun", 80.0, 0.002, SHAPE, (0.8,))
    ceiling = Generator("ceiling of student", "ceiling", "heun", sampler, "raw", 0)
    audited = auditor(t, 60).run([subject(empirical(t)), smooth, ceiling])
    entry = audited.models[2]
    assert (entry["name"], entry["role"], entry["nfe"]) == ("ceiling of student", "ceiling", 2)
    assert entry["f_mem"] == {"value": 1.0, "ci95": list(wilson_interval(60, 60))}
    assert entry["seeds"] == audited.models[1]["seeds"] and entry["rmse_to_teacher"] > 0 and entry["variance_ratio"] > 0
    assert "paired" not in entry and "verdict" not in entry
    assert any(line.startswith("ceiling of student (heun)  2 ") for line in table(audited))
    looked = detectors(["f_mem"], [], 30)
    assert [b.model for b in judge_gate(audited.models, 30, looked, 0.5).bounds] == ["student 35 NFE"]


def test_a_converged_twin_is_unchanged(t):
    """By a limit that its distillation gave, or on the user's word."""
    pair = [subject(empirical(t)), subject(empirical(t), "twin", "student")]
    zero = {"value": 0.0, "ci90": [-0.02, 0.02], "ci95": [-0.03, 0.03], "from_step": 5}
    record = {"limit": {"35": {"strict": zero, "tolerant": zero}}, "length": "9 steps"}
    verdict = auditor(t).run(pair, {"twin": record}).models[1]["verdict"]
    assert verdict["claim"] == "unchanged" and "after 9 steps" in verdict["statement"]
    assert verdict["limit"] == zero and verdict["coverage"]["student"] == 12 and verdict["lost_seeds"]["count"] == 0
    given = Auditor(t, AuditSettings(samples=SAMPLES), progress=False, converged=True).run(pair)
    assert given.models[1]["verdict"]["claim"] == "unchanged" and given.settings["converged"] == "given by the user"
    assert "taken as given" in given.models[1]["verdict"]["statement"]
