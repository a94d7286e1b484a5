"""What became of lost seeds: tables by hand, chance by brute force, and images whose fate is known."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from cdmem.images import to_float, to_uint8
from cdmem.metrics.comparison.lost_seeds import (
    LEAST_LOST,
    MOST_DAMAGED,
    damaged_share,
    damaged_share_unpaired,
    lost_seeds,
)
from cdmem.metrics.neighbors.index import group_index
from support import make_training_set, random_images


def rows(*fates):
    """Rows of (d1, nearest group), with d2 = 10."""
    d1, groups = zip(*fates)
    squared = torch.tensor([[d * d, 100] for d in d1])
    return {"seeds": torch.arange(len(fates)), "squared": squared, "groups": torch.tensor(groups)[:, None]}


COPY, SEEN, NEITHER = 1, 5, 9  # d1 / d2 below 1/3, below 0.6, above
TEACHER = rows((COPY, 0), (COPY, 0), (COPY, 0), (COPY, 1), (COPY, 1), (COPY, 2), (SEEN, 3), (NEITHER, 3))


def test_by_hand():
    """Lost: seeds 1 to 4. Nearest to the same image: 1 and 3, of which 3 is seen; 2 is seen beside another image."""
    student = rows((COPY, 5), (NEITHER, 0), (SEEN, 4), (SEEN, 1), (NEITHER, 2), (COPY, 2), (COPY, 3), (SEEN, 3))
    found = lost_seeds(TEACHER, student, 1 / 3, 0.6)
    assert found["count"] == 4
    for key, count in {"nearest_to_same": 2, "damaged": 1, "like_another": 1}.items():
        low, high = stats.binomtest(count, 4).proportion_ci(method="wilson")
        assert found[key]["value"] == count / 4 and found[key]["ci95"] == pytest.approx([low, high])
    # Among all pairs of lost seeds: teacher's images 0, 0, 1, 1 and the student's 0, 4, 1, 2.
    assert found["chance"] == pytest.approx((2 * 1 + 2 * 1) / 16)
    assert lost_seeds(TEACHER, student, 1 / 3, 0.4)["damaged"]["value"] == 0
    assert lost_seeds(TEACHER, student, 1 / 3, 0.95)["damaged"]["value"] == 2 / 4


def test_what_the_student_copies_is_not_lost():
    """Another image, or a copy where the teacher had none, is no loss."""
    assert lost_seeds(TEACHER, TEACHER, 1 / 3, 0.6) == {
        "count": 0,
        "nearest_to_same": None,
        "chance": None,
        "damaged": None,
        "like_another": None,
    }
    elsewhere = TEACHER | {"groups": TEACHER["groups"] + 1}
    assert lost_seeds(TEACHER, elsewhere, 1 / 3, 0.6)["count"] == 0
    less = rows(*[(NEITHER, 8)] * 8)
    assert lost_seeds(TEACHER, less, 1 / 3, 0.6)["count"] == 6 and lost_seeds(less, TEACHER, 1 / 3, 0.6)["count"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_chance_is_the_share_among_all_pairs(seed):
    """Brute force; an image that is copied often is often the nearest, so that 1 / n would be too small."""
    draw = torch.Generator().manual_seed(seed)
    wanted, nearest = (torch.randint(0, high, (60,), generator=draw) ** 2 // 12 for high in (12, 10))
    teacher = rows(*[(COPY, int(g)) for g in wanted])
    student = rows(*[(NEITHER, int(g)) for g in nearest])
    found = lost_seeds(teacher, student, 1 / 3, 0.6)
    assert found["count"] == 60
    assert found["chance"] == pytest.approx(float((wanted[:, None] == nearest).double().mean()), abs=1e-15)
    assert found["nearest_to_same"]["value"] == float((wanted == nearest).double().mean())


def test_the_share_of_damage():
    """What stands out beside another image is taken off; fewer than twenty seeds say nothing."""
    record = {"count": LEAST_LOST, "damaged": {"value": 0.4}, "like_another": {"value": 0.15}}
    assert damaged_share(record) == pytest.approx(0.25)
    assert damaged_share(record | {"count": LEAST_LOST - 1}) is None
    assert (LEAST_LOST, MOST_DAMAGED) == (20, 0.1)


def difference(value, half=0.03):
    return {"value": value, "ci95": [value - half, value + half]}


@pytest.mark.parametrize(
    ("plain", "recognised", "share"),
    [(-0.4, -0.4, 0.0), (-0.4, 0.0, 1.0), (-0.4, -0.3, 0.25), (0.2, 0.05, 0.75), (0.03, 0.0, None), (0.0, 0.0, None)],
)
def test_the_share_of_damage_without_common_seeds(plain, recognised, share):
    found = damaged_share_unpaired(difference(plain), difference(recognised))
    assert found == (None if share is None else pytest.approx(share))


# ---- images whose fate is known -------------------------------------------------------------------------------------

SEEDS = 200


def fate(student_of):
    """The record of a student whose teacher copies 40 images, of contrasts from a quarter to one, exactly."""
    contrast = torch.linspace(0.25, 1, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    train = to_uint8(contrast[:, None, None, None] * to_float(random_images(40, (3, 8, 8))))
    search, groups = group_index(make_training_set(train)), torch.arange(SEEDS) % 40
    other = train[(groups + 1 + torch.arange(SEEDS) % 38) % 40]

    def rows_of(images):
        found = search.query(images, 2)
        return {"seeds": torch.arange(SEEDS), "squared": found.squared, "groups": found.groups}

    return lost_seeds(rows_of(train[groups]), rows_of(student_of(train[groups], other)), 1 / 3, 0.8)


def blend(x, y, share):
    """Of one variance again."""
    return to_uint8(((1 - share) * to_float(x) + share * to_float(y)) / ((1 - share) ** 2 + share**2) ** 0.5)


def test_forgotten_seeds_are_nearest_to_the_same_image_by_chance():
    found = fate(lambda x, y: random_images(SEEDS, (3, 8, 8), 5))
    low, high = found["nearest_to_same"]["ci95"]
    assert found["count"] == SEEDS and low <= found["chance"] <= high and damaged_share(found) == 0


def test_damaged_copies_are_found():
    """Brighter, dimmer and coarser copies: nearest to the same image, and beside no other."""
    for damage in (
        lambda x, y: to_uint8(to_float(x) + 0.45),
        lambda x, y: to_uint8(0.5 * to_float(x)),
        lambda x, y: x // 128 * 128 + 64,
    ):
        found = fate(damage)
        assert found["count"] > 100 and found["nearest_to_same"]["value"] > 0.9 and found["chance"] < 0.05
        assert damaged_share(found) > 2 * MOST_DAMAGED and found["like_another"]["value"] < 0.02


def test_mixtures_are_no_damage():
    """Half and half: seen beside either image, as often; at four parts to one it is a copy with something over it."""
    even = fate(lambda x, y: blend(x, y, 0.5))
    assert even["damaged"]["value"] + even["like_another"]["value"] > 0.1
    assert 0.3 < even["nearest_to_same"]["value"] < 0.7 and abs(damaged_share(even)) < MOST_DAMAGED
    assert damaged_share(fate(lambda x, y: blend(x, y, 0.3))) > 0.5
