"""Bridge: Jacobians and Gram matrices against dense algebra, and pairs whose answer is planted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from torch import nn

import support
from cdmem.diffusion.analytic import EmpiricalDenoiser
from cdmem.diffusion.preconditioning import Denoiser, EDMScaling
from cdmem.errors import InputError
from cdmem.models.load import load_model
from cdmem.networks.mlp import MLP
from cdmem.networks.unet import UNet
from cdmem.theory.bridge.decision import cliffs_delta, difference, verdict
from cdmem.theory.bridge.directions import compare, directions, lanczos, last_features, products, readout_of
from cdmem.theory.bridge.laboratory import Settings, ratios, run
from cdmem.theory.measures import Interval, mean_interval
from cdmem.theory.trained_pair import load_pair
from support.fuzz import furnish
from support.laboratory import QUIET, succeed

# ---- Jacobians ------------------------------------------------------------------------------------------------------


def maps(size=9, seed=0):
    """A smooth map of points (B, size), and its Jacobian at each point by torch's own jacrev."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(size, 20), nn.Tanh(), nn.Linear(20, size)).double()
    return net, lambda x: torch.stack([torch.func.jacrev(net)(row) for row in x])


def test_products_are_those_of_the_jacobian():
    net, jacobian = maps()
    x, v = torch.randn(2, 3, 9, generator=support.rng(), dtype=torch.float64)
    J = jacobian(x)
    forward, back = products(net, x, v)
    torch.testing.assert_close(forward, torch.einsum("bij,bj->bi", J, v))
    torch.testing.assert_close(back, torch.einsum("bij,bi->bj", J, v))


def test_leading_pairs_of_the_symmetric_part():
    net, jacobian = maps(size=24)
    x = torch.randn(3, 24, generator=support.rng(), dtype=torch.float64)
    J = jacobian(x)
    exact, vectors = torch.linalg.eigh((J + J.transpose(1, 2)) / 2)
    values, found, skew = lanczos(net, x, 4, support.rng(1))
    torch.testing.assert_close(values, exact.flip(1)[:, :4], atol=1e-6, rtol=1e-5)
    overlap = torch.einsum("bcs,bsc->bc", found, vectors.flip(2)[:, :, :4]).abs()
    torch.testing.assert_close(overlap, torch.ones(3, 4, dtype=torch.float64), atol=1e-4, rtol=0)
    assert (skew > 0.1).all()  # a general map is far from symmetric


def test_an_exact_denoiser_has_the_posterior_covariance_as_its_jacobian():
    """J = Cov(x_0 | x) / sigma^2: symmetric, of rank n - 1 at most; the Krylov space ends early."""
    images = support.random_images(4, (1, 3, 3)).double() / 127.5 - 1
    denoiser, sigma = EmpiricalDenoiser(images, torch.ones(4)), 0.9
    x = images[:2] + sigma * torch.randn(2, 1, 3, 3, generator=support.rng(), dtype=torch.float64)
    weights = torch.softmax(-((x[:, None] - images[None]) ** 2).sum((2, 3, 4)) / (2 * sigma**2), 1)
    flat = images.flatten(1)
    mean = weights @ flat
    second = torch.einsum("bn,ni,nj->bij", weights, flat, flat)
    exact = torch.linalg.eigvalsh((second - mean[:, :, None] * mean[:, None]) / sigma**2).flip(1)[:, :3]
    values, _, skew = lanczos(lambda y: denoiser(y, torch.full((2,), sigma)).double(), x, 3, support.rng(1))
    torch.testing.assert_close(values, exact, atol=2e-5, rtol=1e-4)
    assert float(skew.max()) < 1e-4


# ---- the Gram matrix ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [MLP(width=8, depth=1), UNet(channels=[4], layers=1, norm_groups=2)], ids=["mlp", "unet"]
)
def test_the_readout_is_linear_in_what_is_taken_for_its_features(config):
    network = config.build((1, 4, 4), 0, 0)
    for p in network.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=support.rng())
    denoiser = Denoiser(network, EDMScaling(0.5, 0.002))
    x = torch.randn(5, 1, 4, 4, generator=support.rng(1))
    features = last_features(denoiser, x, 0.7, None, batch=2)
    layer = readout_of(network)
    shape = (5, -1) if isinstance(layer, nn.Linear) else (5, layer.in_channels, 4, 4)
    c = denoiser.scalings(torch.full((5,), 0.7))
    whole = c.c_skip[0] * x + c.c_out[0] * layer(features.float().reshape(shape)).reshape(x.shape)
    torch.testing.assert_close(denoiser(x, torch.full((5,), 0.7)), whole, atol=1e-5, rtol=1e-5)


def features_with_spectrum(m=24, seed=0):
    torch.manual_seed(seed)
    return torch.randn(m, 60, dtype=torch.float64) * torch.logspace(1, -2, 60, dtype=torch.float64)


