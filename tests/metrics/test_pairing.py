"""Same seeds through teacher and student: fates and agreement by hand, distances against a float64 reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from cdmem.errors import InputError
from cdmem.images import to_float, to_uint8
from cdmem.metrics.comparison.paired import (
    TRANSFER,
    PairedWithTeacher,
    adjust,
    chance_agreement,
    compare,
    difference,
    identity_agreement,
    transfer_table,
)
from cdmem.metrics.statistics import mcnemar_exact, newcombe_paired_difference, wilson_interval
from support import make_training_set, random_images

SHAPE = (3, 8, 8)


def yes(*values):
    return torch.tensor(values, dtype=torch.bool)


# ---- fates ----------------------------------------------------------------------------------------------------------


def test_each_fate_by_hand():
    teacher, student = yes(1, 1, 1, 0, 0, 1, 0), yes(1, 1, 0, 1, 0, 1, 0)
    groups = torch.tensor([4, 4, 2, 1, 3, 0, 5]), torch.tensor([4, 2, 2, 1, 3, 0, 6])
    table = transfer_table(teacher, student, *groups)
    assert table == {"kept_same": 2, "kept_other": 1, "lost": 1, "gained": 1, "neither": 2}
    assert tuple(table) == TRANSFER


# ---- identity -------------------------------------------------------------------------------------------------------


def test_kappa_is_zero_where_identities_are_independent():
    """Every pair of p_i x q_j exactly in proportion: p = (1/2, 1/3, 1/6), q = (1/4, 3/4, 0): agreement is chance."""
    first, second = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1])
    found = identity_agreement(first.repeat_interleave(4), second.repeat(6))
    assert found["chance"] == pytest.approx(1 / 8 + 1 / 4, abs=1e-15)
    assert found["same"] == 9 / 24 and found["kappa"] == pytest.approx(0, abs=1e-15)
    assert found["ci95"] == list(wilson_interval(9, 24))


def test_kappa_is_one_for_identical_and_negative_for_exchanged_identities():
    groups = torch.tensor([0, 0, 5, 5, 5, 9])
    found = identity_agreement(groups, groups)
    assert found["same"] == found["kappa"] == 1.0 and found["chance"] == pytest.approx(14 / 36)
    assert identity_agreement(torch.tensor([0, 1]), torch.tensor([1, 0]))["kappa"] == pytest.approx(-1.0)


def test_kappa_by_hand():
    """Same: 1 of 5; p = q = (3/5, 2/5), so chance 13/25 and kappa (5 - 13) / (25 - 13)."""
    found = identity_agreement(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 1, 0, 0]))
    assert (found["same"], found["chance"], found["kappa"]) == pytest.approx((1 / 5, 13 / 25, -8 / 12))


def test_agreement_without_choice_or_without_seeds():
    one = identity_agreement(torch.tensor([3, 3]), torch.tensor([3, 3]))
    assert one["chance"] == 1 and one["kappa"] is None
    assert identity_agreement(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)) is None


# ---- difference -----------------------------------------------------------------------------------------------------


def test_difference_is_student_minus_teacher():
    """20 both, 5 only the teacher, 15 only the student, 60 neither."""
    teacher, student = (
        torch.tensor(v, dtype=torch.bool).repeat_interleave(torch.tensor([20, 5, 15, 60]))
        for v in ([1, 1, 0, 0], [1, 0, 1, 0])
    )
    found = difference(teacher, student)
    assert found["value"] == pytest.approx(0.10)
    assert [found["value"], *found["ci95"]] == list(newcombe_paired_difference(20, 15, 5, 60))
    assert found["p_value"] == mcnemar_exact(15, 5) == pytest.approx(stats.binomtest(5, 20).pvalue)
    assert found["ci90"] == list(newcombe_paired_difference(20, 15, 5, 60, 0.9)[1:])
    back = difference(student, teacher)
    assert back["ci95"] == pytest.approx([-found["ci95"][1], -found["ci95"][0]])
    assert back["value"] == -found["value"] and back["p_value"] == found["p_value"]


def cohorts(teacher, student, count=100):
    """Flags of the first so many of a hundred."""
    return (torch.arange(count) < k for k in (teacher, student))


def test_unpaired_difference_is_newcombes_of_independent_samples():
    """Newcombe 1998b, method 10: his example 56/70 against 48/80 has [.0524, .3339]; order does not matter."""
    teacher, student = torch.arange(80) < 48, torch.arange(70) < 56
    found = difference(teacher, student, paired=False)
    assert found["value"] == pytest.approx(0.2) and found["ci95"] == pytest.approx([0.0524, 0.3339], abs=5e-5)
    assert found["p_value"] == pytest.approx(stats.fisher_exact([[56, 14], [48, 32]]).pvalue)
    assert found["ci95"][0] < found["ci90"][0] < found["ci90"][1] < found["ci95"][1]
    mixed = difference(teacher[torch.randperm(80)], student.flip(0), paired=False)
    assert mixed == found


def test_unpaired_seeds_gain_nothing_from_the_pairs():
    """On the same seeds a loss of five is plain; between samples that have nothing in common it is not."""
    teacher, student = cohorts(50, 40)
    paired, apart = difference(teacher, student), difference(teacher, student, paired=False)
    assert paired["value"] == apart["value"] == pytest.approx(-0.1)
    assert paired["ci95"][1] < 0 < apart["ci95"][1]
    assert paired["p_value"] == pytest.approx(2 / 2**10) and apart["p_value"] > 0.1


def test_bounds_of_an_unpaired_difference_are_those_of_two_wilson_intervals():
    """Against the formula in float64, also where one side has none or all."""
    for t, s in ((0, 0), (0, 30), (100, 70), (37, 100), (100, 100)):
        found = difference(*cohorts(t, s), paired=False)
        for key, confidence in (("ci95", 0.95), ("ci90", 0.9)):
            score = [stats.binomtest(k, 100).proportion_ci(confidence, method="wilson") for k in (t, s)]
            below = math.hypot(s / 100 - score[1].low, score[0].high - t / 100)
            above = math.hypot(score[1].high - s / 100, t / 100 - score[0].low)
            assert found[key] == pytest.approx([(s - t) / 100 - below, (s - t) / 100 + above], abs=1e-12)


def test_comparison_without_pairs_says_the_same_value():
    teacher, student = (rows(*[(1, 100)] * k, *[(90, 100)] * (40 - k)) for k in (30, 20))
    paired, apart = (compare(teacher, student, 1 / 3, paired=p) for p in (True, False))
    assert paired["difference"]["value"] == apart["difference"]["value"] == -0.25
    assert paired["difference"]["ci95"][1] < apart["difference"]["ci95"][1]
    hits = [[20, 20], [30, 10]]
    assert apart["difference"]["p_value"] == pytest.approx(stats.fisher_exact(hits).pvalue)
    assert {k: v for k, v in paired.items() if k != "difference"} == {
        k: v for k, v in apart.items() if k != "difference"
    }


@pytest.mark.parametrize("seed", range(3))
def test_chance_agreement_is_the_share_among_all_pairs(seed):
    """Brute force: every seed of one with every seed of the other."""
    draw = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(0, high, (50,), generator=draw) ** 2 // 10 for high in (12, 9))
    every = (first[:, None] == second).double().mean()
    assert chance_agreement(first, second) == pytest.approx(float(every), abs=1e-15)
    # An image that is copied often agrees often: chance is no uniform share.
    assert chance_agreement(first, second) > 1 / len(torch.cat([first, second]).unique())


def rows(*squared, groups=None, seeds=None):
    squared = torch.tensor(squared)
    groups = torch.zeros(len(squared), 1, dtype=torch.int64) if groups is None else torch.tensor(groups)[:, None]
    return {"seeds": torch.arange(len(squared)) if seeds is None else seeds, "squared": squared, "groups": groups}


def test_comparison_by_hand():
    teacher = rows((1, 100), (4, 100), (81, 100), (0, 64), groups=[0, 1, 2, 3])
    student = rows((4, 100), (64, 100), (1, 100), (0, 64), groups=[0, 1, 2, 0])
    found = compare(teacher, student, 1 / 3)
    assert found["transfer"] == {"kept_same": 1, "kept_other": 1, "lost": 1, "gained": 1, "neither": 0}
    assert found["difference"]["value"] == 0 and found["samples"] == 4
    assert found["identity"]["same"] == 1 / 2
    # log ratios: student .2, .8, .1, copy; teacher .1, .2, .9, copy.
    assert found["log_ratio"]["median"] == pytest.approx(math.log(2) / 2)
    assert compare(teacher, student, 0.15)["transfer"]["lost"] == 1
    assert compare(teacher, student, 0.85)["transfer"]["kept_same"] == 2


def test_log_ratios_of_exact_copies_are_finite_and_extreme():
    """A copy (ratio 0) counts as one grey level in one pixel off, and no sample of another ratio comes out closer."""
    teacher = rows(*[(0, 10_000)] * 12)
    student = rows(*[(100 * k * k, 10_000) for k in range(1, 13)])
    found = compare(teacher, student, 1 / 3)["log_ratio"]
    assert found["p_value"] == pytest.approx(2 / 2**12)
    assert found["median"] == pytest.approx(np.median(np.log(np.arange(1, 13) / 10 / (1 / 100))))
    assert compare(student, teacher, 1 / 3)["log_ratio"]["median"] == -found["median"]
    assert compare(teacher, teacher, 1 / 3)["log_ratio"] == {"median": 0.0, "p_value": 1.0}


def test_other_seeds_are_refused():
    with pytest.raises(InputError, match="different seeds"):
        compare(rows((1, 9)), rows((1, 9), seeds=torch.tensor([5])), 1 / 3)
    with pytest.raises(InputError, match="different seeds"):
        compare(rows((1, 9)), rows((1, 9), (1, 9)), 1 / 3)


def test_step_numbers_are_one_family():
    comparisons = [{"difference": {"p_value": p}} for p in (0.01, 0.04, 0.03, 0.005)]
    adjust(comparisons)
    assert [c["difference"]["p_holm"] for c in comparisons] == pytest.approx([0.03, 0.06, 0.06, 0.02])


# ---- distances ------------------------------------------------------------------------------------------------------


@pytest.fixture
def train():
    return random_images(10, SHAPE, 0)


def pair(n=60, seed=1):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(n, *SHAPE, generator=generator) * 0.6
    return teacher + 0.7 * torch.randn(n, *SHAPE, generator=generator), teacher


def measured(train, student, teacher, batch=1000):
    metric = PairedWithTeacher().prepare(make_training_set(train))
    for columns in zip(student.split(batch), teacher.split(batch), torch.arange(len(student)).split(batch)):
        metric.update(*columns)
    return metric


def measure(*arguments):
    return measured(*arguments).compute()


def basins(train, x):
    points, rows = (v.flatten(1).numpy().astype(np.int64) for v in (to_uint8(x), train))
    return ((points[:, None] - rows[None]) ** 2).sum(2).argmin(1)


def saved(x):
    """As a file would hold them, float64 in [-1, 1]: clamped, and one of 256 levels."""
    return np.rint((np.clip(x.numpy().astype(np.float64), -1, 1) + 1) * 127.5) / 127.5 - 1


def test_equals_numpy(train):
    student, teacher = pair()
    s, t = saved(student), saved(teacher)
    found = measure(train, student, teacher)
    assert found["rmse_to_teacher"] == pytest.approx(math.sqrt(((s - t) ** 2).mean()), rel=1e-6)
    assert found["variance_ratio"] == pytest.approx(s.var(0).sum() / t.var(0).sum(), rel=1e-6)
    s, t = (x.numpy().astype(np.float64) for x in (student, teacher))
    assert found["rmse_unclamped"] == pytest.approx(math.sqrt(((s - t) ** 2).mean()), rel=1e-12)
    assert found["variance_ratio_unclamped"] == pytest.approx(s.var(0).sum() / t.var(0).sum(), rel=1e-10)
    first, second = (basins(train, x) for x in (student, teacher))
    same = first == second
    assert 0 < same.mean() < 1
    assert found["same_basin"] == same.mean()
    assert (found["same_basin_low"], found["same_basin_high"]) == wilson_interval(int(same.sum()), len(same))
    assert found["same_basin_chance"] == pytest.approx((first[:, None] == second).mean(), abs=1e-15)


def test_amplitude_that_no_image_has_does_not_count(train):
    """Pixels of +-1 by turns in every image: whatever a model puts beyond them is cut off when the image is saved."""
    teacher = (torch.arange(60) % 2 * 2.0 - 1)[:, None, None, None].expand(60, *SHAPE).clone()
    for factor in (1.0, 1.5, 3.0):
        found = measure(train, factor * teacher, teacher)
        assert (found["variance_ratio"], found["rmse_to_teacher"]) == (1.0, 0.0)
        assert found["variance_ratio_unclamped"] == pytest.approx(factor**2)
        assert found["rmse_unclamped"] == pytest.approx(factor - 1, abs=1e-6)
    # Half of the amplitude is half of it either way, up to a grey level; of a teacher beyond the range it is all.
    found = measure(train, 0.5 * teacher, teacher)
    assert found["variance_ratio"] == pytest.approx(1 / 4, rel=0.01) and found["variance_ratio_unclamped"] == 1 / 4
    assert measure(train, teacher, 2 * teacher)["variance_ratio"] == 1.0


def test_a_gaussian_loses_what_lies_beyond_the_range(train):
    """Variance of a standard normal clamped at +-1: 1 - 2 phi(1) - 0 + ... = 0.516; of sd 1/4 nearly all is left."""
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(800, *SHAPE, generator=draw)
    narrow = 0.25 * torch.randn(800, *SHAPE, generator=draw)
    inside = stats.norm.cdf(1) - stats.norm.cdf(-1)
    clamped = inside - 2 * stats.norm.pdf(1) + (1 - inside)
    found = measure(train, wide, narrow)
    assert found["variance_ratio"] == pytest.approx(clamped / (1 / 16), rel=0.01)
    assert found["variance_ratio_unclamped"] == pytest.approx(16, rel=0.01)


def test_squared_errors_are_those_of_the_seeds(train):
    student, teacher = pair()
    metric = measured(train, student, teacher, 7)
    errors = metric.squared_errors(metric.rows())
    want = torch.from_numpy((saved(student) - saved(teacher)) ** 2).flatten(1).mean(1)
    assert errors.dtype == torch.float64 and torch.allclose(errors, want, rtol=1e-5)
    assert math.sqrt(errors.mean()) == pytest.approx(metric.compute()["rmse_to_teacher"], rel=1e-12)


def test_basins_of_unrelated_seeds_agree_by_chance(train):
    """A student whose seeds mean something else, drawn anew 40 times: chance is what they share on average, and the
    interval of one draw holds it in 95 % of draws; images that are copied often agree often."""
    draw = torch.Generator().manual_seed(0)
    often = torch.multinomial(torch.arange(1.0, 11), 300, replacement=True, generator=draw)
    x = to_float(train[often])
    found = [measure(train, x[torch.randperm(300, generator=draw)], x) for _ in range(40)]
    share = torch.bincount(often, minlength=10) / 300
    chance = float(share.square().sum())
    assert all(f["same_basin_chance"] == pytest.approx(chance, rel=1e-6) for f in found)
    assert np.mean([f["same_basin"] for f in found]) == pytest.approx(chance, abs=4 * math.sqrt(chance / 300 / 40))
    assert sum(f["same_basin_low"] <= chance <= f["same_basin_high"] for f in found) >= 35
    assert measure(train, x, x)["same_basin_low"] > chance > 0.12


def test_identical_samples(train):
    _, teacher = pair()
    found = measure(train, teacher, teacher)
    assert (found["rmse_to_teacher"], found["variance_ratio"], found["same_basin"]) == (0.0, 1.0, 1.0)
    assert found["same_basin_high"] == 1.0


def test_basins_are_training_images(train):
    x = to_float(train)
    assert measure(train, x, x.roll(1, 0))["same_basin"] == 0.0
    swapped = x.clone()
    swapped[:4] = x[:4].roll(1, 0)
    assert measure(train, swapped, x)["same_basin"] == 0.6
