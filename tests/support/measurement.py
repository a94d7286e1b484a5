"""Checks of distances, groups, copying in feature space, quality, extractors and of what goes into an audit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from cdmem import images as pixels
from cdmem.audit import reference_sets as references
from cdmem.audit.auditor import Auditor
from cdmem.audit.gate import detectors, judge_gate
from cdmem.audit.settings import AuditSettings
from cdmem.audit.verdicts import Verdicts
from cdmem.metrics.comparison import paired as pairing
from cdmem.metrics.memorization import authenticity, extraction
from cdmem.metrics.memorization import data_copying as copying
from cdmem.metrics.memorization import feature_likelihood as likelihood
from cdmem.metrics.memorization import fraction as memorization
from cdmem.metrics.neighbors import features as feature_neighbors
from cdmem.metrics.neighbors import index as search
from cdmem.metrics.neighbors import pixels as neighbors
from cdmem.metrics.quality import efficientnet, feature_space, features, fidelity, frechet, inception, prdc
from cdmem.models import pipelines
from support.parts import make_training_set, random_images, refused, rng
from support.samples import normal


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def close(found, wanted, rel=1e-9):
    return bool(np.allclose(np.asarray(found, float), np.asarray(wanted, float), rtol=rel, atol=1e-12))


def f_mem(train, samples, **options):
    metric = memorization.MemorizedFraction().prepare(make_training_set(train, **options))
    metric.update(samples, torch.arange(len(samples)))
    return metric.compute()


def nudged(images, seed=9):
    """One grey level up or down in every pixel."""
    step = torch.randint(0, 2, images.shape, generator=rng(seed)) * 2 - 1
    return (images.int() + step).clamp(0, 255).to(torch.uint8)


# ---- neighbours and groups ------------------------------------------------------------------------------------------


def check_repeated_rows_are_one_image(exact=False):
    """A copier of a T whose rows are repeated copies everything; also where it copies to the bit (0 / 0)."""
    train = random_images(6, (1, 4, 4))
    found = f_mem(train.repeat_interleave(3, 0), train if exact else nudged(train))
    assert found["f_mem"] == 1.0 and found["unique"] == 6 and found["median_ratio"] < 0.1


def check_exact_copies():
    """Distance 0 is memorised at ratio 0, not left out as undefined."""
    train = random_images(6, (1, 4, 4))
    found = f_mem(train, train)
    assert (found["f_mem"], found["median_ratio"], found["cdf_area"]) == (1.0, 0.0, 1.0)


def check_mirror_images():
    """Where training mirrors, a mirrored copy is a copy, and an image's own mirror image is no second neighbour."""
    train = random_images(6, (1, 4, 4))
    assert f_mem(train, train.flip(-1), flip=True)["f_mem"] == 1.0
    assert f_mem(train, train.flip(-1), flip=False)["f_mem"] < 0.5
    half = random_images(6, (1, 4, 2), seed=1)
    symmetric = nudged(torch.cat([half, half.flip(-1)], -1))
    assert f_mem(symmetric, nudged(symmetric, seed=2), flip=True)["f_mem"] == 1.0


def check_threshold():
    """1/3 of the distances, not of their squares; ratios are distances; the distribution counts strictly below."""
    one, two = torch.tensor([10, 10, 0]), torch.tensor([91, 89, 5])
    assert memorization.memorized(one, two).tolist() == [True, False, True]
    ratio = memorization.ratios(torch.tensor([[1, 4], [0, 7], [9, 9]]))
    assert ratio.tolist() == [0.5, 0.0, 1.0]
    assert close(memorization.ratio_cdf(ratio, torch.tensor([0.0, 0.5, 0.6, 1.0]).double()), [0, 1 / 3, 2 / 3, 2 / 3])


def check_distances_are_integers():
    """Squared distances are those of int64 differences, also of near copies of bright images."""
    train = random_images(12, (3, 16, 16), low=200)
    queries = torch.cat([nudged(train), random_images(4, (3, 16, 16), seed=3)])
    queries[0] = train[0]
    queries[0, 0, 0, 0] ^= 1
    found = neighbors.NeighborIndex(train).query(queries)
    wanted = (queries[:, None].long() - train.long()).square().flatten(2).sum(2).sort(1).values[:, :2]
    assert torch.equal(found.squared, wanted)


