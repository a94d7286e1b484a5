"""Samples are pure functions of their seed."""

from __future__ import annotations

import pytest
import torch

import support
from cdmem.diffusion import noise, sampling, solvers

SHAPE = (2, 3, 3)


def elementwise(x, sigma, labels=None):
    """A denoiser whose arithmetic cannot depend on the batch (matrix products may)."""
    shift = 0.0 if labels is None else labels.reshape(-1, 1, 1, 1) / 10
    return x / (1 + noise.expand(sigma.to(x.dtype), x) ** 2) + shift


def samplers(num_classes=0):
    return {
        "heun": sampling.OdeSampler(elementwise, noise.sampler_sigmas(5), solvers.heun_step, SHAPE, num_classes),
        "euler": sampling.OdeSampler(elementwise, noise.sampler_sigmas(5), solvers.euler_step, SHAPE, num_classes),
        "one step": sampling.ConsistencySampler(elementwise, 80.0, 0.002, SHAPE, (), num_classes),
        "three steps": sampling.ConsistencySampler(elementwise, 80.0, 0.002, SHAPE, (2.0, 0.4), num_classes),
    }


ALL = pytest.mark.parametrize("name", list(samplers()))


@pytest.mark.parametrize(
    "check",
    [support.check_labels_from_the_seed, support.check_multistep_noise, support.check_last_output_is_returned],
    ids=lambda check: check.__name__,
)
def test_statements(check):
    check()


@ALL
@pytest.mark.parametrize("num_classes", [0, 7])
def test_a_picture_does_not_depend_on_its_batch(name, num_classes):
    sampler, seeds = samplers(num_classes)[name], list(range(100, 113))
    torch.manual_seed(0)
    together = sampler(seeds)
    assert together.dtype == torch.float32 and together.shape == (13, *SHAPE)
    assert len(together.flatten(1).unique(dim=0)) == 13
    torch.manual_seed(1)
    for size in (1, 4, 13, 50):
        batches = list(sampling.in_batches(sampler, seeds, size))
        assert torch.equal(torch.cat([s for s, _ in batches]), torch.tensor(seeds))
        assert torch.equal(torch.cat([x for _, x in batches]), together)
    assert torch.equal(sampler(seeds[::-1]).flip(0), together)


def test_noise_is_a_fixed_sequence_per_seed():
    source = sampling.NoiseSource([5, 6], SHAPE)
    first, second = source.next(), source.next()
    again = sampling.NoiseSource([9, 6, 5], SHAPE)
    assert torch.equal(again.next()[[2, 1]], first)
    assert torch.equal(again.next()[[2, 1]], second)
    g = torch.Generator().manual_seed(5)
    assert torch.equal(first[0], torch.randn(SHAPE, generator=g))
    assert torch.equal(second[0], torch.randn(SHAPE, generator=g))


def test_labels_do_not_take_from_the_pixels_noise():
    with_labels, without = sampling.NoiseSource([3], SHAPE), sampling.NoiseSource([3], SHAPE)
    with_labels.labels(10)
    assert torch.equal(with_labels.next(), without.next())
    assert without.labels(0) is None


def test_labels_are_uniform():
    drawn = sampling.NoiseSource(range(5000), (1, 1, 1)).labels(10)
    count = torch.bincount(drawn, minlength=10)
    assert len(count) == 10 and float((count - 500).abs().max()) < 5 * (5000 * 0.09) ** 0.5


@ALL
def test_global_random_numbers_are_neither_used_nor_moved(name):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    samplers(5)[name]([1, 2])
    assert torch.equal(torch.rand(3), expected)


def test_teacher_and_student_start_from_the_same_noise():
    starts = {}

    def spy(name):
        def call(x, sigma, labels=None):
            starts.setdefault(name, (x.float(), float(sigma[0]), labels))
            return elementwise(x, sigma, labels)

        return call

    ode = sampling.OdeSampler(spy("teacher"), noise.sampler_sigmas(5), solvers.heun_step, SHAPE, 4)
    fast = sampling.ConsistencySampler(spy("student"), 80.0, 0.002, SHAPE, (0.8,), 4)
    ode([7, 8])
    fast([7, 8])
    (x_t, s_t, l_t), (x_s, s_s, l_s) = starts["teacher"], starts["student"]
    assert s_t == s_s == 80.0 and torch.equal(l_t, l_s)
    # 80 z in float64, rounded, against 80 z in float32: the same product correctly rounded.
    assert torch.equal(x_t, x_s)


@ALL
def test_evaluations_are_counted(name):
    count = 0

    def counting(x, sigma, labels=None):
        nonlocal count
        count += 1
        return elementwise(x, sigma, labels)

    sampler = samplers()[name]
    sampler.denoiser = sampler.consistency = counting  # each kind calls its own
    sampler([1, 2, 3])
    assert count == sampler.nfe == {"heun": 9, "euler": 5, "one step": 1, "three steps": 3}[name]


def test_heun_that_stops_above_zero_pays_for_its_last_step():
    sampler = sampling.OdeSampler(elementwise, noise.karras_sigmas(5), solvers.heun_step, SHAPE)
    assert sampler.nfe == 8


@pytest.mark.parametrize("levels", [[80.0, 0.002], [80.0, 0.001], [80.0, 80.0], [80.0, 1.0, 2.0], [80.0, 1.0, 0.0]])
def test_levels_that_would_leave_noise_on_the_picture_are_refused(levels):
    x = torch.zeros(1, *SHAPE)
    with pytest.raises(ValueError, match="decrease"):
        sampling.sample_consistency(elementwise, x, levels, 0.002, lambda: x)


def test_ode_state_is_float64():
    dtypes = set()

    def spy(x, sigma, labels=None):
        dtypes.add(x.dtype)
        return elementwise(x, sigma)

    out = sampling.sample_ode(spy, torch.ones(2, *SHAPE), noise.sampler_sigmas(4), solvers.heun_step)
    assert dtypes == {torch.float64} and out.dtype == torch.float32


def test_the_end_of_the_flow_is_not_clamped():
    x = torch.full((1, *SHAPE), 80.0)
    ode = sampling.sample_ode(lambda x, *_: torch.full_like(x, 7.0), x, noise.sampler_sigmas(3), solvers.euler_step)
    torch.testing.assert_close(ode, torch.full_like(x, 7.0), rtol=1e-6, atol=0)


def test_renoise_tells_neighbouring_levels_apart():
    x0, eps = torch.zeros(2, 1, 1, 1).bfloat16(), torch.ones(2, 1, 1, 1).bfloat16()
    low, high = renoised = sampling.renoise(x0, torch.tensor([1.0, 1.001]), eps)
    assert renoised.dtype == torch.float32 and high > low
