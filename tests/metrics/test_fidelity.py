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
from cdmem.metrics.quality.fidelity import Fidelity, kernel_interval, reference_of
from cdmem.metrics.quality.frechet import (
    Moments,
    _distances,
    delta_variance,
    frechet_infinity,
    frechet_interval,
    least_for_infinity,
    moments,
    moments_distance,
    sampling_floor,
)
from cdmem.metrics.statistics import squared_distance_interval
from support import random_images
from support.samples import measure, normal, training_set


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
    """From covariances: tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1 S2."""
    a, b = (np.cov(side.numpy().T) for side in (x, y))
    cross = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
    return float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(a) + np.trace(b) - 2 * cross


def bias(d, n):
    """Expected distance of n draws from the unit Gaussian to it, to first order in 1 / n."""
    return d / n + d * (d + 1) / (4 * (n - 1))


# --- Frechet distance -----------------------------------------------------------------------------------------------


def test_commuting_covariances():
    basis = torch.linalg.qr(normal(12, 12, 0))[0]
    l1, l2 = normal(12, 1, 1).square().flatten(), normal(12, 1, 2).square().flatten()
    l1[:3], l2[2:4] = 0, 0  # singular ones too
    mu1, mu2 = normal(2, 12, 3)
    want = float((l1.sqrt() - l2.sqrt()).square().sum() + (mu1 - mu2).square().sum())
    roots = [(basis * values.sqrt()).T for values in (l1, l2)]
    assert moments_distance(Moments(mu1, roots[0]), Moments(mu2, roots[1])) == pytest.approx(want, rel=1e-12)


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
    found = frechet(fb, fa)
    want = cleanfid_distance(*(np.asarray(v) for f in (fa, fb) for v in (f.mean(0), np.cov(f.T.numpy()))))
    assert found == pytest.approx(float(want), rel=1e-6)
    other = FrechetInceptionDistance(feature=Projection()).set_dtype(torch.float64)
    other.update(a, real=True)
    other.update(b, real=False)
    assert found == pytest.approx(float(other.compute()), rel=1e-6)


# --- Sample size ----------------------------------------------------------------------------------------------------


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
    assert abs(np.mean(values) - want) < min(3 * error, 0.5 * bias(d, 1000)) and hits >= 9
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
    found = frechet_infinity(x, moments(y), 3)
    assert found == pytest.approx((value, value - half, value + half), rel=1e-6)


def test_sampling_floor():
    x = normal(2000, 8, 18)
    assert sampling_floor(x, 500, seed=0, repeats=20) == pytest.approx(2 * bias(8, 500), rel=0.25)
    assert sampling_floor(x, 10**6, seed=0) == sampling_floor(x, 1000, seed=0) < sampling_floor(x, 100, seed=0)
    with pytest.raises(InputError, match="at least 2"):
        sampling_floor(x[:3], 10, seed=0)


# --- Both distances ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 6])
def test_weights_equal_repeated_rows(copies):
    x, y = normal(50, 6, 35), normal(20, 6, 36) + 0.2
    w = torch.randint(1, 5, (20,), generator=torch.Generator().manual_seed(2)) * copies
    rows = y.repeat_interleave(w, 0)
    found, want = (kernel_interval(x, reference_of(*given)) for given in ((y, w), (rows, torch.ones(len(rows)))))
    assert found == pytest.approx(want, rel=1e-10)
    assert frechet(x, y, wy=w) == pytest.approx(frechet(x, rows), rel=1e-10)


# --- Metric ---------------------------------------------------------------------------------------------------------


COPIES = torch.tensor([1, 2, 3] * 4)


