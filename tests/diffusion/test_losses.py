"""Distances, the denoising loss and the consistency loss."""

from __future__ import annotations

import math

import pytest
import torch

import support
from cdmem.diffusion import losses, noise, solvers
from cdmem.distillation import ConsistencyTraining
from cdmem.distillation.base import CleanBatch
from cdmem.errors import InputError

DISTANCES = pytest.mark.parametrize("distance", [losses.L2(), losses.L1(), losses.PseudoHuber(0.3)], ids=str)
BOTH = pytest.mark.parametrize("name", ["heun", "euler"])


def pairs(count=4, seed=0):
    g = support.rng(seed)
    return [torch.randn(count, 2, 3, 3, generator=g, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize(
    "check",
    [support.check_huber_on_the_vector, support.check_student_sees_the_noisier_image, support.check_no_clamp],
    ids=lambda check: check.__name__,
)
def test_statements(check):
    check()


def test_l2_and_l1_are_means_over_pixels_per_image():
    a, b = pairs()
    for k in range(4):
        delta = (a[k] - b[k]).flatten().tolist()
        assert losses.L2()(a, b)[k].item() == pytest.approx(sum(v * v for v in delta) / 18, rel=1e-13)
        assert losses.L1()(a, b)[k].item() == pytest.approx(sum(map(abs, delta)) / 18, rel=1e-13)


@pytest.mark.parametrize(("side", "c"), [(8, 0.00432), (16, 0.00864), (28, 0.01512), (32, 0.01728)])
def test_default_constant_grows_with_the_root_of_the_dimension(side, c):
    a = torch.zeros(1, 1, side, side, dtype=torch.float64)
    for scale in (1e-4, 1e-2, 1.0):
        norm = scale * side
        expected = math.sqrt(norm**2 + c**2) - c
        # c is quoted to a relative 1e-12 here: 0.00054 * side exactly.
        assert losses.PseudoHuber()(a + scale, a).item() == pytest.approx(expected, rel=1e-9)


@DISTANCES
def test_equal_images_have_distance_and_gradient_zero(distance):
    a = torch.ones(2, 1, 3, 3, requires_grad=True)
    value = distance(a, torch.ones(2, 1, 3, 3))
    value.sum().backward()
    assert torch.equal(value.detach(), torch.zeros(2))
    assert torch.equal(a.grad, torch.zeros_like(a))


@DISTANCES
def test_gradients_agree_with_differences(distance):
    a, b = pairs(2)
    assert torch.autograd.gradcheck(lambda v: distance(v, b), (a.requires_grad_(),))


def test_denoising_loss_by_hand():
    x0, eps = pairs(3)
    sigma, weight = torch.tensor([0.1, 1.0, 10.0]).double(), torch.tensor([3.0, 2.0, 1.0]).double()
    loss = losses.denoising_loss(lambda x, s, labels: x / 2, x0, sigma, eps, weight)
    for k in range(3):
        expected = weight[k] * ((x0[k] + sigma[k] * eps[k]) / 2 - x0[k]).square().mean()
        torch.testing.assert_close(loss[k], expected, rtol=1e-13, atol=0)


@BOTH
def test_composition_of_solver_steps_has_loss_zero(name):
    support.check_zero_loss(name)


@BOTH
def test_consistency_training_is_distillation_from_the_image_itself(name):
    """With D = x0 Euler and Heun both lead to x0 + sigma_lo eps: the flow of one image is a straight line."""
    x0, eps = pairs(5)
    hi = torch.tensor([0.01, 0.5, 2.0, 20.0, 80.0], dtype=torch.float64)
    lo = hi * torch.tensor([0.2, 0.9, 0.5, 0.7, 0.1], dtype=torch.float64)
    x_hi = x0 + noise.expand(hi, x0) * eps
    expected = x0 + noise.expand(lo, x0) * eps
    towards = ConsistencyTraining().step_down(None, CleanBatch(x0, None), x_hi, hi, lo)
    solved = solvers.SOLVERS[name](lambda *_: x0, x_hi, hi, lo)
    # A handful of roundings of numbers of size |x_hi|.
    bound = 8 * 2.0**-52 * (x_hi.abs() + x0.abs())
    assert bool(((towards - expected).abs() <= bound).all())
    assert bool(((solved - expected).abs() <= bound).all())


def test_target_may_be_the_student_itself():
    network = torch.nn.Linear(1, 1)
    x_hi, x_lo, s = torch.full((2, 1), 2.0), torch.full((2, 1), 1.0), torch.ones(2)
    f = lambda x, *_: network(x)  # noqa: E731
    losses.consistency_loss(f, f, x_hi, x_lo, s, s, losses.L2()).sum().backward()
    # d/dw (w x_hi - goal)^2 = 2 (w x_hi - w x_lo) x_hi, for both; a moving goal would have x_hi - x_lo as last factor.
    w = network.weight.item()
    assert network.weight.grad.item() == pytest.approx(2 * 2 * w * 2, rel=1e-5)
    assert network.bias.grad.item() == pytest.approx(2 * 2 * w, rel=1e-5)


def test_weights_multiply_per_sample():
    a, b = pairs(3)
    weight, s = torch.tensor([1.0, 10.0, 100.0]).double(), torch.ones(3)
    plain = losses.consistency_loss(lambda *_: a, lambda *_: b, a, b, s, s, losses.L2())
    weighted = losses.consistency_loss(lambda *_: a, lambda *_: b, a, b, s, s, losses.L2(), weight)
    torch.testing.assert_close(weighted, plain * weight, rtol=1e-15, atol=0)


def test_pseudo_huber_without_c_is_the_norm_with_a_gradient_everywhere():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = losses.PseudoHuber(c=0.0)(a, torch.zeros(2, 2, dtype=torch.float64))
    value.sum().backward()
    assert value.tolist() == [5.0, 0.0] and a.grad.tolist() == [[0.6, 0.8], [0.0, 0.0]]


@pytest.mark.parametrize("c", [-1e-9, math.nan])
def test_pseudo_huber_refuses_a_negative_c(c):
    with pytest.raises(InputError, match=r"model\.method\.distance\.c="):
        losses.PseudoHuber(c=c)
