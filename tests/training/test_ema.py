"""Averages of weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import support
from cdmem.training.ema import EMA, ema_beta


def one_weight(value=0.0):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


@given(half_life=st.integers(1, 100_000))
@settings(max_examples=25, deadline=None)
def test_after_a_half_life_an_old_weight_counts_half(half_life):
    # pow has a relative error of 1e-16, multiplied by the exponent.
    assert ema_beta(half_life, 10**9, 0.0) ** half_life == pytest.approx(0.5, rel=2e-16 * half_life + 1e-15)


@pytest.mark.parametrize("ramp", [0.05, 0.5])
def test_ramp_limits_the_half_life_to_a_share_of_the_run(ramp):
    for step in (1, 10, 100, 1000):
        assert ema_beta(200, step, ramp) == pytest.approx(0.5 ** (1 / min(200, ramp * step)), rel=1e-15)
    assert ema_beta(200, 10**6, ramp) == ema_beta(200, 1, 0.0)


@pytest.mark.parametrize("half_life", [1, 3, 50])
def test_constant_weights_are_approached_by_powers_of_beta(half_life):
    average, source = EMA(one_weight(0.0), [half_life], ramp=0.0), one_weight(1.0)
    beta = 0.5 ** (1 / half_life)
    for k in range(1, 31):
        average.update(source, k)
        # One rounding to float32 per update.
        assert abs(float(average.copies[0].weight) - (1 - beta**k)) <= k * support.EPS32


def test_several_half_lives_at_once_do_not_disturb_each_other():
    together, source = EMA(one_weight(0.0), [2, 20, 200], ramp=0.0), one_weight(1.0)
    alone = [EMA(one_weight(0.0), [h], ramp=0.0) for h in (2, 20, 200)]
    for k in range(1, 11):
        for average in (together, *alone):
            average.update(source, k)
    for h, copy, single in zip((2, 20, 200), together.copies, alone):
        assert torch.equal(copy.weight, single.copies[0].weight)
        assert together.get(f"ema_{h}") is copy
    assert together.names() == ["ema_2", "ema_20", "ema_200"]
    values = [float(c.weight) for c in together.copies]
    assert values == sorted(values, reverse=True) and len(set(values)) == 3


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="ema_3"):
        EMA(one_weight(), [2]).get("ema_3")


def test_average_forgets_the_start_of_a_short_run():
    support.check_averages_forget_the_start()


def test_averages_never_train_and_have_no_gradient():
    average = EMA(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), [2])
    for mode in (True, False):
        assert average.train(mode) is average
        assert not any(m.training for m in average.modules())
    nn.Sequential(average).train()
    assert not any(m.training for m in average.modules())
    assert not any(p.requires_grad for p in average.parameters())


def test_the_source_is_neither_kept_nor_changed():
    source = one_weight(1.0)
    average = EMA(source, [2], ramp=0.0)
    assert source.weight.requires_grad and source.training
    with torch.no_grad():
        source.weight.fill_(3.0)
    assert float(average.copies[0].weight) == 1.0
    average.update(source, 1)
    assert source.weight.item() == 3.0 and source.weight.grad is None
    assert len(list(average.parameters())) == 1


def test_buffers_are_copied_not_averaged():
    source = nn.BatchNorm1d(2)
    average = EMA(source, [100], ramp=0.0)
    source.running_mean.fill_(5.0)
    source.num_batches_tracked.fill_(7)
    average.update(source, 1)
    assert average.copies[0].running_mean.tolist() == [5.0, 5.0]
    assert int(average.copies[0].num_batches_tracked) == 7