def metric_of(features, flip=False, held_out=40, **options):
    metric = Fidelity(features, **options)
    metric.prepare(training_set(images(12, 1), images(held_out, 8), flip=flip, copies=COPIES))
    return metric


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("held_out", [2, 9, 10, 40])
def test_metric_equals_the_functions(flip, held_out):
    """To H, if it has ten images, and to T with its multiplicities, mirrored too where training mirrors."""
    metric, samples = metric_of(Projection(), flip, held_out), images(30, 9, 200)
    train, copies = images(12, 1), COPIES
    if flip:
        train, copies = torch.cat([train, train.flip(-1)]), COPIES.repeat(2)
    with torch.no_grad():
        x, h, t = (Projection()(i) for i in (samples, images(held_out, 8), train))
    want = {}
    for suffix, y, w in (("", h, None), ("_train", t, copies))[held_out < 10 :]:
        values = (frechet(x, y, wy=w), *kernel_interval(x, reference_of(y, w)))
        names = ("fd_projection", *(f"kid_projection{end}" for end in ("", "_low", "_high")))
        want |= {name + suffix: value for name, value in zip(names, values)}
    assert measure(metric, samples) == pytest.approx(want, rel=1e-12)
    references = metric.references()
    metric.reset()
    assert measure(metric, samples) == pytest.approx(want, rel=1e-12) and metric.references() is references


def test_infinity_is_a_key_with_enough_samples_and_else_a_reason():
    metric = metric_of(Projection(), infinity=True)  # 16 features
    assert "fd_projection_infinity" not in measure(metric, images(63, 9))
    assert metric.unavailable(63) == "fd_projection_infinity of 63 images cannot be had: 16 features need 64"
    assert metric.unavailable(64) is None and metric_of(Projection()).unavailable(63) is None
    assert "are needed" in metric.unavailable(9) and "to 9 held-out" in metric_of(
        Projection(), held_out=9, infinity=True
    ).unavailable(64)
    assert "there are none" in metric_of(Projection(), held_out=0, infinity=True).unavailable(64)
    assert [least_for_infinity(count) for count in (1, 10, 11)] == [40, 40, 44]
    found = measure(metric, images(64, 9))
    assert found["fd_projection_infinity_low"] < found["fd_projection_infinity"] < found["fd_projection_infinity_high"]


def test_an_interval_leaves_the_value_as_it_is():
    plain, found = (measure(metric_of(Projection(), interval=asked), images(30, 9)) for asked in (False, True))
    assert found.items() > plain.items()
    for suffix in ("", "_train"):
        ends = [found[f"fd_projection_{end}{suffix}"] for end in ("low", "high")]
        assert ends[0] < found[f"fd_projection{suffix}"] < ends[1]


def test_controls():
    metric = metric_of(Projection())
    found = metric.controls(30)
    with torch.no_grad():
        t, h = Projection()(images(12, 1)), Projection()(images(40, 8))
    assert found["fd_projection_copycat"] == pytest.approx(frechet(t, h, COPIES), rel=1e-12)
    assert found["fd_projection_floor"] == pytest.approx(sampling_floor(h, 30, 0), rel=1e-12)
    with pytest.raises(InputError, match=r"data\.held_out"):
        metric_of(Projection(), held_out=3).controls(30)


def test_pixels_of_cifar_size_are_cheap(monkeypatch):
    """3,072 dimensions, and no decomposition of more than the rows: 600 in T and H, 256 samples."""
    sizes = []
    for name in ("svd", "svdvals", "eigh", "eigvalsh"):
        real = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, lambda x, *a, real=real, **k: sizes.append(x.shape) or real(x, *a, **k))
    train, held_out = (torch.randint(0, 256, (600, 3, 32, 32), dtype=torch.uint8) for _ in range(2))
    metric = Fidelity(PixelFeatures()).prepare(training_set(train, held_out))
    assert math.isfinite(measure(metric, held_out[:256].flip(0))["fd_pixels"])
    assert sizes and max(max(shape) for shape in sizes) <= 600


@pytest.mark.parametrize(
    ("n", "d", "shift"),
    [(300, 6, 0.0), (100, 6, 0.5), (40, 20, 0.0), (30, 60, 0.5)],
    ids=["null", "far", "few", "wide"],
)
def test_the_frechet_interval_covers(n, d, shift):
    """300 repetitions against a fixed Gaussian, features of variance 1 / k. The delta method's covered 98 to 99 %."""
    scale = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
    reference = moments(normal(4000, d, 900) * scale)
    found = [frechet_interval((normal(n, d, 1000 + k) + shift) * scale, reference) for k in range(300)]
    values, low, high = (torch.tensor(column, dtype=torch.float64) for column in zip(*found))
    truth = values.mean()
    above, below = (float(miss.double().mean()) for miss in (low > truth, high < truth))
    assert 0.92 <= 1 - above - below <= 0.98 and max(above, below) < 0.065
    assert found[0].value == pytest.approx(
        moments_distance(moments((normal(n, d, 1000) + shift) * scale), reference), rel=1e-9
    )