def check_ties_go_to_the_lowest_group():
    """Of two groups at one distance the lower one is named, whichever row brought it there."""
    train = torch.tensor([0, 90, 200, 110], dtype=torch.uint8).reshape(4, 1, 1, 1)
    index = neighbors.NeighborIndex(train, labels=torch.tensor([0, 1, 2, 0]))
    found = index.query(torch.tensor([100], dtype=torch.uint8).reshape(1, 1, 1, 1))
    assert (
        found.squared.tolist() == [[100, 100]] and found.groups.tolist() == [[0, 1]] and found.nearest.tolist() == [3]
    )


def check_spacing_leaves_the_own_group_out():
    values = torch.tensor([0, 0, 10, 40], dtype=torch.uint8).reshape(4, 1, 1, 1)
    assert search.group_index(make_training_set(values)).spacing().tolist() == [10.0, 10.0, 30.0]


def check_extraction_scores():
    """Carlini's root mean square in [0, 1], and his distance over alpha times the mean of the k nearest."""
    assert close(extraction.absolute_distance(torch.tensor([16 * 51**2]), 16), [0.2])
    assert close(extraction.adaptive_score(torch.tensor([[4, 36, 100]])), [2 / (0.5 * 6)])


def check_feature_distances():
    """Near neighbours far from the origin, in two clusters that no centring brings together, are still exact."""
    far = 1e4 * torch.ones(1, 64)
    rows = torch.cat([far + 0.02 * torch.randn(150, 64, generator=rng(0)), -far.repeat(150, 1)])
    queries = rows[:40] + 0.01 * torch.randn(40, 64, generator=rng(1))
    found = feature_neighbors.FeatureIndex(rows).query(queries, 2)
    wanted = (queries[:, None].double() - rows.double()).square().sum(2).sort(1)
    assert torch.equal(found.groups, wanted.indices[:, :2]) and close(found.squared, wanted.values[:, :2])
    b = normal(30, 9, 2) + 1e4
    (_, table), *_ = feature_space.squared_blocks(torch.cat([b[:1], b[1:2] + 1e-7]), b)
    assert float(table[0, 0]) == 0 and close(table[1, 1], float((b[1] + 1e-7 - b[1]).square().sum()))


# ---- copying in feature space ---------------------------------------------------------------------------------------


def check_authenticity(copies=1):
    """By hand: T at 0, 1, 4, 10 with nearest others at 1, 1, 3, 6; samples at 1.5, 2.5, 6 and 6.5 from 0, 4, 10, 10."""
    train = column(0, 1, 4, 10).repeat_interleave(copies, 0)
    assert authenticity.authentic(column(-1.5, 6.5, 16, 16.5), train).tolist() == [True, False, False, True]


def check_copy_test():
    """Copies read far below 0, samples farther than held-out images above."""
    train, held_out = normal(90, 5, 0), normal(90, 5, 1)
    cells = copying.Cells(train, cells=1)
    scores = [cells.score(held_out, q).c_t for q in (train + 0.01 * normal(90, 5, 2), held_out * 3)]
    assert scores[0] < -5 and scores[1] > 3


def check_two_sample_copies():
    """Exact copies are never told apart, also where one was made twice."""
    train = normal(20, 4, 0)
    fake = torch.cat([train[:10], train[:10]])
    assert copying.two_sample_accuracy(train, fake).fake == 0


def check_train_preference():
    """Equal distances to T and H count one half."""
    assert copying.train_preference(column(0, 0, 0), column(-1, -5), column(1, 6)).rate == 0.5


def check_likelihood():
    """Features are standardised by H; repetitions do not count; copies have a negative gap."""
    samples, held_out = 3 * normal(8, 2, 0) * torch.tensor([1.0, 9.0]), normal(40, 2, 2)
    train = normal(30, 2, 1) * torch.tensor([4.0, 0.5])
    found = likelihood.feature_likelihood(samples, train, held_out)
    mean, deviation = held_out.mean(0), held_out.std(0)
    s, t, h = ((side - mean) / deviation for side in (samples, train, held_out))
    mixture = likelihood.fit_mixture(s, t)
    nll = [-float(mixture.log_density(side).mean()) / 2 for side in (t, h)]
    assert close([found.nll_train, found.nll_held_out], nll)
    repeated = likelihood.feature_likelihood(samples, torch.cat([train, train[:10]]), held_out)
    assert close(repeated.gap, found.gap)
    assert likelihood.feature_likelihood(train + 0.01 * normal(30, 2, 3), train, held_out).gap < -50


# ---- quality --------------------------------------------------------------------------------------------------------


def check_manifold(copies=1):
    """k = 1 on a grid: balls of radius 1 around 0, 1, 2, 3; 4 lies on a boundary, which is outside."""
    real = column(0, 1, 2, 3).repeat_interleave(copies, 0)
    found = prdc.precision_recall_density_coverage(real, column(0.5, 1.5, 4), k=1)
    assert close(list(found.values()), [2 / 3, 1, 4 / 3, 3 / 4])


