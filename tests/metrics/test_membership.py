"""SecMI and PIA: the sigma form of the published settings, and models that do and do not remember."""

from __future__ import annotations

import pytest
import torch

from cdmem.diffusion.analytic import EmpiricalDenoiser, GaussianDenoiser
from cdmem.diffusion.ddpm import VPSchedule
from cdmem.errors import InputError
from cdmem.images import to_float, to_uint8
from cdmem.metrics.whitebox.membership_inference import attack_sigmas, membership, pia, secmi


@pytest.fixture(scope="module")
def world():
    """T and H from one smooth Gaussian, the denoiser of T (copies) and that of the Gaussian (does not know T)."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(36, 6, generator=generator) / 8
    covariance = factor @ factor.T + 0.01 * torch.eye(36)
    draws = torch.randn(160, 36, generator=generator) @ torch.linalg.cholesky(covariance).T
    images = to_uint8(draws.reshape(160, 1, 6, 6))
    train, held_out = images[:80], images[80:]
    return train, held_out, EmpiricalDenoiser(to_float(train)), GaussianDenoiser(torch.zeros(1, 6, 6), covariance)


def secmi_below_spacing(denoiser, images):
    """T's images are 0.9 apart or more: half of that is far above 0.1."""
    return secmi(denoiser, images, torch.linspace(0.008, 0.1, 12).tolist())


@pytest.mark.parametrize("attack", [secmi_below_spacing, pia])
def test_memory_separates_and_ignorance_does_not(world, attack):
    train, held_out, copies, smooth = world
    found = membership(attack(copies, train), attack(copies, held_out))
    assert found.auc.value == 1 and found.tpr.value == 1
    blind = membership(attack(smooth, train), attack(smooth, held_out))
    assert blind.auc.low < 0.5 < blind.auc.high
    assert blind.tpr.value < 0.1


def test_memory_hides_at_the_wrong_level(world):
    """Far above the spacing of T the optimum is its mean for everybody."""
    train, held_out, copies, _ = world
    at = {"sigma": 80.0, "sigma_small": 40.0}
    found = membership(pia(copies, train, **at), pia(copies, held_out, **at))
    assert abs(found.auc.value - 0.5) < 0.15


def test_secmi_turns_round_above_the_spacing(world):
    """Inversion carries a held-out image so far out that one training image explains it: its path is straight."""
    train, held_out, copies, _ = world
    levels = torch.linspace(0.01, 1.0, 12).tolist()
    assert membership(secmi(copies, train, levels), secmi(copies, held_out, levels)).auc.high < 0.2


def test_published_levels():
    levels = attack_sigmas()
    assert len(levels) == 12
    assert (levels[0], levels[-2], levels[-1]) == pytest.approx((0.0100, 0.3423, 0.3769), abs=1e-4)
    assert attack_sigmas(sigma_min=0.06)[0] == 0.06 and len(attack_sigmas(sigma_min=0.06)) == 11


def test_secmi_is_ddim_there_and_back():
    """The same attack written in DDPM's variables, with an arbitrary epsilon network."""
    schedule = VPSchedule()
    sigma = schedule.sigma(torch.arange(0, 111, 10)).double()
    alpha_bar = 1 / (1 + sigma**2)
    images = torch.randint(0, 256, (5, 1, 4, 4), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)

    def epsilon(x, k):
        return torch.tanh(3 * x) + 0.1 * k * x.flip(-1)

    def ddim(x, k, j):
        eps = epsilon(x, k)
        x0 = (x - (1 - alpha_bar[k]).sqrt() * eps) / alpha_bar[k].sqrt()
        return alpha_bar[j].sqrt() * x0 + (1 - alpha_bar[j]).sqrt() * eps

    def denoiser(x, s, labels=None):
        k = int((sigma - s[0]).abs().argmin())
        return x - s[0] * epsilon(x * alpha_bar[k].sqrt(), k)

    x = to_float(images).double() * alpha_bar[0].sqrt()
    for k in range(10):
        x = ddim(x, k, k + 1)
    error = (ddim(ddim(x, 10, 11), 11, 10) - x).square().flatten(1).sum(1)
    torch.testing.assert_close(secmi(denoiser, images) * alpha_bar[10], error, rtol=1e-5, atol=0)


@pytest.mark.parametrize("attack", [secmi, pia])
def test_batch_size_and_labels(world, attack):
    train, _, copies, _ = world
    torch.testing.assert_close(attack(copies, train, batch_size=7), attack(copies, train), rtol=1e-8, atol=1e-12)
    seen = []

    def spy(x, sigma, labels=None):
        seen.append(labels.tolist())
        return x / 2

    attack(spy, train[:3], batch_size=2, labels=torch.tensor([4, 5, 6]))
    assert {tuple(s) for s in seen} == {(4, 5), (6,)}


def test_unusable_input_is_refused(world):
    train, _, copies, _ = world
    for time, interval in ((105, 10), (0, 10), (990, 10), (100, 0)):
        with pytest.raises(InputError, match=f"multiple of {interval}"):
            attack_sigmas(time, interval)
    assert len(attack_sigmas(980, 10)) == 100
    with pytest.raises(InputError, match="larger time"):
        attack_sigmas(sigma_min=0.5)
    with pytest.raises(InputError, match="ascending"):
        secmi(copies, train, [0.3, 0.2, 0.1])
    with pytest.raises(InputError, match="must lie between"):
        pia(copies, train, sigma=0.1, sigma_small=0.2)
    with pytest.raises(InputError, match="nothing to measure on"):
        pia(copies, train[:0])
