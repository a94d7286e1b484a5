"""C_T and Z_U, the train-preference rate and two-sample accuracy: known statistics, copies, splits and repeats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from cdmem.errors import InputError
from cdmem.metrics.memorization.data_copying import (
    Cells,
    CopyTest,
    TrainPreference,
    TwoSampleAccuracy,
    train_preference,
    two_sample_accuracy,
    z_u,
)
from cdmem.metrics.quality.feature_space import nearest
from support.samples import images, measure, normal, training_set


def c_t(train, held_out, generated, **options):
    return Cells(train, **options).score(held_out, generated)


@pytest.mark.parametrize("levels", [5, 40, 10**9])
def test_z_u_is_mann_whitney(levels):
    draw = torch.Generator().manual_seed(levels)
    q, p = torch.randint(0, levels, (70,), generator=draw), torch.randint(0, levels, (45,), generator=draw)
    test = stats.mannwhitneyu(q, p, alternative="less", method="asymptotic", use_continuity=False)
    assert stats.norm.cdf(z_u(q, p)) == pytest.approx(test.pvalue, rel=1e-9)
    assert z_u(q, p) == pytest.approx(-z_u(p, q))


def test_z_u_by_hand():
    assert z_u(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])) == pytest.approx(-2 / math.sqrt(4 * 5 / 12))
    assert z_u(torch.zeros(4), torch.zeros(9)) == 0.0
    with pytest.raises(InputError):
        z_u(torch.zeros(0), torch.ones(3))


def test_c_t_of_copies_fresh_and_shifted_samples():
    train, held_out = normal(300, 10, 0), normal(400, 10, 1)
    copies = c_t(train, held_out, train + 0.01 * normal(300, 10, 2))
    fresh = c_t(train, held_out, normal(300, 10, 3))
    shifted = c_t(train, held_out, normal(300, 10, 4) * 1.5)
    assert copies.cells_used == fresh.cells_used == 3
    assert copies.c_t < -8 and abs(fresh.c_t) < 2.5 and shifted.c_t > 3


def test_c_t_is_the_average_by_held_out_mass():
    found = c_t(normal(200, 6, 5), normal(150, 6, 6), normal(130, 6, 7))
    mass = [cell.held_out for cell in found.cells]
    assert sum(mass) == 150 and sum(cell.generated for cell in found.cells) == 130
    assert found.c_t == pytest.approx(sum(cell.held_out * cell.z_u for cell in found.cells) / sum(mass))
    one = c_t(normal(200, 6, 5), normal(150, 6, 6), normal(130, 6, 7), cells=1)
    distances = [nearest(side, normal(200, 6, 5))[0] for side in (normal(130, 6, 7), normal(150, 6, 6))]
    assert one.c_t == pytest.approx(z_u(*distances))  # six components of six turn the space, nothing else


@pytest.mark.parametrize("copies", [0, 40])
def test_c_t_as_meehan_defines_it(copies):
    """The paper's formula, from scikit-learn and NumPy: every side's distances to the training images of its own cell,
    Z_U = (U - mu) / sigma of all pairs, averaged by the held-out mass of the cells with at least 20 samples."""
    train, held_out, samples = (normal(n, 12, k).numpy() for n, k in ((160, 30), (140, 31), (170, 32)))
    samples[:copies] = train[:copies] + 0.01 * samples[:copies]
    pca = PCA(4, random_state=3).fit(train)
    sides = [pca.transform(side) for side in (train, held_out, samples)]
    kmeans = KMeans(5, n_init=10, random_state=3).fit(sides[0])
    cells = [((side[:, None] - kmeans.cluster_centers_) ** 2).sum(2).argmin(1) for side in sides]
    scores, masses = [], []
    for cell in range(5):
        t, p, q = (side[of == cell] for side, of in zip(sides, cells))
        if len(q) < 20:
            continue
        l_p, l_q = (np.sqrt(((side[:, None] - t) ** 2).sum(2).min(1)) for side in (p, q))
        n, m = len(p), len(q)
        u = (l_q[:, None] > l_p).sum() + 0.5 * (l_q[:, None] == l_p).sum()
        scores.append((u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12))
        masses.append(n / len(held_out))
    found = Cells(torch.from_numpy(train), cells=5, components=4, seed=3)
    score = found.score(torch.from_numpy(held_out), torch.from_numpy(samples))
    assert 2 <= len(scores) == score.cells_used and score.c_t == pytest.approx(np.dot(scores, masses) / sum(masses))


def test_the_nearest_image_of_another_cell_does_not_count():
    """Two cells around 0 and 10; the samples at 4 have their nearest image, at 6, beyond the border."""
    train = torch.tensor([0.0, 0.1, 0.2, 6.0, 12.0, 12.1])[:, None]
    cells = Cells(train, cells=2, components=1)
    score = cells.score(torch.full((20, 1), 1.0), torch.full((20, 1), 4.0))
    assert score.cells_used == 1 and score.c_t > 5  # 3.8 from its cell, held-out images 0.8
    assert z_u(*(nearest(torch.full((20, 1), x), train)[0] for x in (4.0, 1.0))) > 5
    near = cells.score(torch.full((20, 1), 2.5), torch.full((20, 1), 4.5))
    assert near.c_t > 5  # over all of T the samples would be nearer: 1.5 against 2.3
    assert z_u(*(nearest(torch.full((20, 1), x), train)[0] for x in (4.5, 2.5))) < -5


def test_cells_need_twenty_samples_and_a_held_out_image():
    train = torch.cat([normal(30, 2, 8), normal(30, 2, 9) + 50])
    near, far = normal(20, 2, 10), normal(19, 2, 11) + 50
    found = c_t(train, torch.cat([near, far]), torch.cat([near, far]), cells=2)
    assert found.cells_used == 1 and found.c_t == next(c.z_u for c in found.cells if c.generated == 20)
    assert c_t(train, far, near, cells=2).c_t is None
    assert c_t(train, far[:0], near, cells=2).c_t is None
    assert c_t(train, far, near[:0], cells=2).c_t is None


def test_c_t_of_tiny_sets():
    assert len(c_t(normal(2, 5, 0), normal(30, 5, 1), normal(60, 5, 2)).cells) == 2
    with pytest.raises(InputError):
        c_t(normal(1, 5, 0).repeat(4, 1), normal(30, 5, 1), normal(60, 5, 2))


@pytest.mark.parametrize("copies", [2, 6, 60])
def test_repeated_training_rows_change_nothing(copies):
    train, held_out, samples = normal(40, 7, 12), normal(45, 7, 13), normal(60, 7, 14)
    samples[:20] = train[:20]
    many = train.repeat_interleave(copies, 0)
    assert c_t(many, held_out, samples) == c_t(train, held_out, samples)
    assert torch.equal(nearest(samples, many)[0], nearest(samples, train)[0])
    assert train_preference(samples, many, held_out) == train_preference(samples, train, held_out)
    assert two_sample_accuracy(many, samples) == two_sample_accuracy(train, samples)


def test_train_preference_of_copies_and_of_the_other_set():
    train, held_out = normal(100, 10, 15), normal(100, 10, 16)
    found = train_preference(train + 0.01 * normal(100, 10, 17), train, held_out)
    assert found.rate == 1.0 and found.p == 1 / 201 and found.size == 100
    assert train_preference(held_out, train, held_out).rate == 0.0
    assert train_preference(held_out[:70], train, train).rate == 0.5  # equal distances
    assert 0.4 < train_preference(normal(300, 10, 18), train, held_out[:60]).rate < 0.6


def test_train_preference_under_the_null():
    rates, sds, ps = [], [], []
    for k in range(300):
        points, samples = normal(120, 8, 2 * k), normal(200, 8, 2 * k + 1)
        found = train_preference(samples, points[:60], points[60:], repetitions=99)
        rates.append(found.rate)
        sds.append(found.sd)
        ps.append(found.p)
    rates, ps = torch.tensor(rates), torch.tensor(ps)
    mean_sd = float(torch.tensor(sds).square().mean().sqrt())
    assert float(rates.mean()) == pytest.approx(0.5, abs=4 * mean_sd / math.sqrt(300))
    assert float(rates.std()) == pytest.approx(mean_sd, rel=0.15)
    assert mean_sd > 1.2 * 0.5 / math.sqrt(200)  # wider than binomial
    assert float((ps <= 0.1).double().mean()) == pytest.approx(0.1, abs=0.06)


def test_train_preference_sd_is_that_of_all_splits():
    points, samples = normal(6, 2, 19), normal(9, 2, 20)
    rates = []
    for half in torch.combinations(torch.arange(6), 3):
        rest = torch.tensor([k for k in range(6) if k not in half])
        rates.append(train_preference(samples, points[half], points[rest]).rate)
    found = train_preference(samples, points[:3], points[3:])
    assert found.sd == pytest.approx(float(torch.tensor(rates, dtype=torch.float64).std(correction=0)))


def test_train_preference_needs_both_sides():
    for samples, train, held_out in ((0, 5, 5), (5, 0, 5), (5, 5, 0)):
        with pytest.raises(InputError):
            train_preference(normal(samples, 3, 0), normal(train, 3, 1), normal(held_out, 3, 2))


def test_two_sample_of_copies_same_and_different():
    real = normal(200, 5, 21)
    copies = two_sample_accuracy(real, real + 1e-6 * normal(200, 5, 22))
    assert copies.accuracy == 0.0
    assert two_sample_accuracy(real, real).accuracy == 0.0
    different = two_sample_accuracy(real, normal(200, 5, 23) + 20)
    assert (different.accuracy, different.real, different.fake) == (1.0, 1.0, 1.0)
    same = [two_sample_accuracy(normal(200, 5, k), normal(200, 5, k + 100)).accuracy for k in range(30)]
    assert sum(same) / len(same) == pytest.approx(0.5, abs=0.02)


def test_a_sample_generated_twice_is_still_a_copy():
    real = torch.tensor([[0.0], [1.0], [5.0]])
    assert two_sample_accuracy(real, torch.tensor([[1.0], [1.0], [1.0]])).fake == 0.0
    assert two_sample_accuracy(real, torch.tensor([[1.2], [1.2], [1.2]])).fake == 1.0


def test_two_sample_by_hand_and_sizes():
    found = two_sample_accuracy(torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[2.5], [9.4], [30.0]]))
    assert (found.accuracy, found.real, found.fake, found.size) == (1 / 3, 2 / 3, 0, 3)
    many = two_sample_accuracy(normal(90, 3, 24), normal(40, 3, 25))
    assert many.size == 40
    assert two_sample_accuracy(normal(90, 3, 24), normal(40, 3, 25), size=25).size == 25
    with pytest.raises(InputError):
        two_sample_accuracy(normal(1, 3, 0).repeat(9, 1), normal(40, 3, 1))


METRICS = (CopyTest, TrainPreference, TwoSampleAccuracy)


def test_metrics_with_controls():
    train, held_out = images(40, 0), images(100, 1)
    bound = training_set(train, held_out, copies=3)
    noise = torch.randint(0, 2, (40, 3, 4, 4), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    copies = train // 2 * 2 + noise
    metrics = (CopyTest(cells=1), TrainPreference(), TwoSampleAccuracy())
    found = {name: value for metric in metrics for name, value in measure(metric.prepare(bound), copies).items()}
    assert found["c_t"] < -4 and found["z_u"] < -7 and abs(found["z_u_heldout"]) < 3 and found["cells_used"] == 1
    assert found["train_preference"] == 1.0 and found["train_preference_p"] < 0.01
    assert found["train_preference_size"] == 40 and found["train_preference_heldout_size"] == 40
    assert abs(found["train_preference_heldout"] - 0.5) < 4 * found["train_preference_heldout_sd"]
    assert found["two_sample"] == 0.0 and abs(found["two_sample_heldout"] - 0.5) < 0.2
    assert found["two_sample_size"] == 40


@pytest.mark.parametrize("kind", [CopyTest, TrainPreference])
def test_metrics_need_two_held_out_images(kind):
    assert measure(kind().prepare(training_set(images(20, 0), images(2, 1))), images(20, 2))
    with pytest.raises(InputError) as caught:
        measure(kind().prepare(training_set(images(20, 0), images(0, 1))), images(20, 2))
    assert caught.value.key == "data.held_out"


def test_two_sample_without_held_out_images():
    found = measure(TwoSampleAccuracy().prepare(training_set(images(20, 0), images(0, 1))), images(30, 2))
    assert set(found) == {"two_sample", "two_sample_real", "two_sample_fake", "two_sample_size"}
    pair = measure(TwoSampleAccuracy().prepare(training_set(images(20, 0), images(2, 1))), images(30, 2))
    assert pair["two_sample_size"] == 2 and "two_sample_heldout" in pair
    with pytest.raises(InputError):
        measure(TwoSampleAccuracy().prepare(training_set(images(20, 0), images(0, 1))), images(1, 2))


def test_mirrored_copies_count_with_flips():
    train, held_out = images(40, 3), images(60, 4)
    bound = training_set(train, held_out, flip=True)
    found = {name: value for kind in METRICS for name, value in measure(kind().prepare(bound), train.flip(-1)).items()}
    assert found["train_preference"] == 1.0 and found["two_sample"] == 0.0 and found["z_u"] < -7
    plain = training_set(train, held_out)
    assert measure(TwoSampleAccuracy().prepare(plain), train.flip(-1))["two_sample"] > 0.2
