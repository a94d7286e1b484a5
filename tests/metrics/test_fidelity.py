"""Frechet and kernel distances against closed forms, brute force and two other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_distance
from scipy import stats
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.metrics.quality.features import PixelFeatures
from cdmem.metrics.quality.fidelity import Fidelity, fidelity
from cdmem.metrics.quality.frechet import (
    NORMAL_95,
    Moments,
    frechet_bias,
    frechet_distance,
    frechet_infinity,
    frechet_interval,
    moments,
    moments_distance,
    sampling_floor,
)
from support import random_images
from support.samples import normal, training_set


class Projection(nn.Module):
    """16 fixed linear features of 3x8x8 images, with weights that could leak into a checkpoint."""

    name = "projection"
    num_features = 16

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(192, 16, generator=generator, dtype=torch.float64) / 14)

    def forward(self, images):
        return to_float(images).flatten(1).double() @ self.weight


def images(n, seed, top=256):
    return random_images(n, seed=seed, high=top)


def frechet(x, y, wx=None, wy=None):
    return moments_distance(moments(x, wx), moments(y, wy))


def dense(x, y):
    return frechet_distance(*(v for side in (x, y) for v in (side.mean(0), torch.cov(side.T))))


# --- Frechet distance -----------------------------------------------------------------------------------------------


def test_commuting_covariances():
    basis = torch.linalg.qr(normal(12, 12, 0))[0]
    l1, l2 = normal(12, 1, 1).square().flatten(), normal(12, 1, 2).square().flatten()
    l1[:3], l2[2:4] = 0, 0  # singular ones too
    mu1, mu2 = normal(2, 12, 3)
    want = float((l1.sqrt() - l2.sqrt()).square().sum() + (mu1 - mu2).square().sum())
    found = frechet_distance(mu1, basis @ torch.diag(l1) @ basis.T, mu2, basis @ torch.diag(l2) @ basis.T)
    assert found == pytest.approx(want, rel=1e-6)
    roots = [(basis * values.sqrt()).T for values in (l1, l2)]
    assert moments_distance(Moments(mu1, roots[0]), Moments(mu2, roots[1])) == pytest.approx(want, rel=1e-12)


def test_two_gaussians_in_two_dimensions():
    # tr (S1 S2)^(1/2) = sqrt(tr S1 S2 + 2 sqrt(det S1 S2)) for 2 x 2.
    r1, r2 = normal(2, 2, 4), normal(2, 2, 5)
    s1, s2 = r1.T @ r1, r2.T @ r2
    cross = math.sqrt(float((s1 @ s2).trace()) + 2 * math.sqrt(float(torch.linalg.det(s1 @ s2))))
    want = 1.25 + float(s1.trace() + s2.trace()) - 2 * cross
    mu1, mu2 = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    assert moments_distance(Moments(mu1, r1), Moments(mu2, r2)) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("n, m", [(300, 200), (40, 900), (5000, 41), (17, 18)])
def test_sample_space_equals_the_dense_form(n, m):
    mix = normal(16, 16, 6)
    x, y = normal(n, 16, 7) @ mix, normal(m, 16, 8) @ mix.T + 0.3
    assert frechet(x, y) == pytest.approx(dense(x, y), rel=1e-9)


@pytest.mark.parametrize("n, m", [(5, 9), (20, 300), (300, 20), (2, 2)])
def test_fewer_images_than_features(n, m):
    x, y = normal(n, 60, 9), normal(m, 60, 10) * 2 + 0.3
    found = frechet(x, y)
    assert found == pytest.approx(frechet(y, x), rel=1e-12)
    # The null directions cost the dense form half of its digits; in the span of both sets it has them all.
    assert found == pytest.approx(dense(x, y), rel=1e-5)
    u, v = ((f - f.mean(0)) / math.sqrt(len(f) - 1) for f in (x, y))
    cross = torch.linalg.svdvals(u @ v.T).sum()
    want = (x.mean(0) - y.mean(0)).square().sum() + u.square().sum() + v.square().sum() - 2 * cross
    assert found == pytest.approx(float(want), rel=1e-9)


@pytest.mark.parametrize("n", [6, 300])
def test_identical_sets_are_at_distance_zero(n):
    x = normal(n, 16, 11)
    assert abs(frechet(x, x)) < 1e-12
    assert abs(frechet(x, x.flip(0))) < 1e-12


def test_moments_equal_numpy_and_blocks_do_not_matter():
    x, w = normal(9000, 5, 12) + 3, torch.randint(1, 7, (9000,), generator=torch.Generator().manual_seed(1))
    weighted = moments(x, w)
    assert np.allclose(weighted.mean, np.average(x, axis=0, weights=w), rtol=1e-12)
    assert np.allclose(weighted.root.T @ weighted.root, np.cov(x.T.numpy(), fweights=w.numpy()), rtol=1e-11)
    assert moments(x).root.shape == (5, 5) and moments(x[:3]).root.shape == (3, 5)
    with pytest.raises(InputError, match="at least 2"):
        moments(x[:1])


def test_equals_cleanfid_and_torchmetrics():
    features, a, b = Projection(), images(300, 1), images(200, 2, 230)
    fa, fb = features(a).detach(), features(b).detach()
    found = fidelity(fb, fa)["fd"]
    want = cleanfid_distance(*(np.asarray(v) for f in (fa, fb) for v in (f.mean(0), np.cov(f.T.numpy()))))
    assert found == pytest.approx(float(want), rel=1e-6)
    other = FrechetInceptionDistance(feature=Projection()).set_dtype(torch.float64)
    other.update(a, real=True)
    other.update(b, real=False)
    assert found == pytest.approx(float(other.compute()), rel=1e-6)


# --- Sample size ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d, n, predicted", [(64, 1000, 1.105), (64, 200, 5.55)])
def test_bias_of_the_isotropic_gaussian(d, n, predicted):
    eye = torch.eye(d, dtype=torch.float64)
    want = d / n + d * (d + 1) / (4 * (n - 1))
    assert frechet_bias(eye, n) == pytest.approx(want, rel=1e-12)
    assert want == pytest.approx(predicted, abs=0.005)
    assert frechet_bias(eye, n, 500) == pytest.approx(want + frechet_bias(eye, 500), rel=1e-12)
    truth = Moments(torch.zeros(d, dtype=torch.float64), eye)
    values = [moments_distance(moments(x), truth) for x in normal(30 * n, d, 13).split(n)]
    assert np.mean(values) == pytest.approx(want, rel=0.06)  # second order: 5.78 for 5.55 at n = 200


def test_bias_of_an_uneven_spectrum():
    values = 1 / torch.arange(1, 65, dtype=torch.float64)
    basis = torch.linalg.qr(normal(64, 64, 14))[0]
    want = frechet_bias((basis * values) @ basis.T, 1000)
    assert want == pytest.approx(0.0481, abs=5e-4)
    truth = Moments(torch.zeros(64, dtype=torch.float64), torch.diag(values.sqrt()))
    found = [moments_distance(moments(x * values.sqrt()), truth) for x in normal(30 * 1000, 64, 15).split(1000)]
    assert abs(np.mean(found) - want) < 4 * np.std(found) / math.sqrt(30) + 0.02 * want
    singular = torch.diag(torch.tensor([1.0, -1e-17, 0.0]))  # rounding leaves such eigenvalues
    assert frechet_bias(singular, 100) == pytest.approx(frechet_bias(torch.eye(1), 100), rel=1e-12)


def test_infinity_removes_the_bias():
    d, shift = 16, 0.25
    truth = Moments(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    want, hits, values = d * shift**2, 0, []
    for k in range(12):
        x = normal(1000, d, 100 + k) + shift
        found = frechet_infinity(x, truth, seed=k)
        values.append(found.value)
        hits += found.low <= want <= found.high
        assert found.low < found.value < found.high
    error = np.std(values, ddof=1) / math.sqrt(12)
    raw = want + frechet_bias(truth.root, 1000)
    assert abs(np.mean(values) - want) < 3 * error and hits >= 9
    assert abs(np.mean(values) - want) < 0.5 * (raw - want)
    assert frechet_infinity(x, truth, seed=1) == frechet_infinity(x, truth, seed=1)
    assert frechet_infinity(x[:63], truth, seed=1) is None and frechet_infinity(x[:64], truth, seed=1) is not None


@pytest.mark.parametrize(("n", "d"), [(80, 3), (64, 5)])
def test_infinity_is_the_line_through_sizes_evenly_in_their_inverse(n, d):
    """Chong & Forsyth 2020: 15 sizes from max(2 F, n / 10) to n, all disjoint parts of each, polyfit's intercept; the
    interval leaves out each of ten groups in turn."""
    x, y = normal(n, d, 16).exp() + 1, normal(90, d, 17)
    rows = x[torch.randperm(n, generator=torch.Generator().manual_seed(3))]

    def intercept(part):
        sizes = sorted({round(k) for k in 1 / np.linspace(1 / len(part), 1 / max(2 * d, n // 10), 15)})
        means = [np.mean([dense(part[k : k + s], y) for k in range(0, len(part) - s + 1, s)]) for s in sizes]
        return np.polyfit(1 / np.array(sizes), means, 1)[1]

    value = intercept(rows)
    left = np.array([intercept(rows[torch.arange(n) % 10 != g]) for g in range(10)])
    half = stats.t.ppf(0.975, 9) * math.sqrt(0.9 * ((left - left.mean()) ** 2).sum())
    found = frechet_infinity(x, y, 3)
    assert found == frechet_infinity(x, moments(y), 3)
    assert found == pytest.approx((value, value - half, value + half), rel=1e-6)


def test_sampling_floor():
    x = normal(2000, 8, 18)
    want = frechet_bias(torch.eye(8, dtype=torch.float64), 500, 500)
    assert sampling_floor(x, 500, seed=0, repeats=20) == pytest.approx(want, rel=0.25)
    assert sampling_floor(x, 10**6, seed=0) == sampling_floor(x, 1000, seed=0) < sampling_floor(x, 100, seed=0)
    with pytest.raises(InputError, match="at least 2"):
        sampling_floor(x[:3], 10, seed=0)


# --- Both distances ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 6])
def test_weights_equal_repeated_rows(copies):
    x, y = normal(50, 6, 35), normal(20, 6, 36) + 0.2
    w = torch.randint(1, 5, (20,), generator=torch.Generator().manual_seed(2)) * copies
    rows = y.repeat_interleave(w, 0)
    want = fidelity(x, rows, torch.ones(len(rows)))
    assert fidelity(x, y, w) == pytest.approx(want, rel=1e-10)
    assert fidelity(x, y, w)["fd"] == pytest.approx(fidelity(x, rows)["fd"], rel=1e-10)


@pytest.mark.parametrize("n, m", [(2, 5), (5, 2)])
def test_too_few_images_are_refused(n, m):
    with pytest.raises(InputError, match="at least 3"):
        fidelity(normal(n, 4, 1), normal(m, 4, 2))


# --- Metric ---------------------------------------------------------------------------------------------------------


COPIES = torch.tensor([1, 2, 3] * 4)


def metric_of(features, flip=False, held_out=40, **options):
    metric = Fidelity(features, **options)
    metric.prepare(training_set(images(12, 1), images(held_out, 8), flip=flip, copies=COPIES))
    return metric


def evaluated(order, batch, **options):
    metric, samples, seeds = metric_of(Projection(), **options), images(30, 9, 200), torch.arange(30) + 7
    for part in torch.tensor(order).split(batch):
        metric.update(samples[part], seeds[part])
    return metric.compute()


def test_metric_equals_the_functions():
    found = evaluated(range(30), 30)
    with torch.no_grad():
        x, h, t = (Projection()(i) for i in (images(30, 9, 200), images(40, 8), images(12, 1)))
    to_h, to_t = fidelity(x, h), fidelity(x, t, COPIES)
    keys = {"fd": "fd_projection", "kid": "kid_projection"}
    keys |= {f"kid_{end}": f"kid_projection_{end}" for end in ("low", "high")}
    want = {keys[k]: v for k, v in to_h.items()} | {f"{keys[k]}_train": v for k, v in to_t.items()}
    assert found == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_order_and_batches_do_not_matter(batch):
    want = evaluated(range(30), 30)
    assert evaluated(range(30), batch) == want
    assert evaluated([*range(29, -1, -1), 3, 3], batch) == want  # padded shares count once


def test_mirror_images_are_training_images():
    metric = metric_of(Projection(), flip=True)
    metric.update(images(30, 9, 200), torch.arange(30))
    with torch.no_grad():
        x, t = Projection()(images(30, 9, 200)), torch.cat([images(12, 1), images(12, 1).flip(-1)])
        want = fidelity(x, Projection()(t), COPIES.repeat(2))
    assert metric.compute()["fd_projection_train"] == pytest.approx(want["fd"], rel=1e-12)


def test_references_are_kept_and_samples_forgotten():
    metric = metric_of(Projection())
    metric.update(images(30, 9, 200), torch.arange(30))
    first, references = metric.compute(), metric.references()
    metric.reset()
    with pytest.raises(InputError, match="at least 3"), pytest.warns(UserWarning, match="compute"):
        metric.compute()
    metric.reset()
    metric.update(images(30, 9, 200), torch.arange(30))
    assert metric.compute() == first and metric.references() is references


def test_without_held_out_images_only_the_training_set():
    assert set(evaluated(range(30), 30, held_out=2)) == {
        "fd_projection_train",
        "kid_projection_train",
        "kid_projection_low_train",
        "kid_projection_high_train",
    }


def test_infinity_is_a_key_with_enough_samples():
    assert "fd_projection_infinity" not in evaluated(range(30), 30, infinity=True)
    metric = metric_of(Projection(), infinity=True)
    metric.update(images(80, 9), torch.arange(80))
    found = metric.compute()
    assert found["fd_projection_infinity_low"] < found["fd_projection_infinity"] < found["fd_projection_infinity_high"]


def test_controls():
    metric = metric_of(Projection())
    found = metric.controls(30)
    with torch.no_grad():
        t, h = Projection()(images(12, 1)), Projection()(images(40, 8))
    assert found["fd_projection_copycat"] == pytest.approx(frechet(t, h, COPIES), rel=1e-12)
    assert found["fd_projection_floor"] == pytest.approx(sampling_floor(h, 30, 0), rel=1e-12)
    with pytest.raises(InputError, match=r"data\.held_out"):
        metric_of(Projection(), held_out=3).controls(30)


def test_the_extractor_stays_out_of_checkpoints():
    metric = metric_of(Projection())
    metric.update(images(4, 18), torch.arange(4))
    assert not metric.state_dict() and not list(metric.parameters()) and len(list(metric.modules())) == 1


def test_pixels_of_cifar_size_are_cheap(monkeypatch):
    """3,072 dimensions, and no decomposition of more than the rows: 600 in T and H, 256 samples."""
    sizes = []
    for name in ("svd", "svdvals", "eigh", "eigvalsh"):
        real = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, lambda x, *a, real=real, **k: sizes.append(x.shape) or real(x, *a, **k))
    train, held_out = (torch.randint(0, 256, (600, 3, 32, 32), dtype=torch.uint8) for _ in range(2))
    metric = Fidelity(PixelFeatures())
    metric.prepare(training_set(train, held_out))
    metric.update(held_out[:256].flip(0), torch.arange(256))
    assert math.isfinite(metric.compute()["fd_pixels"])
    assert sizes and max(max(shape) for shape in sizes) <= 600


def one_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    samples, seeds, answers = images(30, 9, 200), torch.arange(30) + 7, []
    for mine in (torch.arange(rank, 30, 2), torch.arange(30) if rank == 0 else torch.arange(0)):
        metric = metric_of(Projection())
        metric.update(samples[mine], seeds[mine])
        answers.append(metric.compute())
    torch.save(answers, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_to_the_bit(tmp_path):
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    want = evaluated(range(30), 30)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == [want, want]


@pytest.mark.parametrize(("n", "d", "most"), [(300, 6, 1.25), (40, 60, 1.6)])
def test_the_frechet_interval_has_the_width_of_the_sampling_error(n, d, most):
    """A hundred repetitions against a fixed Gaussian: delta-method standard error against the true spread."""
    reference = moments(normal(4000, d, 900))
    found = [frechet_interval(normal(n, d, 1000 + k) * 1.3, reference) for k in range(100)]
    values = torch.tensor([f.value for f in found], dtype=torch.float64)
    halves = torch.tensor([(f.high - f.low) / 2 for f in found], dtype=torch.float64)
    assert 0.8 < float(halves.mean() / NORMAL_95 / values.std()) < most
    assert found[0].value == pytest.approx(moments_distance(moments(normal(n, d, 1000) * 1.3), reference), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(2000, 4), (20, 60)])
def test_the_influence_of_a_sample_is_the_derivative_by_its_weight(n, d):
    """Standard error from the gradient of the weighted distance: skewed samples far from the reference, one constant
    feature, more rows than are worked on at once, fewer rows than features."""
    x, reference = normal(n, d, 1).exp() + 2, moments(normal(500, d, 2))
    x[:, d - 1] = 0.5
    weights = torch.ones(n, dtype=torch.float64, requires_grad=True)
    share = weights / weights.sum()
    mean = share @ x
    # With the population's covariance; the unbiased one differs by 1 / n of its own part.
    rows = (x - mean) * share.sqrt()[:, None]
    moments_gradient(mean, rows, reference).backward()
    error = n * weights.grad.std() / n**0.5
    found = frechet_interval(x, reference)
    assert (found.high - found.value) / NORMAL_95 == pytest.approx(float(error), rel=1.5 / n)
    assert found.value - found.low == pytest.approx(found.high - found.value, rel=1e-9)


def moments_gradient(mean, root, reference):
    """The distance as a function that can be differentiated; a nuclear norm through its polar factor."""
    cross = root @ reference.root.T
    with torch.no_grad():
        u, _, vh = torch.linalg.svd(cross, full_matrices=False)
    shift = (mean - reference.mean).square().sum()
    return shift + root.square().sum() + reference.root.square().sum() - 2 * (cross * (u @ vh)).sum()
