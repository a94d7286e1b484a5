"""Frechet and kernel distances against closed forms, brute force and two other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_distance
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cdmem.errors import InputError
from cdmem.metrics.features import PixelFeatures, features_name
from cdmem.metrics.fidelity import FrechetDistance, KernelDistance, frechet_distance, kernel_distance

KINDS = pytest.mark.parametrize("kind", [FrechetDistance, KernelDistance])


class Projection(nn.Module):
    """16 fixed linear features of 3x8x8 images, with weights that could leak into a checkpoint."""

    name = "projection"
    num_features = 16

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(192, 16, generator=generator, dtype=torch.float64) / 14)

    def forward(self, images):
        return (images.flatten(1).double() / 127.5 - 1) @ self.weight


class Given(nn.Module):
    """The input is the feature."""

    def forward(self, x):
        return x.flatten(1)


def images(n, seed, top=256):
    return torch.randint(0, top, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(kind, features, reference, generated, batch=1000):
    metric = kind(features)
    for part in reference.split(batch):
        metric.update(part, reference=True)
    for part in generated.split(batch):
        metric.update(part, reference=False)
    return float(metric.compute())


def test_commuting_covariances():
    basis = torch.linalg.qr(normal(12, 12, 0))[0]
    l1, l2 = normal(12, 1, 1).square().flatten(), normal(12, 1, 2).square().flatten()
    l1[:3], l2[2:4] = 0, 0  # singular ones too
    mu1, mu2 = normal(2, 12, 3)
    want = float((l1.sqrt() - l2.sqrt()).square().sum() + (mu1 - mu2).square().sum())
    found = frechet_distance(mu1, basis @ torch.diag(l1) @ basis.T, mu2, basis @ torch.diag(l2) @ basis.T)
    assert found == pytest.approx(want, rel=1e-6)


def test_equals_cleanfid_and_torchmetrics():
    features, a, b = Projection(), images(300, 1), images(200, 2, 230)
    found = distance(FrechetDistance, features, a, b)
    fa, fb = features(a).detach().numpy(), features(b).detach().numpy()
    want = cleanfid_distance(fa.mean(0), np.cov(fa, rowvar=False), fb.mean(0), np.cov(fb, rowvar=False))
    assert found == pytest.approx(float(want), rel=1e-6)
    other = FrechetInceptionDistance(feature=Projection()).set_dtype(torch.float64)
    other.update(a, real=True)
    other.update(b, real=False)
    assert found == pytest.approx(float(other.compute()), rel=1e-6)


def test_fewer_images_than_features():
    a, b = images(5, 3), images(9, 4, 200)
    found = distance(FrechetDistance, PixelFeatures(), a, b)
    assert isinstance(found, float) and math.isfinite(found)
    assert found == pytest.approx(distance(FrechetDistance, PixelFeatures(), b, a), rel=1e-6)
    # tr (S1 S2)^(1/2) is the nuclear norm of the product of the centred data matrices.
    x, y = (PixelFeatures()(i).double() for i in (a, b))
    u, v = ((f - f.mean(0)) / math.sqrt(len(f) - 1) for f in (x, y))
    cross = torch.linalg.svdvals(u @ v.T).sum()
    want = (x.mean(0) - y.mean(0)).square().sum() + u.square().sum() + v.square().sum() - 2 * cross
    assert found == pytest.approx(float(want), rel=1e-6)


def test_identical_sets_are_at_distance_zero():
    a = images(300, 5)
    assert abs(distance(FrechetDistance, Projection(), a, a)) < 1e-6
    few = images(6, 6)
    assert abs(distance(FrechetDistance, PixelFeatures(), few, few)) < 1e-4


def test_finite_sample_bias():
    # E FD(sample of N, truth) = d / N + d (d + 1) / (4 (N - 1)) to leading order.
    d, n, repeats = 8, 2000, 200
    zero, eye = torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    values = []
    for x in normal(repeats * n, d, 7).split(n):
        metric = FrechetDistance(Given())
        metric.update(x, reference=False)
        values.append(frechet_distance(*metric._moments("generated"), zero, eye))
    want = d / n + d * (d + 1) / (4 * (n - 1))
    assert abs(np.mean(values) - want) < 4 * np.std(values) / math.sqrt(repeats)
    assert np.std(values) / math.sqrt(repeats) < 0.03 * want


@KINDS
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_equal_one_shot(kind, batch):
    a, b = images(40, 8), images(30, 9, 200)
    assert distance(kind, Projection(), a, b, batch) == pytest.approx(distance(kind, Projection(), a, b), rel=1e-10)


@KINDS
@pytest.mark.parametrize("keep", [False, True])
def test_reset_and_the_reference(kind, keep):
    a, b, c = images(40, 10), images(30, 11, 200), images(30, 12, 100)
    metric = kind(Projection(), keep_reference=keep)
    metric.update(a, reference=True)
    metric.update(b, reference=False)
    first = float(metric.compute())
    metric.reset()
    metric.update(c, reference=False)
    if not keep:
        with pytest.raises(InputError):
            metric.compute()
        metric.update(a, reference=True)
    assert float(metric.compute()) == pytest.approx(distance(kind, Projection(), a, c), rel=1e-10)
    metric.reset()
    metric.update(b, reference=False)
    if keep:
        assert float(metric.compute()) == pytest.approx(first, rel=1e-12)


def test_kid_is_the_double_loop():
    x, y = normal(7, 5, 13), normal(9, 5, 14) + 0.5

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b)) / 5 + 1) ** 3

    def within(z):
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    between = [kernel(p, q) for p in x.tolist() for q in y.tolist()]
    want = within(x.tolist()) + within(y.tolist()) - 2 * sum(between) / len(between)
    assert kernel_distance(x, y) == pytest.approx(want, rel=1e-10)
    assert distance(KernelDistance, Given(), x, y) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_kid_blocks_do_not_matter(block):
    x, y = normal(50, 6, 15), normal(33, 6, 16) + 0.2
    assert kernel_distance(x, y, block) == pytest.approx(kernel_distance(x, y), rel=1e-10, abs=1e-13)


def test_kid_of_a_mean_shift():
    d, b = 64, 0.3

    def expected_kernel(a_b, a2, b2):
        second = a_b**2 + a2 + b2 + d
        third = a_b**3 + 3 * a_b * (a2 + b2 + d + 2)
        return 1 + 3 * a_b / d + 3 * second / d**2 + third / d**3

    b2 = d * b * b
    want = expected_kernel(0, 0, 0) + expected_kernel(b2, b2, b2) - 2 * expected_kernel(0, 0, b2)
    assert want == pytest.approx(0.30014, abs=1e-5)
    values = [kernel_distance(normal(500, d, 20 + k), normal(500, d, 60 + k) + b) for k in range(20)]
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values) - want) < 4 * error and error < 0.02 * want
    same = [kernel_distance(normal(100, d, 100 + k), normal(100, d, 200 + k)) for k in range(40)]
    # Unbiased: around zero, and below it about half of the time.
    assert abs(np.mean(same)) < 4 * np.std(same, ddof=1) / math.sqrt(len(same)) and min(same) < 0 < max(same)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@KINDS
@pytest.mark.parametrize("reference, generated", [(0, 0), (0, 5), (5, 0), (1, 5), (5, 1)])
def test_fewer_than_two_images_are_refused(kind, reference, generated):
    metric = kind(Projection())
    for side, count in ((True, reference), (False, generated)):
        if count:
            metric.update(images(count, 17), reference=side)
    with pytest.raises(InputError, match="at least 2"):
        metric.compute()


@KINDS
def test_the_extractor_stays_out_of_checkpoints(kind):
    metric = kind(Projection())
    metric.update(images(4, 18), reference=True)
    assert not metric.state_dict() and not list(metric.parameters()) and len(list(metric.modules())) == 1


def test_pixel_features_and_names():
    levels = torch.tensor([0, 255, 51, 204], dtype=torch.uint8).reshape(1, 1, 2, 2)
    assert torch.allclose(PixelFeatures()(levels), torch.tensor([[-1.0, 1.0, -0.6, 0.6]]))
    assert features_name(PixelFeatures()) == "pixels" and features_name(Given()) == "given"


def one_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    a, b, answers = images(40, 8), images(30, 9, 200), {}
    for kind in (FrechetDistance, KernelDistance):
        metric = kind(Projection())
        metric.update(a[:27] if rank == 0 else a[27:], reference=True)
        metric.update(b[:5] if rank == 0 else b[5:], reference=False)
        answers[kind.__name__] = float(metric.compute())
    metric = KernelDistance(Projection())
    metric.update(a[:27] if rank == 0 else a[27:], reference=True)
    if rank == 0:
        metric.update(b, reference=False)
    answers["empty share"] = float(metric.compute())
    torch.save(answers, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    want = {kind.__name__: distance(kind, Projection(), images(40, 8), images(30, 9, 200)) for kind in KINDS.args[1]}
    want["empty share"] = want["KernelDistance"]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(want, rel=1e-9)
