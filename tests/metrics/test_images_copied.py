"""Numbers of different images at equal numbers of copies: against scipy's hypergeometric law and simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from cdmem.metrics.comparison.images_copied import FEWER, expected_distinct, images_copied

HITS = {
    "even": [4] * 12,
    "skewed": [60, 20, 9, 4, 2, 2, 1, 1, 1],
    "one image": [7],
    "once each": [1] * 30,
    "with images never hit": [0, 3, 0, 5, 1],
}


@pytest.mark.parametrize("name", HITS)
def test_every_image_is_missed_with_a_hypergeometric_probability(name):
    hits = np.array(HITS[name])
    total = hits.sum()
    for copies in {1, 2, total // 2, total - 1, total} - {0}:
        seen = sum(1 - stats.hypergeom.pmf(0, total, h, copies) for h in hits)
        assert expected_distinct(hits, int(copies)) == pytest.approx(seen, rel=1e-9)


def test_it_is_the_mean_of_random_choices():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(9), HITS["skewed"])
    found = [len(np.unique(rng.choice(groups, 25, replace=False))) for _ in range(4000)]
    error = np.std(found) / len(found) ** 0.5
    assert expected_distinct(np.array(HITS["skewed"]), 25) == pytest.approx(np.mean(found), abs=4 * error)


@pytest.mark.parametrize("copies", [20, 200, 2000])
def test_a_thinned_sample_copies_no_fewer_images(copies):
    """The same preferences, sampled less often: fewer images in plain numbers, as many at equal numbers of copies."""
    rng, p = np.random.default_rng(copies), np.arange(1, 61) / np.arange(1, 61).sum()
    ratios = []
    for _ in range(20):
        teacher, student = rng.choice(60, 2000, p=p), rng.choice(60, copies, p=p)
        record = images_copied(teacher, student)
        assert not record["fewer"]
        ratios.append(record["ratio"])
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)


def test_both_sides_of_fewer():
    """Without repetitions every copy is another image, so the ratio is that of the images."""
    teacher = np.arange(100)
    for images, fewer in ((79, True), (80, False), (81, False)):
        student = np.concatenate([np.arange(images), np.zeros(100 - images, dtype=np.int64)])
        found = images_copied(teacher, student)
        assert (found["teacher"], found["student"]) == (100, images)
        assert found["ratio"] == pytest.approx(images / 100) and found["fewer"] is fewer
    assert FEWER == 0.8


def test_collapse_is_fewer_whichever_side_copies_more():
    rng = np.random.default_rng(0)
    many, few = rng.integers(0, 100, 500), rng.integers(0, 20, 900)
    found = images_copied(many, few)
    assert found["fewer"] is True and found["ratio"] == pytest.approx(20 / 99, rel=0.03)
    back = images_copied(few, many)
    assert back["fewer"] is False and back["ratio"] > 3
    assert images_copied(many, few[:200])["fewer"] is True


def test_labels_do_not_matter_and_the_record_is_plain():
    rng = np.random.default_rng(0)
    teacher, student = rng.integers(0, 30, 200), rng.integers(0, 12, 150)
    renamed = rng.permutation(1000)
    assert images_copied(teacher, student) == images_copied(renamed[teacher][::-1], renamed[student + 40][::-1])
    record = images_copied(teacher, student)
    assert json.loads(json.dumps(record)) == record


def test_without_copies_there_is_nothing_to_compare():
    none, some = np.zeros(0, dtype=np.int64), np.arange(5)
    for pair, counts in (((none, some), (0, 5)), ((some, none), (5, 0)), ((none, none), (0, 0))):
        assert images_copied(*pair) == dict(zip(("teacher", "student"), counts)) | {"ratio": None, "fewer": None}
