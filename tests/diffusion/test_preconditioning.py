"""From a network to a denoiser and to a consistency function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import support
from cdmem.diffusion import noise, preconditioning

BOTH = pytest.mark.parametrize("make_scaling", [support.edm, support.vp], ids=["edm", "vp"])


@pytest.mark.parametrize(
    "check",
    [support.check_edm_identities, support.check_network_only_in_low_precision],
    ids=lambda check: check.__name__,
)
def test_statements(check):
    check()


@BOTH
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_consistency_function_is_the_identity_at_sigma_min(make_scaling, autocast, training):
    support.check_boundary(make_scaling, autocast, training)


@BOTH
def test_networks_get_float32_from_a_solver_in_float64(make_scaling):
    denoiser = preconditioning.Denoiser(support.small_network(), make_scaling())
    x, sigma = torch.randn(3, 1, 4, 4, generator=support.rng()), torch.tensor([0.1, 1.0, 10.0])
    out = denoiser(x.double(), sigma.double())
    assert out.dtype == torch.float32 and torch.equal(out, denoiser(x, sigma))


def test_boundary_holds_at_the_rounded_sigma_min_of_vp_runs():
    scaling = preconditioning.VPScaling(0.010001)
    function = preconditioning.ConsistencyFunction(support.small_network(), scaling)
    x = torch.randn(3, 1, 4, 4, generator=support.rng())
    lowest = noise.karras_sigmas(18, 0.010001).float()[-1:].expand(3)
    assert torch.equal(function(x, lowest), x)


@BOTH
def test_teacher_and_student_feed_the_network_alike(make_scaling):
    support.check_shared_inputs(make_scaling)


def test_c_noise_is_a_quarter_log_sigma_times_thousand():
    sigma = torch.logspace(-3, 2, 20, dtype=torch.float64)
    torch.testing.assert_close(support.edm().denoiser(sigma).c_noise, 1000 * sigma.log() / 4, rtol=1e-14, atol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.2, 0.5, 1.7])
def test_shifted_factors_are_those_of_song_et_al(sigma_data):
    sigma = torch.logspace(-2, 1.9, 15, dtype=torch.float64)
    c = support.edm(sigma_data).consistency(sigma)
    shifted = sigma - 0.002
    torch.testing.assert_close(c.c_skip, sigma_data**2 / (shifted**2 + sigma_data**2))
    torch.testing.assert_close(c.c_out, sigma_data * shifted / (sigma**2 + sigma_data**2).sqrt())
    # Far from sigma_min student and teacher are the same function: relative difference O(sigma_min / sigma).
    d = support.edm(sigma_data).denoiser(sigma)
    assert bool(((c.c_out / d.c_out - 1).abs() <= 1.001 * 0.002 / sigma).all())


class Eps(nn.Module):
    def forward(self, x, c_noise, labels=None):
        return torch.tanh(x) + 1e-3 * noise.expand(c_noise, x)


def test_vp_denoiser_is_x_minus_sigma_epsilon():
    scaling = support.vp()
    x = torch.randn(6, 1, 4, 4, generator=support.rng()) * 3
    sigma = torch.tensor([0.011, 0.05, 0.5, 2.0, 20.0, 150.0])
    out = preconditioning.Denoiser(Eps(), scaling)(x, sigma)
    for k, s in enumerate(sigma.tolist()):
        t = scaling.schedule.time(sigma[k : k + 1]).item()
        by_hand = x[k].double() - s * (torch.tanh(x[k].double() / (1 + s * s) ** 0.5) + 1e-3 * t)
        # Three float32 roundings of terms of size |x| and sigma (|F| <= 2).
        assert float((out[k] - by_hand).abs().max()) < 8 * support.EPS32 * (float(x.abs().max()) + 2 * s)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_vp_student_takes_an_euler_step_to_sigma_min(prediction):
    """f = x + (1 - sigma_min / sigma) (D - x) for whatever the network predicts: epsilon, v (Salimans & Ho) or x0."""
    scaling = preconditioning.VPScaling(0.01, prediction=prediction)
    sigma = torch.tensor([0.01, 0.011, 0.5, 20.0], dtype=torch.float64)
    c, d = scaling.consistency(sigma), scaling.denoiser(sigma)
    share, total = 1 - 0.01 / sigma, 1 + sigma**2
    by_hand = {"epsilon": (1 + 0 * sigma, -sigma), "v_prediction": (1 / total, -sigma / total.sqrt())}
    skip, out = by_hand.get(prediction, (0 * sigma, 1 + 0 * sigma))
    for found, wanted in zip((d.c_skip, d.c_out, c.c_skip, c.c_out), (skip, out, 1 - share * (1 - skip), share * out)):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)
    assert torch.equal(c.c_in, d.c_in) and torch.equal(c.c_noise, d.c_noise)


def test_vp_weight_turns_the_error_into_that_of_epsilon():
    scaling = support.vp()
    sigma = torch.tensor([0.05, 0.5, 20.0], dtype=torch.float64)
    torch.testing.assert_close(scaling.loss_weight(sigma) * scaling.denoiser(sigma).c_out ** 2, torch.ones_like(sigma))