def check_frechet():
    """Unbiased covariances, the trace of the *root* of their product, T weighted by its multiplicities."""
    x, y = normal(50, 3, 0) * torch.tensor([1.0, 2.0, 3.0]), normal(40, 3, 1)
    found = frechet.moments(x)
    assert close(found.root.T @ found.root, np.cov(x.numpy().T))
    a, b = (np.cov(side.numpy().T) for side in (x, y))
    cross = np.sqrt(np.linalg.eigvals(a @ b).real).sum()
    wanted = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(a) + np.trace(b) - 2 * cross
    assert close(frechet.moments_distance(found, frechet.moments(y)), wanted)
    train, copies = random_images(6, (1, 2, 2)), torch.tensor([1, 1, 1, 1, 1, 9])
    metric = fidelity.Fidelity().prepare(make_training_set(train, copies))
    rows = train.flatten(1).double().repeat_interleave(copies, 0) / 127.5 - 1
    assert close(metric.references()["_train"].moments.mean, rows.mean(0), 1e-6)


def check_kernel_distance():
    """Pairs of different images only, k = (a.b / F + 1)^3."""
    x, y = normal(7, 3, 0), normal(9, 3, 1) + 0.5

    def mean(a, b, same):
        table = (a @ b.T / 3 + 1) ** 3
        return float(table[~torch.eye(len(a), dtype=torch.bool)].mean() if same else table.mean())

    wanted = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert close(fidelity.kernel_interval(x, fidelity.reference_of(y)).value, wanted)


class Fragile(nn.Module):
    """Features that betray training mode and low precision."""

    def __init__(self, seed=0):
        super().__init__()
        self.mix, self.drop = nn.Linear(16, 4), nn.Dropout(0.5)
        with torch.no_grad():
            self.mix.weight.copy_(torch.randn(4, 16, generator=rng(seed)))

    def forward(self, images):
        return self.drop(self.mix(images.float().flatten(1)))


