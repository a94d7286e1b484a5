"""The random numbers of a training step are pure functions of seed and position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import support
from cdmem.diffusion.step_noise import StepNoise, dropout_seed

CPU = torch.device("cpu")


def draws(noise):
    return noise.normal(), noise.normal((2, 3)), noise.choice(torch.tensor([0.1, 0.2, 0.7])), noise.normal((1,))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_slices_of_the_ranks_are_the_draw_of_one_process(world):
    whole = draws(StepNoise(1, 7, 12))
    ranks = [draws(StepNoise(1, 7, 12 // world, rank, world)) for rank in range(world)]
    for k, expected in enumerate(whole):
        assert torch.equal(torch.cat([r[k] for r in ranks]), expected)


def test_parts_of_a_step_share_no_dropout():
    seeds = {StepNoise(3, step, 4, part, 3).dropout_seed for step in (7, 8) for part in range(3)}
    assert len(seeds) == 6 and not seeds & {StepNoise(3, step, 4).seed for step in (7, 8)}


@given(seed=st.integers(0, 2**40), position=st.integers(0, 10**7))
@settings(max_examples=20, deadline=None)
def test_draws_are_a_pure_function_of_seed_and_position(seed, position):
    torch.manual_seed(0)
    first = draws(StepNoise(seed, position, 4))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for a, b in zip(first, draws(StepNoise(seed, position, 4))):
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    for other in (StepNoise(seed + 1, position, 4), StepNoise(seed, position + 1, 4)):
        assert not torch.equal(other.normal(), first[0])


def test_choice_has_the_given_probabilities():
    p = torch.tensor([0.05, 0.25, 0.0, 0.6, 0.1], dtype=torch.float64)
    count = torch.bincount(StepNoise(0, 0, 20_000).choice(p), minlength=5)
    assert count[2] == 0
    assert bool(((count / 20_000 - p).abs() <= 5 * (p * (1 - p) / 20_000).sqrt()).all())


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_same_seed_drops_the_same_units(p):
    x, drop = torch.ones(200), nn.Dropout(p)
    masks = []
    for seed in (5, 5, 6):
        with dropout_seed(CPU, seed):
            masks.append(drop(x))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert 0 < int((masks[0] == 0).sum()) < 200
    torch.manual_seed(5)
    assert torch.equal(drop(x), masks[0])


def test_the_global_stream_is_restored():
    support.check_streams_restored()


def test_the_stream_is_restored_after_an_error():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), dropout_seed(CPU, 1):
        torch.rand(5)
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)
