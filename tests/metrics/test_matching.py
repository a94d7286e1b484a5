"""At equal noise a blurrier or sharper student has neither lost nor gained, and one whose seeds left the copies has."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from cdmem.metrics.comparison.equal_noise import add_noise, equal_noise, matching_levels, recognition_threshold
from cdmem.metrics.comparison.paired import compare
from cdmem.metrics.memorization.ratio import memorized
from cdmem.metrics.neighbors.index import group_index
from support import make_training_set, random_images

SHAPE, SEEDS = (3, 16, 16), 200


def normal(n, seed):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def train():
    return random_images(12, SHAPE, 0)


def rows_of(search, images):
    found = search.query(images, 2)
    return {"seeds": torch.arange(len(images)), "squared": found.squared, "groups": found.groups}


def copies_of(train, seeds=SEEDS):
    """The teacher: every seed a copy, with the little noise of a good model."""
    return add_noise(train[torch.arange(seeds) % len(train)], normal(seeds, 1), 2.0)


def matched(train, teacher, student, *, flip=False, control=None, paired=True):
    search = group_index(make_training_set(train, flip=flip))
    t, s = rows_of(search, teacher), rows_of(search, student)
    plain = compare(t, s, 1 / 3, paired)["difference"]
    return plain, equal_noise(teacher, student, t, s, search, 1 / 3, control, paired)


def missing_noise(train, ratio):
    """Grey levels at which copies sit at d1 / d2 = ratio: D s^2 = r^2 (sep^2 + D s^2)."""
    points = train.flatten(1).double()
    separation = float(torch.cdist(points, points).fill_diagonal_(math.inf).amin(1).mean())
    return separation * ratio / math.sqrt(points.shape[1] * (1 - ratio**2))


def covers_zero(difference):
    return difference["ci95"][0] <= 0 <= difference["ci95"][1]


# ---- only blurrier, only sharper ------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("noised", ["teacher", "student"])
def test_only_blurrier_and_only_sharper_are_no_difference(train, noised, paired):
    """Noise puts one side's copies at d1 / d2 = 0.42: no longer below 1/3, but below 1/2. The other side gets it."""
    sharp = copies_of(train)
    rough = add_noise(sharp, normal(SEEDS, 2), missing_noise(train, 0.42))
    pair = (sharp, rough) if noised == "teacher" else (rough, sharp)
    plain, found = matched(train, *pair, paired=paired)
    assert abs(plain["value"]) > 0.3 and not covers_zero(plain)
    assert covers_zero(found["recognised"]) and found["common"] > 0.9 * SEEDS
    assert found["noised"] == noised and covers_zero(found["difference"])
    assert abs(found["difference"]["value"]) < 0.1
    assert found["noise"] == pytest.approx(missing_noise(train, 0.42), rel=0.05)


OPEN = torch.linspace(0.8, 1, 199)  # held-out images that come near no training image: copies below 0.8 are seen


