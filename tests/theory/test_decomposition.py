"""The decomposition against exact predictions: a sampler that knows its target, exact guidance, brute force."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

import support
from callbacks.decomposition import DecompositionCallback
from cdmem.diffusion.analytic import EmpiricalDenoiser
from cdmem.diffusion.noise import sampler_sigmas
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.theory.decomposition.laboratory import Settings, run
from cdmem.theory.decomposition.parts import correlate, decompose, diversity, posterior, split
from cdmem.theory.decomposition.paths import exact_guided, exact_schedule, first_overestimate, walk
from cdmem.theory.decomposition.trained import guided_teacher, targets
from cdmem.theory.measures import nearest_two
from cdmem.theory.trained_pair import Pair
from support.fuzz import DATA, MODEL, TEACHER, furnish
from support.laboratory import QUIET, succeed

SIGMAS = sampler_sigmas(12, 0.01, 20.0)


def make(n=5, seeds=6):
    images = to_float(support.random_images(n, (1, 3, 4))).double()
    return images, 20.0 * torch.randn(seeds, 1, 3, 4, generator=support.rng(1), dtype=torch.float64)


def knowing(target):
    """The estimate of a sampler that knows its target from the start."""
    return lambda x, sigma, labels=None: target.expand_as(x)


# ---- the path -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("g", [1.0, 3.0])
def test_a_sampler_that_knows_its_target_follows_the_exact_schedule(g):
    """An estimate mu + g (x* - mu) has a = g at every step; with g = 3, w_0 lies above the schedule."""
    images, start = make()
    mean = images.mean(0)
    path = walk(knowing(mean + g * (images[2] - mean)), start, SIGMAS)
    parts = decompose(path, images.flatten(1), torch.ones(5), torch.full((6,), 2))
    torch.testing.assert_close(parts.a, torch.full_like(parts.a, g))
    assert float(parts.across.max()) < 1e-9 and float(parts.residual.max()) < 1e-9
    if g > 1:
        assert (parts.D_1 > 1).all()
        return
    for found, schedule in zip((parts.w_0, parts.w_T), exact_schedule(SIGMAS[:-1])):
        torch.testing.assert_close(found, schedule[:, None].expand(-1, 6), atol=1e-9, rtol=0)
    assert float(parts.D_1.abs().max()) < 1e-9 and float(parts.D_2.abs().max()) < 1e-9
    torch.testing.assert_close(path.states[-1], images[2].flatten().expand(6, -1))


def test_the_exact_schedule_is_that_of_ddim():
    """sqrt(ab_t) - sqrt(ab_T) sqrt(1 - ab_t) / sqrt(1 - ab_T), written with alpha-bars; here ab_T is far from 0."""
    sigmas = torch.tensor([1.5, 0.7, 0.1], dtype=torch.float64)
    bars = 1 / (1 + sigmas**2)
    w_0, w_T = exact_schedule(sigmas)
    usual = bars.sqrt()
    torch.testing.assert_close(w_0, usual - bars[0].sqrt() * (1 - bars).sqrt() / (1 - bars[0]).sqrt())
    torch.testing.assert_close(w_T, (1 - bars).sqrt() / (1 - bars[0]).sqrt())
    assert float((w_0 - usual).abs().max()) > 0.3


def test_the_weights_by_least_squares():
    images, start = make()
    weights = torch.tensor([1.0, 2, 3, 1, 1])
    path = walk(EmpiricalDenoiser(images, weights), start, SIGMAS)
    flat, index = images.flatten(1), torch.tensor([0, 1, 2, 3, 4, 0])
    parts = decompose(path, flat, weights, index)
    mean = np.average(flat.numpy(), axis=0, weights=weights.numpy())
    for k, sigma in enumerate(SIGMAS[:-1].tolist()):
        for b in range(6):
            x_t = (path.states[k, b].numpy() - mean) / math.sqrt(1 + sigma**2)
            x_T = (start[b].flatten().numpy() - mean) / math.sqrt(1 + 20.0**2)
            goal, estimate = flat[index[b]].numpy() - mean, path.clean[k, b].numpy() - mean
            fit, left, *_ = np.linalg.lstsq(np.stack([goal, x_T], 1), x_t, rcond=None)
            a = estimate @ goal / (goal @ goal)
            across = np.linalg.norm(estimate - a * goal) / np.linalg.norm(goal)
            found = [float(v[k, b]) for v in (parts.w_0, parts.w_T, parts.residual, parts.a, parts.across)]
            assert found == pytest.approx([*fit, float(left[0]) / (x_t @ x_t), a, across], abs=1e-9)


def test_the_posterior_is_that_of_the_exact_denoiser():
    """Its mean is the exact estimate, multiplicities included; commitment is its first passage of one half."""
    images, start = make()
    weights = torch.tensor([1.0, 4, 1, 1, 2])
    denoiser = EmpiricalDenoiser(images, weights)
    path = walk(denoiser, start, SIGMAS)
    mass = posterior(path.states[:-1], path.sigmas[:-1], images.flatten(1), weights)
    torch.testing.assert_close(mass @ images.flatten(1), path.clean, atol=1e-9, rtol=0)
    ends = nearest_two(path.states[-1], images.flatten(1))[1][:, 0]
    parts = decompose(path, images.flatten(1), weights, ends)
    for b in range(6):
        own = mass[:, b, ends[b]]
        first = next(s for s, m in zip(SIGMAS.tolist(), own.tolist()) if m > 0.5)
        assert float(parts.commitment[b]) == pytest.approx(first)


def test_diversity_of_a_sampler_that_knows_its_target_is_the_schedule_squared():
    images, start = make(seeds=9)
    path = walk(knowing(images[0]), start, SIGMAS)
    ratio, groups = diversity(path, torch.tensor([0] * 7 + [1] * 2))
    assert groups == 1  # two paths are too few
    torch.testing.assert_close(ratio, exact_schedule(SIGMAS[:-1])[1] ** 2)


# ---- guidance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("g", [1.0, 2.0, 7.5])
def test_guidance_towards_a_class_of_one_image_overestimates_by_g(g):
    images, start = make()
    weights = torch.tensor([1.0, 1, 3, 1, 1])
    for sigma in (20.0, 1.0):
        found = first_overestimate(images, weights, 2, g, start / 20 * sigma, sigma)
        torch.testing.assert_close(found, torch.full((6,), g, dtype=torch.float64), atol=1e-6, rtol=1e-9)
    # Against the mean it is g where the unconditional estimate is the mean: at the first step.
    levels = torch.tensor([2000.0, 1.0], dtype=torch.float64)
    path = walk(exact_guided(images, weights, torch.tensor([2]), g), start * 100, levels)
    parts = decompose(path, images.flatten(1), weights, torch.full((6,), 2))
    torch.testing.assert_close(parts.a[0], torch.full((6,), g, dtype=torch.float64), atol=0.05, rtol=0)


def test_targets_are_images_that_make_up_half_of_their_class():
    labels, weights = torch.tensor([0, 0, 0, 1, 2, 2, 4, 3, 3]), torch.tensor([1, 1, 1, 3, 1, 9, 2, 5, 5])
    found = targets(labels, weights, 5)
    assert [(t.label, t.image, t.copies, t.share) for t in found] == [(1, 3, 3, 1.0), (2, 5, 9, 0.9), (4, 6, 2, 1.0)]
    assert found[1].members.tolist() == [4, 5]


class ExactByLabel:
    """What label dropout converges to: a class's exact denoiser, and everything's for the null label."""

    def __init__(self, images, weights, labels, null):
        self.parts = [EmpiricalDenoiser(images[labels == c], weights[labels == c]) for c in range(null)]
        self.parts.append(EmpiricalDenoiser(images, weights))

    def __call__(self, x, sigma, labels=None):
        out = torch.empty_like(x)
        for c in labels.unique().tolist():
            out[labels == c] = self.parts[c](x[labels == c], sigma[labels == c], None)
        return out


def test_a_teacher_that_label_dropout_taught_exactly_is_guided_as_the_exact_denoisers():
    images, _ = make(n=7)
    labels, weights = torch.tensor([0, 1, 1, 2, 3, 3, 3]), torch.tensor([1, 1, 6, 2, 1, 1, 1])
    teacher = ExactByLabel(images, weights, labels, 4)
    pair = Pair(teacher, None, images, weights, labels, 0.01, 2000.0, num_classes=4, null_label=4)  # type: ignore[arg-type]
    found = guided_teacher(pair, sampler_sigmas(12, 0.01, 2000.0), [1.0, 3.0], 24, 0)
    assert [c["label"] for c in found["classes"]] == [0, 1, 2] and found["seeds"] == 8
    for row in found["rows"]:
        assert repr(row["trained"]) == repr(row["exact"])
        assert row["exact"]["hits"]["mean"] > 0.8
    # Of the classes of one image the first estimate is g; of class 1 g <mean of the class - mu, x* - mu> / |x* - mu|^2.
    flat, w = images.flatten(1), weights.double()
    mu, own = (w[:, None] * flat).sum(0) / w.sum(), (flat[1] + 6 * flat[2]) / 7
    share = float((own - mu) @ (flat[2] - mu) / ((flat[2] - mu) @ (flat[2] - mu)))
    assert found["rows"][1]["exact"]["a_first"]["mean"] == pytest.approx(3 * (2 + share) / 3, abs=0.05)
    assert guided_teacher(replace(pair, labels=torch.zeros(7).long()), SIGMAS, [2.0], 24, 0)["rows"] == []


# ---- students and statistics ----------------------------------------------------------------------------------------


def test_the_split_of_an_output():
    mean, goal = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([[3.0, 1.0, 0.0]])
    found = split(torch.tensor([[2.0, 4.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.0]]), goal, mean)
    assert float(found.a) == 0.5 and float(found.across) == 1.5  # (1, 3) along (2, 0)
    assert float(found.cosine) == pytest.approx(3 / math.sqrt(10))


def test_correlations_are_scipys_and_their_interval_holds_the_truth():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    y = 0.6 * x + 0.8 * rng.normal(size=400)
    for kind, theirs in (("pearson", pearsonr(x, y)), ("spearman", spearmanr(x, y))):
        found = correlate(kind, x, y, 0)
        assert found.value == pytest.approx(theirs.statistic) and found.low < 0.6 < found.high
        assert 0.05 < found.high - found.low < 0.25
    found = correlate("pearson", np.append(x, np.nan), np.append(y, 1.0), 0)
    assert found.value == pytest.approx(pearsonr(x, y).statistic)
    assert math.isnan(correlate("pearson", np.ones(9), np.arange(9.0), 0).value)


# ---- the laboratory -------------------------------------------------------------------------------------------------


TINY = Settings(n=6, samples=16, steps=10, scales=[1.0, 3.0])


@pytest.fixture(scope="module")
def exact():
    return run(TINY, QUIET).results


def test_the_exact_teacher_copies_and_random_targets_do_not_explain_it(exact):
    paths = exact["paths"]
    assert paths["f_mem"] == 1 and exact["student"] is None and exact["status"] == "reconstruction"
    assert paths["nearest"]["along"]["posterior"][-1] == pytest.approx(1) and paths["commitment"]["all"] > 0
    assert paths["random"]["along"]["posterior"][-1] == pytest.approx(0, abs=1e-6)
    assert [row["a_against_unconditional"] for row in exact["guidance"]] == pytest.approx([1, 3])
    assert exact["guidance"][0]["hits"] == 1


def test_the_same_seed_gives_the_same_numbers(exact):
    assert repr(run(TINY, QUIET).results) == repr(exact)


def test_a_trained_run_with_its_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    args = ["--run", "run", "--samples", "12", "--steps", "8", "--scales", "[1,2]", "--quiet", "--out"]
    succeed("theory", "decomposition", *args, "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [r["steps"] for r in results["student"]["students"]] == [1, 2] and "run" in results["teacher"]
    shutil.rmtree(tmp_path / "run" / "student")
    succeed("theory", "decomposition", *args, "alone")  # a teacher alone will do
    assert json.loads((tmp_path / "alone" / "results.json").read_text())["student"] is None


@pytest.mark.slow
@pytest.mark.sensitive
def test_any_teacher_alone_and_its_own_guidance(tmp_path, monkeypatch):
    """Trained with label dropout, then looked at by its stage folder, its checkpoint and exported."""
    monkeypatch.chdir(tmp_path)
    data = DATA | {"balance": True, "n": 10, "classes": None, "duplication": None}
    model = {"class_path": "cdmem.training.DiffusionTeacher",
             "init_args": MODEL | {"conditional": True, "label_dropout": 0.5}}  # fmt: skip
    (tmp_path / "t.yaml").write_text(json.dumps({**TEACHER, "model": model, "data": data}))
    succeed("fit", "--config", "t.yaml", "--run_dir", "own")
    succeed("export", "--checkpoint", "own", "--out", "exported")
    small = ["--samples", "8", "--steps", "4", "--scales", "[1,2]", "--quiet"]
    texts = []
    for k, path in enumerate(("own", "own/checkpoints/last.ckpt", "exported")):
        given = ["--training_set", "own"] if path == "exported" else []
        succeed("theory", "decomposition", "--teacher", path, *given, *small, "--out", f"out{k}")
        found = json.loads((tmp_path / f"out{k}" / "results.json").read_text())
        assert len(found["guided_teacher"]["classes"]) == 10 and len(found["guided_teacher"]["rows"]) == 2
        assert "Guidance of the trained teacher" in (tmp_path / f"out{k}" / "report.html").read_text()
        texts.append(found["guided_teacher"]["rows"][1]["trained"]["a_first"]["mean"])
    assert texts[0] == texts[1] == pytest.approx(texts[2], abs=1e-5)
    furnish(tmp_path)
    wrong = [({"teacher": "own", "training_set": "run"}, "training_set"), ({"teacher": "exported"}, "training_set")]
    for changes, key in (*wrong, ({"teacher": "run/student"}, "teacher"), ({"teacher": "missing"}, "teacher")):
        with pytest.raises(InputError, match=rf"^{key}="):
            run(Settings(**changes), QUIET)


# ---- while training -------------------------------------------------------------------------------------------------


def test_the_callback_logs_the_parts(tmp_path):
    settings = {"steps": 4, "cadence": {"samples": 6, "points": 2}}
    own = {"class_path": "callbacks.DecompositionCallback", "init_args": settings}
    config = {**TEACHER, "trainer": {**TEACHER["trainer"], "callbacks": [own]}}
    (tmp_path / "teacher.yaml").write_text(json.dumps(config))
    succeed("fit", "--config", tmp_path / "teacher.yaml", "--run_dir", tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = {k: v for row in rows for k, v in row.items() if k.startswith("decomposition/")}
    names = ("D_1", "D_2", "a_first", "across_first", "commitment", "residual")
    assert set(last) == {f"decomposition/{name}" for name in names} and all(map(math.isfinite, last.values()))
    with pytest.raises(InputError, match=r"steps=1"):
        DecompositionCallback(steps=1)