def check_extractor_runs_as_meant():
    """Evaluation mode and full precision, also in the middle of training under autocast; the mode comes back."""
    module, images = Fragile().train(), random_images(5, (1, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        found = features.extract(module, images)
    wanted = images.double().flatten(1) @ module.mix.weight.detach().double().T + module.mix.bias.detach().double()
    assert close(found, wanted, 1e-4) and module.training and module.drop.training


def check_cache_knows_weights():
    images = random_images(64, (1, 4, 4), seed=77)
    one, two = (features.cached_features(Fragile(seed), images) for seed in (1, 2))
    assert not torch.equal(one, two)


def check_other_weights_are_refused(tmp="other_weights.pt"):
    Path(tmp).write_bytes(b"other weights")
    assert refused(lambda: efficientnet.EfficientNetLite0Features(tmp))
    assert refused(lambda: inception.InceptionFeatures(tmp))


# ---- samples, pairs, references -------------------------------------------------------------------------------------


def check_a_seed_counts_once():
    """Samplers pad the shares of processes: what comes twice counts once, in the order of the seeds."""
    train = random_images(4, (1, 4, 4))
    metric = memorization.MemorizedFraction().prepare(make_training_set(train))
    metric.update(train[[2, 0, 1, 2]], torch.tensor([9, 3, 5, 9]))
    assert metric.compute()["samples"] == 3 and metric.rows()["groups"][:, 0].tolist() == [0, 1, 2]


def check_quantisation():
    """Every grey level survives; rounding is to the nearest; beyond the range is black or white."""
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pixels.to_uint8(pixels.to_float(levels)), levels)
    x = torch.tensor([100.6, 100.4, -3.0, 258.0]) / 127.5 - 1
    assert pixels.to_uint8(x).tolist() == [101, 100, 0, 255]


def check_pair_metric():
    """Variance of the student over the teacher's and rmse per pixel, of images as saved: what lies beyond black and
    white is cut off; unclamped beside them. Basins of unrelated seeds agree by chance, which is not 1 / n."""
    teacher = torch.where(torch.rand(30, 1, 4, 4, generator=rng(0)) < 0.5, -1.0, 1.0)
    train = random_images(5, (1, 4, 4))
    metric = pairing.PairedWithTeacher().prepare(make_training_set(train))
    metric.update(2 * teacher, teacher, torch.arange(30))
    found = metric.compute()
    assert (found["variance_ratio"], found["rmse_to_teacher"]) == (1, 0)
    assert close([found["variance_ratio_unclamped"], found["rmse_unclamped"]], [4, 1])
    metric.reset()
    metric.update(teacher, teacher / 2, torch.arange(30))
    found = metric.compute()
    assert close([found["variance_ratio"], found["rmse_to_teacher"]], [4, 0.5], 0.02)
    metric.reset()
    one = pixels.to_float(train[[0, 0, 0, 1]])
    metric.update(one, one.flip(0), torch.arange(4))
    assert close(metric.compute()["same_basin_chance"], 9 / 16 + 1 / 16)


def check_controls_are_no_training_images():
    """H loses what lies in T, mirrored too where training mirrors, and what is repeated."""
    train, fresh = random_images(4, (1, 4, 4)), random_images(3, (1, 4, 4), seed=1)
    held = torch.cat([fresh, train[:2], train[2:3].flip(-1), fresh[:1]])
    assert torch.equal(references.disjoint(held, train, True)[0], fresh)
    assert references.disjoint(held, train, False)[1:] == (2, 1)


class FakeScheduler:
    """Asks for scaled noise and scaled inputs, and adds noise as diffusers does: from one generator or one each."""

    init_noise_sigma, timesteps = 80.0, torch.tensor([5.0, 2.0])

    def set_timesteps(self, steps, device=None):
        pass

    def scale_model_input(self, x, t):
        return x / t

    def step(self, out, t, x, generator):
        one = isinstance(generator, torch.Generator)
        parts = [torch.randn(x.shape, generator=generator)] if one else []
        parts = parts or [torch.randn(1, *x.shape[1:], generator=g) for g in generator]
        return SimpleNamespace(prev_sample=out + torch.cat(parts))


class FakeNetwork(nn.Module):
    def forward(self, x, t, class_labels=None):
        return SimpleNamespace(sample=3 * x)


def check_pipeline():
    """Noise and inputs in the scheduler's units; every seed draws from its own generator, whatever the batch."""
    sampler = pipelines.PipelineSampler(FakeNetwork(), FakeScheduler(), 2, (1, 2, 2))
    found, seeds = sampler([3, 8]), (3, 8)
    for image, seed in zip(found, seeds):
        generator = rng(seed)
        x = 80 * torch.randn(1, 2, 2, generator=generator)
        for t in (5, 2):
            x = 3 * x / t + torch.randn(1, 2, 2, generator=generator)
        assert close(image, x, 1e-5)


def check_gate():
    """0 of 60 cannot pass a gate of 1 %: the upper bound decides. Teachers beside a student do not count. A calibrated
    detector counts by its excess over H, and one that finds altered copies fails the gate by itself."""

    def entry(role, f_mem, hog):
        metrics = {"copy_detection_hog": {"copied": hog, "heldout_rate": 0.05}}
        return {"name": role, "nfe": 1, "role": role, "samples": 60, "f_mem": {"value": f_mem}, "metrics": metrics}

    looked = detectors(None, ["copy_detection_hog"], 1000)

    def failed(limit, f_mem=0.0, hog=0.05):
        both = [entry("teacher", 0.9, 0.9), entry("student", f_mem, hog)]
        return judge_gate(both, 1000, looked, limit).failed

    assert failed(0.01) == ["student 1 NFE"] and failed(0.05) == ["student 1 NFE"]
    assert failed(0.1) == [] and failed(0.5, hog=1.0) == ["student 1 NFE"]


def check_copycat():
    """The control that copies draws rows of T, so that what is repeated comes back more often."""
    copies = torch.tensor([1] * 7 + [93])
    t = make_training_set(random_images(8, (1, 4, 4)), copies, random_images(6, (1, 4, 4), seed=1))
    found = Auditor(t, AuditSettings(samples=200, metrics=["memorization"]), progress=False).control()
    hits = found["copycat"]["metrics"]["coverage"]
    assert found["copycat"]["f_mem"]["value"] == 1 and hits["most_hits"] > 150 and found["heldout_f_mem"]["value"] == 0


def check_realism_beside_the_teacher():
    """Less real than the teacher: Frechet distances with the intervals apart, in any extractor."""
    as_real = Verdicts((), None, {}, frechet=("fd_a", "fd_b"))._as_real
    teacher = {"fd_a_low": 4.0, "fd_a_high": 5.0, "fd_b_low": 1.0, "fd_b_high": 2.0}
    assert as_real(teacher | {"fd_a_low": 4.9, "fd_a_high": 9.0}, teacher) is True
    assert as_real(teacher | {"fd_b_low": 2.1, "fd_b_high": 3.0}, teacher) is False
    assert as_real({}, teacher) is None