def uneven(sharp, kind, seed):
    """Noise of a strength that differs from seed to seed; 40 grey levels put a copy at d1/d2 = 1/3, 130 at 3/4."""
    r = np.random.default_rng(seed)
    spread = {
        "half clean": np.where(np.arange(len(sharp)) // 12 % 2, 75.0, 4.0),  # of each training image
        "gamma": r.gamma(3.0, 16.0, len(sharp)),
        "exponential": r.exponential(40.0, len(sharp)),
        "uniform": r.uniform(0, 90, len(sharp)),
    }[kind]
    return add_noise(sharp, normal(len(sharp), seed), torch.from_numpy(spread))


@pytest.mark.parametrize("noised", ["teacher", "student"])
@pytest.mark.parametrize("kind", ["half clean", "gamma", "exponential", "uniform"])
def test_noise_of_any_distribution_is_matched(train, kind, noised):
    """The truth is no difference, whatever the distribution of the noise over seeds, in either direction."""
    sharp, found = copies_of(train, 300), []
    for seed in (10, 11, 12):
        rough = uneven(sharp, kind, seed)
        plain, record = matched(train, *((sharp, rough) if noised == "teacher" else (rough, sharp)), control=OPEN)
        assert abs(plain["value"]) > 0.3 and record["noised"] == noised
        found.append(record["difference"])
    assert all(map(covers_zero, found))
    assert abs(np.mean([f["value"] for f in found])) < 0.03


def test_one_level_for_all_copies_would_not_do(train):
    """Half clean and half noisy: at the median distance, nearly all copies of the teacher stay, or are lost."""
    sharp = copies_of(train, 240)
    rough = uneven(sharp, "half clean", 10)
    search = group_index(make_training_set(train))
    student = rows_of(search, rough)["squared"]
    f_mem = float(memorized(*student.T, 1 / 3).double().mean())
    assert f_mem == 0.5
    one = [rows_of(search, add_noise(sharp, normal(240, 3), level))["squared"] for level in np.linspace(4, 75, 15)]
    by_level = np.array([float(memorized(*s.T, 1 / 3).double().mean()) for s in one])
    assert ((by_level > 0.8) | (by_level < 0.2)).sum() >= 14
    found = matched(train, sharp, rough, control=OPEN)[1]
    assert found["f_mem"] == pytest.approx(0.5, abs=0.02) and covers_zero(found["difference"])


# ---- copies that are lost or gained ---------------------------------------------------------------------------------


def left(images, seed=3):
    """Every second seed shows another image."""
    even = (torch.arange(len(images)) % 2 == 0)[:, None, None, None]
    return torch.where(even, random_images(len(images), SHAPE, seed), images)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("side", [-1, 1])
def test_copies_that_were_lost_or_gained_stay_so(train, side, paired):
    """Half of the seeds show other images, the rest the same ones: no noise to speak of is due, and the half stays."""
    pair = (copies_of(train), left(copies_of(train)))
    plain, found = matched(train, *pair[::-side], paired=paired)
    assert plain["value"] == side / 2
    assert found["noise"] < 1 and found["common"] == SEEDS / 2
    assert found["difference"] == plain and found["recognised"] == plain and found["f_mem"] == 1.0
    assert found["noised"] == ("teacher" if side < 0 else "student")


@pytest.mark.parametrize("ratio", [0.2, 0.3])
def test_both_at_once_are_told_apart(train, ratio):
    """Half of the seeds left, the rest are blurrier: of the plain difference the blur's share goes, the other stays."""
    teacher = copies_of(train, 400)
    blurred = add_noise(teacher, normal(400, 2), missing_noise(train, ratio))
    plain, found = matched(train, teacher, left(blurred))
    assert found["noise"] == pytest.approx(missing_noise(train, ratio), rel=0.1)
    assert plain["value"] - 0.01 <= found["difference"]["value"] and found["difference"]["ci95"][1] < 0
    assert -found["difference"]["value"] == pytest.approx(found["f_mem"] / 2, abs=0.06)


def test_the_sharper_side_is_the_one_that_copies_more(train):
    """A student that is sharper but lost half of its seeds has the lower f_mem: the teacher gets the noise, none."""
    clean = train[torch.arange(SEEDS) % len(train)]
    plain, found = matched(train, add_noise(clean, normal(SEEDS, 1), 15.0), left(clean))
    assert found["noised"] == "teacher" and found["noise"] == 0.0
    assert found["difference"] == plain and plain["value"] == -0.5
    _, even = matched(train, copies_of(train), copies_of(train))
    assert even["noised"] == "teacher" and even["difference"]["value"] == 0


def test_a_seed_that_one_side_alone_copies_is_noised_like_the_others(train):
    """The student copies twice the seeds, under less noise: those gained lose as many copies as those in common."""
    clean = train[torch.arange(400) % len(train)]
    teacher = left(add_noise(clean, normal(400, 1), 37.5))
    _, found = matched(train, teacher, add_noise(clean, normal(400, 2), 3.0))
    hits = rows_of(group_index(make_training_set(train)), teacher)["squared"]
    share = float(memorized(*hits.T, 1 / 3).double().mean())
    assert found["noised"] == "student" and 0.1 < share < 0.4  # of the half that copies
    assert found["f_mem"] == pytest.approx(2 * share, abs=0.08)
    assert found["difference"]["value"] == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize("flip", [False, True])
def test_mirrored_copies_are_copies_where_training_flips(train, flip):
    teacher = copies_of(train)
    mirrored = torch.arange(SEEDS) % 2 >= int(not flip)  # all where they count, half of them where they do not
    teacher[mirrored] = teacher[mirrored].flip(-1)
    student = add_noise(teacher, normal(SEEDS, 2), 8.0)
    _, found = matched(train, teacher, student, flip=flip)
    assert found["common"] == (SEEDS if flip else int((~mirrored).sum()))
    # The teacher's 2 levels and the student's sqrt(2^2 + 8^2): 8 are due, for mirrored copies as for the others.
    assert found["noise"] == pytest.approx(8.0, rel=0.03)


def test_without_common_copies_nothing_is_matched(train):
    teacher, other = copies_of(train), random_images(SEEDS, SHAPE, 3)
    for student in (other, teacher.roll(1, 0), torch.cat([teacher[:19], other[19:]])):
        _, found = matched(train, teacher, student)
        assert found["common"] < 20
        assert found["noised"] is found["noise"] is found["difference"] is found["f_mem"] is None
        assert found["recognised"] is not None
    _, found = matched(train, teacher, torch.cat([teacher[:20], other[20:]]))
    assert found["common"] == 20 and found["noise"] < 1


def test_without_common_seeds_all_copies_are_matched(train):
    """The same images for other seeds: no pair has an image in common, and yet nothing differs."""
    teacher = copies_of(train)
    student = add_noise(teacher.roll(1, 0), normal(SEEDS, 2), missing_noise(train, 0.36))
    assert matched(train, teacher, student)[1]["common"] == 0
    plain, found = matched(train, teacher, student, paired=False)
    assert plain["ci95"][1] < 0 and found["common"] > 0.9 * SEEDS
    assert covers_zero(found["difference"]) and found["noise"] > 0


# ---- the levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [3.0, 12.0, 40.0])
def test_levels_reproduce_the_distribution_of_distances(train, level):
    """Also where noise is swallowed at black and white, which a formula would have to know."""
    chosen = torch.arange(SEEDS) % len(train)
    search, noise = group_index(make_training_set(train)), normal(SEEDS, 4)
    wanted = rows_of(search, add_noise(train[chosen], normal(SEEDS, 5), level))["squared"][:, 0]
    levels = matching_levels(train[chosen], noise, chosen, search, 0.9, wanted)
    got = rows_of(search, add_noise(train[chosen], noise, levels))["squared"][:, 0]
    assert levels.dtype == torch.float64 and float(levels.mean()) == pytest.approx(level, rel=0.05)
    assert float(got.double().mean()) == pytest.approx(float(wanted.double().mean()), rel=0.03)


def test_levels_make_up_for_copies_that_are_past_recognition(train):
    """Only the better half of the other side's copies was recognised; the noise is that of all of them."""
    seeds = 600
    chosen = torch.arange(seeds) % len(train)
    search, level = group_index(make_training_set(train)), 61.5  # of which half lies past d1/d2 = 1/2
    other = rows_of(search, add_noise(train[chosen], normal(seeds, 5), level))["squared"]
    seen = memorized(*other.T, 0.5)
    assert 0.3 < float(seen.double().mean()) < 0.7
    levels = matching_levels(train[chosen], normal(seeds, 4), chosen, search, 0.5, other[seen, 0])
    found = rows_of(search, add_noise(train[chosen], normal(seeds, 4), levels))["squared"]
    kept = memorized(*found.T, 0.5)
    assert stats.ks_2samp(found[kept, 0].numpy(), other[seen, 0].numpy()).statistic < 0.15
    assert float(levels.mean()) == pytest.approx(level, rel=0.03)


def test_a_closer_side_needs_no_noise(train):
    teacher, search = copies_of(train), group_index(make_training_set(train))
    groups = torch.arange(SEEDS) % len(train)
    assert matching_levels(teacher, normal(SEEDS, 4), groups, search, 0.5, torch.ones(9)).tolist() == [0.0] * SEEDS


def test_no_noise_changes_no_image():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(add_noise(images, torch.randn(1, 1, 16, 16), 0.0), images)
    pair = torch.full((2, 1, 1, 3), 100, dtype=torch.uint8)
    noise = torch.tensor([[[[1.0, -2.0, 100.0]]]]).expand(2, 1, 1, 3)
    found = add_noise(pair, noise, torch.tensor([3.0, 0.0], dtype=torch.float64))
    assert found.flatten(1).tolist() == [[103, 94, 255], [100, 100, 100]]


# ---- recognition ----------------------------------------------------------------------------------------------------


def test_recognition_is_calibrated_on_held_out_images():
    control = torch.linspace(0.6, 1.0, 199)
    # 1 % of 200 is the second smallest.
    assert recognition_threshold(control, 1 / 3) == pytest.approx(float(control[1]))
    assert recognition_threshold(control[:98], 1 / 3) == recognition_threshold(None, 1 / 3) == 0.5
    assert recognition_threshold(control * 0.1, 1 / 3) == 1 / 3 and recognition_threshold(None, 0.7) == 0.7


def test_the_control_opens_the_threshold(train):
    """Copies at d1 / d2 = 0.58 are recognised where held-out images never come near it."""
    teacher = copies_of(train)
    student = add_noise(teacher, normal(SEEDS, 2), missing_noise(train, 0.58))
    strict, loose = (matched(train, teacher, student, control=c)[1] for c in (None, torch.linspace(0.8, 1, 199)))
    assert strict["recognised_at"] == 0.5 and loose["recognised_at"] > 0.8
    assert strict["recognised"]["ci95"][1] < 0 and loose["recognised"]["ci95"][1] >= 0
    assert loose["difference"]["ci95"][1] >= 0


def test_the_answer_is_a_function_of_the_seeds(train):
    teacher = copies_of(train)
    student = add_noise(teacher, normal(SEEDS, 2), 10.0)
    torch.manual_seed(1)
    first = matched(train, teacher, student)
    torch.manual_seed(2)
    assert matched(train, teacher, student) == first