def test_directions_by_brute_force():
    features = features_with_spectrum()
    found = directions(features, 0.9)
    centred = features - features.mean(0)
    values = np.linalg.svd(centred.numpy(), compute_uv=False) ** 2 / 60
    np.testing.assert_allclose(found.eigenvalues, values[: len(found.eigenvalues)], rtol=1e-8)
    held = np.cumsum(values) / values.sum()
    assert held[found.stable - 1] >= 0.9 > held[found.stable - 2]


def planted(found, suppress, by=0.3, seed=0):
    """A response along all directions, and a student in which some are shrunk."""
    torch.manual_seed(seed)
    teacher = found.vectors @ torch.randn(found.vectors.shape[1], 7, dtype=torch.float64)
    keep = torch.ones(found.vectors.shape[1], dtype=torch.float64)
    keep[found.stable :] = by if suppress == "unstable" else 1.0
    keep[: found.stable] = by if suppress == "stable" else 1.0
    student = found.vectors @ (keep[:, None] * (found.vectors.T @ teacher))
    return teacher, student + (torch.randn_like(student) if suppress == "random" else 0)


@pytest.mark.parametrize(
    ("suppress", "said"), [("unstable", "supported"), ("stable", "contradicted"), ("random", "undecided")]
)
def test_planted_pairs(suppress, said):
    contrasts = []
    for seed in range(6):
        found = directions(features_with_spectrum(seed=seed), 0.9)
        response = compare(found, *planted(found, suppress, seed=seed), support.rng(seed))
        contrasts.append(response.contrast)
        if suppress == "unstable":
            assert response.gain_stable == pytest.approx(1) and response.gain_unstable == pytest.approx(0.3)
            assert response.share_change == pytest.approx(1) and response.share_null < 1
    assert verdict([mean_interval(contrasts)]) == said


def test_the_mean_of_a_response_is_no_direction():
    found = directions(features_with_spectrum(), 0.9)
    teacher, student = planted(found, "unstable")
    shifted = compare(found, teacher + 5, student - 3, support.rng())
    assert shifted.gain_unstable == pytest.approx(0.3) and shifted.share_change == pytest.approx(1)


# ---- what may be said -----------------------------------------------------------------------------------------------


def test_the_rule():
    below, above, both = Interval(-1, -2, -0.1), Interval(1, 0.1, 2), Interval(0, -1, 1)
    assert verdict([below, both]) == "supported" and verdict([above, both]) == "contradicted"
    assert verdict([below, above]) == verdict([both, both]) == "undecided"


def test_intervals_are_those_of_scipy():
    a, b = np.random.default_rng(0).normal(size=9), np.random.default_rng(1).normal(0.3, 2, size=14)
    theirs = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    ours = difference(a, b)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert cliffs_delta([1, 2, 3], [0, 2]) == pytest.approx(3 / 6)


def test_ratios_by_hand():
    images = torch.tensor([[0.0, 0.0], [3.0, 0.0]]).reshape(2, 1, 1, 2)
    samples = torch.tensor([[0.6, 0.0], [1.5, 0.0]]).reshape(2, 1, 1, 2)
    assert ratios(samples, images).tolist() == pytest.approx([0.25, 1.0])


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        furnish(folder)
    return folder / "run"


SMALL = {"points": 6, "noises": 2, "draws": 2, "samples": 8, "leading": 3, "sigmas": [0.5, 2.0]}


def test_a_run_by_the_command(study, tmp_path):
    args = [f"--{key}={value}" for key, value in SMALL.items()]
    succeed("theory", "bridge", study, *args, "--quiet", "--out", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["verdict"] in ("supported", "contradicted", "undecided") and results["status"] == "reconstruction"
    assert len(results["levels"]) == 2 and results["endpoints"]["samples"] == 8
    assert {p.name for p in (tmp_path / "figures").iterdir()} >= {"spectrum.png", "gain_by_rank.csv"}


def test_the_same_seed_gives_the_same_numbers(study):
    first, again, other = (run(Settings(run=str(study), **SMALL, seed=s), QUIET).results for s in (0, 0, 1))
    assert first == again and first["levels"] != other["levels"]


@pytest.mark.sensitive
def test_the_student_is_compared_with_the_endpoints_of_its_own_teacher(study):
    pair, name = load_pair(str(study), None)
    assert name == "student" and pair.images.min() >= -1 and pair.images.max() <= 1
    x, labels = pair.start([3, 4])
    sampler = load_model(study / "teacher").sampler()
    torch.testing.assert_close(pair.endpoint(x, pair.sigma_max, labels), sampler([3, 4]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("key", "value"), [("run", ""), ("run", "."), ("student", "x"), ("sigmas", [1e4]), ("leading", 64)], ids=str
)
def test_settings_that_do_not_fit_the_run(study, key, value):
    with pytest.raises(InputError, match=rf"^{key}="):
        run(Settings(**{"run": str(study), **SMALL, key: value}), QUIET)