def test_the_frechet_variance_takes_the_doubled_part_off():
    """From the whole and its two halves, every other row: 1.5 whole - halves / 4, between half and all of the whole."""
    reference, inside = moments(normal(500, 5, 2)), 0
    for k in range(20):
        x = normal(60, 5, 50 + k) + 0.2 * (k % 2)
        value, whole = delta_variance(x, reference)
        halves = (delta_variance(x[0::2], reference)[1] + delta_variance(x[1::2], reference)[1]) / 2
        variance = min(max(1.5 * whole - halves / 4, whole / 2), whole)
        inside += whole / 2 < variance < whole
        assert frechet_interval(x, reference) == squared_distance_interval(value, variance, whole, value)
    assert inside > 5


def test_the_frechet_interval_of_the_reference_itself_is_a_point():
    x = normal(40, 5, 3)
    found = frechet_interval(x, moments(x))
    assert abs(found.value) < 1e-12 and found.high - found.low < 1e-6
    # Sorted by class or not: halves are every other row.
    ordered = torch.cat([x, x + 9])
    mixed = ordered.reshape(2, 40, 5).transpose(0, 1).reshape(80, 5)
    far = moments(normal(90, 5, 4) + 3)
    wide, wider = (frechet_interval(rows, far) for rows in (ordered, mixed))
    assert wide.high - wide.low == pytest.approx(wider.high - wider.low, rel=0.15)


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
    assert delta_variance(x, reference)[1] ** 0.5 == pytest.approx(float(error), rel=1.5 / n)


def moments_gradient(mean, root, reference):
    """The distance as a function that can be differentiated; a nuclear norm through its polar factor."""
    cross = root @ reference.root.T
    with torch.no_grad():
        u, _, vh = torch.linalg.svd(cross, full_matrices=False)
    shift = (mean - reference.mean).square().sum()
    return shift + root.square().sum() + reference.root.square().sum() - 2 * (cross * (u @ vh)).sum()


def ill_conditioned(kind, n=300, f=20, seed=0):
    """Features whose covariance Cholesky's decomposition takes, loses digits of, or refuses."""
    x = normal(n, f, seed) + 3
    if kind == "faint":
        x[:, 3] *= 1e-9
    elif kind == "constant":
        x[:, 5] = 2.0
    elif kind == "repeated":
        x[:, 7] = x[:, 2]
    return x


@pytest.mark.parametrize("kind", ["plain", "faint", "constant", "repeated"])
@pytest.mark.parametrize("other", ["plain", "faint", "constant", "repeated"])
def test_the_quick_roots_are_those_of_singular_values(kind, other, monkeypatch):
    """Whichever way the condition chooses: QR and singular values never square it."""
    x, y = ill_conditioned(kind), 0.8 * ill_conditioned(other, seed=1) + 0.1
    quick = frechet(x, y)
    monkeypatch.setattr("cdmem.metrics.quality.frechet.CONDITION", math.inf)
    monkeypatch.setattr("cdmem.metrics.quality.frechet.EIGENVALUES", math.inf)
    assert quick == pytest.approx(frechet(x, y), rel=1e-9)
    assert abs(frechet(x, x)) < 1e-11 * float(x.square().sum()) / len(x)


def test_a_distance_of_parts_is_that_of_each():
    parts, reference = normal(4 * 50, 6, 2).reshape(4, 50, 6) + 0.3, moments(normal(80, 6, 3))
    one_by_one = torch.tensor([moments_distance(moments(part), reference) for part in parts], dtype=torch.float64)
    assert torch.allclose(_distances(parts.double(), reference), one_by_one, rtol=1e-9)
