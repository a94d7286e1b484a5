"""Loss gaps against closed forms, ROC numbers against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from cdmem.diffusion.analytic import EmpiricalDenoiser, GaussianDenoiser
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.metrics.statistics import wilson_interval
from cdmem.metrics.whitebox.loss_gap import OdeEndpoint, denoising_losses, endpoint_losses, loss_gap, welch
from cdmem.metrics.whitebox.roc import auc, separation, tpr_at_fpr
from support import random_images


def noise_images(n: int, seed: int) -> torch.Tensor:
    return random_images(n, (1, 4, 4), seed)


TRAIN, HELD_OUT = noise_images(40, 0), noise_images(50, 1)


@pytest.fixture
def optimum():
    return EmpiricalDenoiser(to_float(TRAIN))


@pytest.fixture
def gaussian():
    return GaussianDenoiser.fit(to_float(noise_images(400, 9)))


def test_empirical_optimum_at_little_noise(optimum):
    """No loss on T; on H the squared distance to the nearest training image."""
    train = denoising_losses(optimum, TRAIN, [1e-3])
    held_out = denoising_losses(optimum, HELD_OUT, [1e-3])
    d1 = torch.cdist(to_float(HELD_OUT).double().flatten(1), to_float(TRAIN).double().flatten(1)).amin(1)
    assert train.max() < 1e-25
    torch.testing.assert_close(held_out[:, 0] * 16, d1**2, rtol=1e-9, atol=0)
    gap = loss_gap(train, held_out)[0]
    assert gap.gap.low > 0 and gap.separation.auc.value == 1 and gap.separation.tpr.value == 1


def test_gap_vanishes_at_large_noise(optimum):
    """There D* is the mean of T: the gap is what is left of T's fit to its own mean."""
    gaps = loss_gap(*(denoising_losses(optimum, side, [0.1, 3.0, 300.0]) for side in (TRAIN, HELD_OUT)))
    assert gaps[0].gap.value > 5 * gaps[1].gap.value > 0
    assert abs(gaps[2].gap.value) < 0.05 and gaps[2].separation.auc.low < 0.5


def test_no_gap_without_memory(gaussian):
    gap = loss_gap(*(denoising_losses(gaussian, side, [0.5]) for side in (TRAIN, HELD_OUT)))[0]
    assert gap.gap.low < 0 < gap.gap.high and gap.separation.auc.low < 0.5 < gap.separation.auc.high


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_size_changes_nothing(optimum, batch_size):
    whole = denoising_losses(optimum, TRAIN, [0.3, 2.0], seed=3, draws=2)
    parts = denoising_losses(optimum, TRAIN, [0.3, 2.0], seed=3, draws=2, batch_size=batch_size)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-14)
    assert not torch.equal(whole, denoising_losses(optimum, TRAIN, [0.3, 2.0], seed=4, draws=2))


def test_noise_is_shared_by_position():
    seen = []

    def spy(x, sigma, labels=None):
        seen.append((x, labels))
        return x

    for side in (TRAIN, HELD_OUT[:40]):
        denoising_losses(spy, side, [2.0], labels=torch.arange(40))
    first, second = (x - to_float(side) for (x, _), side in zip(seen, (TRAIN, HELD_OUT[:40])))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    assert torch.equal(seen[0][1], torch.arange(40))


def test_the_exact_solution_has_no_endpoint_loss(gaussian):
    """A student that is the closed-form ODE solution, against Heun on the same Gaussian."""

    def exact(x, sigma, labels=None):
        return gaussian.endpoint(x, sigma, 0.0)

    phi = OdeEndpoint(gaussian, points=60)
    assert endpoint_losses(exact, phi, TRAIN, [0.3, 2.0]).max() < 1e-5
    assert endpoint_losses(phi, phi, TRAIN, [2.0]).max() == 0
    # D in place of f is the posterior mean, far from the endpoint.
    assert endpoint_losses(gaussian, phi, TRAIN, [2.0]).mean() > 0.05
    assert denoising_losses(phi, TRAIN, [1e-3]).max() < 1e-4  # below sigma_min: one step to 0


def test_endpoint_needs_one_level(gaussian):
    with pytest.raises(InputError, match="one level at a time"):
        OdeEndpoint(gaussian)(to_float(TRAIN[:2]), torch.tensor([0.5, 1.0]))


def test_auc_is_sklearns_with_ties():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 12, 60) + 1.0, rng.integers(0, 12, 90) * 1.0
    truth = np.repeat([1, 0], [60, 90])
    joint = np.concatenate([members, others])
    found = auc(members, others)
    assert found.value == pytest.approx(roc_auc_score(truth, joint), abs=1e-12)
    assert found.low < found.value < found.high
    fpr, tpr, _ = roc_curve(truth, joint, drop_intermediate=False)
    assert tpr_at_fpr(members, others, 0.1).value == pytest.approx(tpr[fpr <= 0.1].max())


def test_auc_interval_at_the_ends_and_its_coverage():
    apart = auc(np.ones(20), np.zeros(20))
    assert (apart.value, apart.high) == (1, 1) and 0.8 < apart.low < 1
    mirror = auc(np.zeros(20), np.ones(20))
    assert (mirror.value, mirror.low) == (0, 0) and mirror.high == pytest.approx(1 - apart.low)
    rng = np.random.default_rng(1)
    members, others = rng.normal(1, 1, 7), rng.normal(0, 1, 12)
    found = auc(members, others)
    for bound in (found.low, found.high):
        # Hanley & McNeil 1982 with N* = (m + h) / 2 for both sizes.
        more = (9.5 - 1) * ((1 - bound) / (2 - bound) + bound / (1 + bound))
        assert (bound - found.value) ** 2 == pytest.approx(
            1.959964**2 * bound * (1 - bound) * (1 + more) / 84, rel=1e-5
        )
    truth = stats.norm.cdf(1 / np.sqrt(2))
    found = [auc(rng.normal(1, 1, 40), rng.normal(0, 1, 30)) for _ in range(400)]
    assert 0.92 < np.mean([f.low <= truth <= f.high for f in found]) < 0.99


def test_tpr_interval_is_wilsons():
    members, others = np.arange(200) + 50.0, np.arange(200) * 1.0
    found = tpr_at_fpr(members, others)
    # Two of 200 others may exceed the threshold 197; members above it are 198..249.
    assert found.value == 52 / 200 and (found.low, found.high) == wilson_interval(52, 200)


def test_welch_is_scipys():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 3, 12), rng.normal(1, 1, 30)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert welch(a, b).low == pytest.approx(interval.low) and welch(a, b).high == pytest.approx(interval.high)
    assert welch(np.ones(3), np.ones(3)).low == 0


def test_unusable_input_is_refused(optimum):
    with pytest.raises(InputError, match="at least one"):
        denoising_losses(optimum, TRAIN[:0], [0.5])
    with pytest.raises(InputError, match="must be positive"):
        denoising_losses(optimum, TRAIN, [0.0])
    for sides in ((1, 2), (2, 1)):
        with pytest.raises(InputError, match="two images"):
            loss_gap(*(torch.rand(n, 1) for n in sides))
    assert len(loss_gap(torch.rand(2, 3), torch.rand(2, 3))) == 3
    with pytest.raises(InputError, match="cannot be ranked"):
        separation(np.array([np.nan]), np.array([1.0]))
