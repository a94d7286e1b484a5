"""At equal nearest-image noise a blurrier student has lost nothing, and one whose seeds left the copies has."""

from __future__ import annotations

import math

import pytest
import torch

from cdmem.metrics.comparison.equal_noise import add_noise, copy_noise, fidelity_matched, recognition_threshold
from cdmem.metrics.comparison.paired import compare
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


def copies_of(train):
    """The teacher: every seed a copy, with the little noise of a good model."""
    return add_noise(train[torch.arange(SEEDS) % len(train)], normal(SEEDS, 1), 2.0)


def matched(train, teacher, student, *, flip=False, control=None):
    search = group_index(make_training_set(train, flip=flip))
    t, s = rows_of(search, teacher), rows_of(search, student)
    plain = compare(t, s, 1 / 3)["difference"]
    return plain, fidelity_matched(teacher, t, s, search, 1 / 3, control)


def missing_noise(train, ratio):
    """Grey levels at which copies sit at d1 / d2 = ratio: D s^2 = r^2 (sep^2 + D s^2)."""
    points = train.flatten(1).double()
    separation = float(torch.cdist(points, points).fill_diagonal_(math.inf).amin(1).mean())
    return separation * ratio / math.sqrt(points.shape[1] * (1 - ratio**2))


def test_a_blurrier_student_has_lost_nothing(train):
    """Noise of its own puts the student's copies at d1 / d2 = 0.42: no longer below 1/3, but below 1/2."""
    teacher = copies_of(train)
    student = add_noise(teacher, normal(SEEDS, 2), missing_noise(train, 0.42))
    plain, found = matched(train, teacher, student)
    assert plain["value"] < -0.3 and plain["ci95"][1] < 0
    assert found["recognised"]["ci95"][1] >= 0 and found["common"] > 0.9 * SEEDS
    assert found["difference"]["ci95"][1] >= 0 and abs(found["difference"]["value"]) < 0.15
    assert 0 < found["noise"] < 128


def test_a_student_that_left_the_copies_has_lost(train):
    """Half of the seeds show other images, the rest the teacher's: no noise is due and the loss stays."""
    teacher = copies_of(train)
    student = torch.where((torch.arange(SEEDS) % 2 == 0)[:, None, None, None], random_images(SEEDS, SHAPE, 3), teacher)
    plain, found = matched(train, teacher, student)
    assert plain["value"] == -0.5
    assert found["noise"] == 0.0 and found["common"] == SEEDS / 2
    assert found["difference"] == plain and found["recognised"] == plain and found["teacher_f_mem"] == 1.0


def test_both_at_once_are_told_apart(train):
    """Half of the seeds left, the rest are blurrier: of the plain difference the blur's share goes, the other stays."""
    teacher = copies_of(train)
    blurred = add_noise(teacher, normal(SEEDS, 2), missing_noise(train, 0.33))
    student = torch.where((torch.arange(SEEDS) % 2 == 0)[:, None, None, None], random_images(SEEDS, SHAPE, 3), blurred)
    plain, found = matched(train, teacher, student)
    assert found["noise"] > 0 and found["difference"]["ci95"][1] < 0
    assert plain["value"] - 0.01 <= found["difference"]["value"]
    want = float(found["teacher_f_mem"]) / 2
    assert -found["difference"]["value"] == pytest.approx(want, abs=0.1)


@pytest.mark.parametrize("flip", [False, True])
def test_mirrored_copies_are_copies_where_training_flips(train, flip):
    teacher = copies_of(train)
    mirrored = torch.arange(SEEDS) % 2 >= int(not flip)  # all where they count, half of them where they do not
    teacher[mirrored] = teacher[mirrored].flip(-1)
    student = add_noise(teacher, normal(SEEDS, 2), 8.0)
    _, found = matched(train, teacher, student, flip=flip)
    assert found["common"] == (SEEDS if flip else int((~mirrored).sum()))
    # The teacher's 2 levels and the student's sqrt(2^2 + 8^2): 8 are due, for mirrored copies as for the others.
    assert found["noise"] == pytest.approx(8.0, rel=0.02)


def test_without_common_copies_nothing_is_matched(train):
    teacher, other = copies_of(train), random_images(SEEDS, SHAPE, 3)
    for student in (other, teacher.roll(1, 0), torch.cat([teacher[:19], other[19:]])):
        _, found = matched(train, teacher, student)
        assert found["common"] < 20 and found["noise"] is found["difference"] is found["teacher_f_mem"] is None
        assert found["recognised"] is not None
    _, found = matched(train, teacher, torch.cat([teacher[:20], other[20:]]))
    assert found["common"] == 20 and found["noise"] == 0.0


@pytest.mark.parametrize("level", [0.7, 3.0, 12.0, 40.0])
def test_bisection_reproduces_the_median_distance(train, level):
    """Also where noise is swallowed at black and white, which a formula would have to know."""
    chosen = torch.arange(SEEDS) % len(train)
    targets, noise = train[chosen], normal(SEEDS, 4)
    wanted = (add_noise(targets, normal(SEEDS, 5), level).double() - targets.double()).square().flatten(1).sum(1)
    found = copy_noise(targets, noise, targets, wanted)
    got = (add_noise(targets, noise, found).double() - targets.double()).square().flatten(1).sum(1)
    assert float(got.median()) == pytest.approx(float(wanted.median()), rel=0.02)
    assert found == pytest.approx(level, rel=0.1)


def test_a_closer_student_needs_no_noise(train):
    targets = train[torch.arange(SEEDS) % len(train)]
    assert copy_noise(copies_of(train), normal(SEEDS, 4), targets, torch.ones(SEEDS)) == 0.0


def test_no_noise_changes_no_image():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(add_noise(images, torch.randn(1, 1, 16, 16), 0.0), images)
    half = add_noise(torch.full((1, 1, 1, 3), 100, dtype=torch.uint8), torch.tensor([[[[1.0, -2.0, 100.0]]]]), 3.0)
    assert half.flatten().tolist() == [103, 94, 255]


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
