"""Local intrinsic dimension against closed forms and against itself."""

from __future__ import annotations

import pytest
import torch

from cdmem.diffusion.analytic import EmpiricalDenoiser, GaussianDenoiser
from cdmem.diffusion.preconditioning import ConsistencyFunction, Denoiser, EDMScaling
from cdmem.errors import InputError
from cdmem.metrics.whitebox.intrinsic_dimension import lid
from cdmem.networks.unet import UNet

SHAPE = (1, 4, 4)


@pytest.fixture
def gaussian():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(16, 5, generator=generator, dtype=torch.float64) / 4
    mean = torch.randn(SHAPE, generator=generator)
    return GaussianDenoiser(mean, factor @ factor.T)


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_linear_gaussian(gaussian, sigma):
    """sum l / (l + s^2), near 5 at little noise, and the residual off the mean."""
    trace = (gaussian.values / (gaussian.values + sigma**2)).sum()
    x = torch.stack([gaussian.mean, gaussian.mean + 0.3])
    found = lid(gaussian, x, sigma)
    torch.testing.assert_close(found.value[0], trace)
    coordinates = (x[1] - gaussian.mean).flatten() @ gaussian.vectors
    residual = (coordinates * sigma / (gaussian.values + sigma**2)).square().sum()
    torch.testing.assert_close(found.value[1], trace + residual)
    assert found.standard_error.max() == 0


def test_hutchinson_agrees_within_its_standard_error(gaussian):
    x = gaussian.mean + torch.randn(30, *SHAPE, generator=torch.Generator().manual_seed(1))
    exact, random = lid(gaussian, x, 0.3), lid(gaussian, x, 0.3, seeds=range(30), probes=64)
    z = (random.value - exact.value) / random.standard_error
    assert z.abs().max() < 4.5 and 0.5 < z.square().mean() < 1.7
    again = lid(gaussian, x, 0.3, seeds=range(30), probes=64, batch_size=7)
    torch.testing.assert_close(again.value, random.value, rtol=1e-10, atol=1e-10)


def test_isolated_training_image_has_no_dimension():
    """Two points at distance 2: 0 for sigma well below half the spacing; along the line far above it."""
    points = torch.zeros(2, *SHAPE)
    points[0, 0, 0, 0], points[1, 0, 0, 0] = -1.0, 1.0
    optimum = EmpiricalDenoiser(points)
    assert lid(optimum, points, 0.2).value.abs().max() < 1e-12
    # Between the two: J = d^2 / (4 s^2) along the line.
    torch.testing.assert_close(lid(optimum, torch.zeros(1, *SHAPE), 2.0).value[0], torch.tensor(0.25).double())


@pytest.mark.parametrize("form", [Denoiser, ConsistencyFunction])
def test_networks_with_attention_also_in_inference_mode(form):
    network = UNet(channels=[8, 16], layers=1, attention=[4]).build((1, 8, 8), 3, 0).eval()
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.1)
    function = form(network, EDMScaling(0.5, 0.002))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        exact = lid(function, x.clone(), 0.7, labels=torch.tensor([0, 2]))
        random = lid(function, x.clone(), 0.7, (4, 5), 32, labels=torch.tensor([0, 2]))
    assert ((random.trace - exact.trace).abs() < 4.5 * random.standard_error).all()
    # Central differences of the diagonal, in float32.
    level, diagonal = torch.full((2,), 0.7), torch.zeros(2)
    with torch.no_grad():
        for j in range(64):
            step = torch.zeros(64).index_fill_(0, torch.tensor([j]), 0.02).reshape(1, 8, 8)
            change = function(x + step, level, torch.tensor([0, 2])) - function(x - step, level, torch.tensor([0, 2]))
            diagonal += change.flatten(1)[:, j] / 0.04
    torch.testing.assert_close(exact.trace.float(), diagonal, rtol=0.02, atol=0.02)


def test_a_constant_model_has_no_trace():
    found = lid(lambda x, s, c: torch.zeros_like(x).detach(), torch.ones(2, *SHAPE), 2.0)
    assert found.trace.tolist() == [0, 0] and found.value.tolist() == [4, 4]


def test_unusable_input_is_refused(gaussian):
    x = torch.zeros(2, *SHAPE)
    with pytest.raises(InputError, match="needs a positive level"):
        lid(gaussian, x, 0.0)
    with pytest.raises(InputError, match="needs two"):
        lid(gaussian, x, 1.0, (0, 1), 1)
    with pytest.raises(InputError, match="one seed per image"):
        lid(gaussian, x, 1.0, (0,), 4)
