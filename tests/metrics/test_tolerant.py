"""The tolerant search against loops over everything it minimises, and its ratio against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch.nn import functional as F

from cdmem.errors import InputError
from cdmem.metrics.neighbors import tolerant
from cdmem.metrics.neighbors.index import group_index
from cdmem.metrics.neighbors.shifts import exact_products
from cdmem.metrics.neighbors.tolerant import REST, SAME, TolerantIndex, tolerant_search, tolerant_threshold
from support import make_training_set, random_images, rng
from support.samples import photos

# ---- the oracle -----------------------------------------------------------------------------------------------------


def left(x, *regressors):
    """What regressors leave of x, summed over channels: gains of at least 0, one offset. float64 (C, P) each."""
    total = 0.0
    for c in range(len(x)):
        columns = np.stack([y[c] - y[c].mean() for y in regressors], 1)
        total += nnls(columns, x[c] - x[c].mean())[1] ** 2
    return total


def overlaps(x, y, most):
    """x moved onto y at every shift: the pixels that both have, float64 (C, P) each."""
    height, width = x.shape[1:]
    for a, b in itertools.product(range(-most, most + 1), repeat=2):
        rows, columns = range(max(0, a), height + min(0, a)), range(max(0, b), width + min(0, b))
        part = np.ix_(range(len(x)), rows, columns)
        moved = np.ix_(range(len(x)), [r - a for r in rows], [k - b for k in columns])
        yield x[moved].reshape(len(x), -1), part


def oracle(image, train, groups, most=2, flip=False):
    """Ratio, group and distance of one image, uint8 (C, H, W), by loops and SciPy's non-negative least squares."""
    x, train = image.numpy().astype(float), train.numpy().astype(float)
    best = (math.inf, None, None, None)
    for row, y in enumerate(train):
        for view in (x, x[..., ::-1]):
            for moved, part in overlaps(view, y, most):
                contrast = ((moved - moved.mean(1, keepdims=True)) ** 2).sum()
                share = left(moved, y[part].reshape(len(x), -1)) / contrast if contrast else 1.0
                if share < best[0] - 1e-12:
                    best = (share, row, moved, part)
    share, row, moved, part = best
    largest = 0.0
    first = train[row][part].reshape(len(x), -1)
    contrast = ((moved - moved.mean(1, keepdims=True)) ** 2).sum(1)
    others = [*enumerate(train), *(enumerate(train[..., ::-1]) if flip else ())]
    for other, y in others:
        second = y[part].reshape(len(x), -1)
        rho = [max(np.corrcoef(p, q)[0, 1], 0) for p, q in zip(first, second)]
        if groups[other] == groups[row] or (contrast * (1 - np.square(rho))).sum() <= SAME * contrast.sum():
            continue
        both = (1 - REST) * left(moved, first, second)
        largest = max(largest, (left(moved, first) - both) / (left(moved, second) - both))
    return math.sqrt(largest), int(groups[row]), math.sqrt(share)


@pytest.mark.parametrize(("shape", "flip"), [((1, 8, 8), False), ((3, 8, 9), False), ((2, 11, 8), True)])
def test_the_search_equals_loops_over_mirrors_shifts_gains_and_offsets(shape, flip):
    train = photos(7, 0, shape)
    groups = torch.tensor([5, 1, 2, 1, 3, 4, 0])
    altered = (train.float().flip(-1).roll((1, -2), (-2, -1)) * 0.7 + 25).byte()
    blend = ((train[:3].float() + train[3:6].float()) / 2).byte()
    queries = torch.cat([train[:2], altered[2:5], blend, photos(3, 9, shape), 255 - train[:1]])
    found = TolerantIndex(train, groups, flip=flip).query(queries)
    for k, image in enumerate(queries):
        ratio, group, distance = oracle(image, train, groups, flip=flip)
        assert found.groups[k] == group, k
        assert found.distance[k].item() == pytest.approx(distance, abs=1e-6), k
        assert found.ratio[k].item() == pytest.approx(ratio, abs=1e-6), k


def test_small_sides_are_moved_by_a_quarter_at_most():
    """Of 4 pixels by one; of fewer not at all."""
    train, queries = photos(5, 0, (1, 5, 5)), photos(4, 1, (1, 5, 5))
    found, groups = TolerantIndex(train).query(queries), torch.arange(5)
    for k, image in enumerate(queries):
        assert found.distance[k].item() == pytest.approx(oracle(image, train, groups, most=1)[2], abs=1e-9)
    still = TolerantIndex(train[..., :3, :3].contiguous()).query(queries[..., :3, :3].contiguous())
    for k, image in enumerate(queries[..., :3, :3]):
        assert still.distance[k].item() == pytest.approx(oracle(image, train[..., :3, :3], groups, 0)[2], abs=1e-9)


# ---- what is tolerated ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("border", ["roll", "zero", "reflect", "noise"])
@pytest.mark.parametrize("down", [-2, 0, 1])
def test_the_treatment_of_borders_does_not_matter(border, down):
    """Mirrored, moved, darkened copies under another colour cast: to the bit those whose border is real."""
    big = photos(12, 3, (3, 12, 12), grain=0)
    train = big[..., 2:10, 2:10].contiguous()
    moved = big[..., 2 + down : 10 + down, 0:8].float()  # by two columns
    made = moved.clone()
    rows, columns = slice(max(0, -down), 8 - max(0, down)), slice(2, 8)
    inside = moved[..., rows, columns]
    if border == "roll":
        made = train.float().roll((-down, 2), (-2, -1))
    elif border == "noise":
        made = 255 * torch.rand(moved.shape, generator=rng(5))
    else:
        pads = (2, 0, max(0, -down), max(0, down))
        made = F.pad(inside, pads, mode="constant" if border == "zero" else "reflect")
    made[..., rows, columns] = inside
    assert torch.equal(made[..., rows, columns], train.float().roll((-down, 2), (-2, -1))[..., rows, columns])
    cast = torch.tensor([40.0, 0.0, 20.0])[:, None, None]
    index = TolerantIndex(train)
    found = index.query((made * 0.5 + cast).round().byte())
    real = index.query((moved * 0.5 + cast).round().byte())
    assert found.groups.tolist() == list(range(12)) and found.distance.max() < 0.05
    assert torch.equal(found.distance, real.distance) and torch.equal(found.ratio, real.ratio)


def test_a_negative_gain_is_no_copy():
    train = photos(20, 4)
    found = TolerantIndex(train).query(255 - train)
    assert found.ratio.median() > 0.4 and TolerantIndex(train).query(train).ratio.max() < 1e-6


def pattern(rows, columns):
    return torch.outer(torch.tensor(rows), torch.tensor(columns))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4, 0.45])
@pytest.mark.parametrize("noise", [0, 3, 12])
def test_a_blend_reads_its_share_whatever_its_noise(share, noise):
    """Orthogonal images of one contrast, symmetric under mirroring, too small to be moved; noise orthogonal to both:
    (d1 / d2)^2 = (a^2 + kappa n^2) / ((1 - a)^2 + kappa n^2)."""
    one, two = pattern([1.0, 1, 1], [1.0, -2, 1]), pattern([1.0, -2, 1], [1.0, 1, 1])
    rest = pattern([1.0, 0, -1], [1.0, 1, 1])
    train = torch.stack([128 + 20 * one, 128 + 20 * two])[:, None].byte()
    sample = 128 + 20 * ((1 - share) * one + share * two) + noise * rest
    found = TolerantIndex(train).query(sample[None, None].round().byte())
    n2 = noise**2 * 6 / (20**2 * 18)
    want = math.sqrt((share**2 + REST * n2) / ((1 - share) ** 2 + REST * n2))
    assert found.groups.item() == 0 and found.ratio.item() == pytest.approx(want, abs=0.01)
    left_over = (share**2 + n2) / ((1 - share) ** 2 + share**2 + n2)
    assert found.distance.item() == pytest.approx(math.sqrt(left_over), abs=0.01)


def test_noise_hides_no_copy_and_makes_none_of_a_blend():
    """Noise of half the contrast: every copy lies below, nearly every even blend above, 99 % of unseen images."""
    train, unseen = photos(100, 6, (3, 16, 16)), photos(400, 7, (3, 16, 16))
    index, noise = TolerantIndex(train), 20 * torch.randn(100, 3, 16, 16, generator=rng(8))
    threshold = tolerant_threshold(index.query(unseen).ratio)
    copies = index.query((train + noise).clamp(0, 255).byte())
    blends = index.query((0.5 * train + 0.5 * train.roll(1, 0) + noise).clamp(0, 255).byte())
    assert (copies.ratio < threshold).double().mean() > 0.98 and copies.groups.tolist() == list(range(100))
    assert (blends.ratio < threshold).double().mean() < 0.1
    # The plain ratio of distances cannot tell them apart: both have a like distance to the nearest image.
    assert copies.distance.mean() > 0.3


# ---- groups and flat images -----------------------------------------------------------------------------------------


def test_rows_of_one_group_are_no_second_image():
    train = photos(6, 10)
    noisy = (train + 10 * torch.randn(train.shape, generator=rng(11))).clamp(0, 255).byte()
    repeated = torch.cat([train, train[:3], train[4:5]])
    plain, more = (TolerantIndex(t).query(noisy) for t in (train, repeated))
    assert torch.equal(plain.ratio, more.ratio) and more.groups.tolist() == list(range(6))
    # Near-duplicates, which are further apart than one picture up to gain and offset.
    twins = (0.8 * train.float() + 0.2 * train.roll(1, 0).float()).byte()
    labels = torch.arange(6).repeat(2)
    joined, apart = (TolerantIndex(torch.cat([train, twins]), g).query(noisy) for g in (labels, None))
    assert joined.groups.tolist() == list(range(6)) and bool((joined.ratio <= apart.ratio).all())
    assert joined.ratio.mean() < 0.5 * apart.ratio.mean()


@pytest.mark.parametrize("change", ["brighter", "mirrored", "moved"])
def test_copies_are_found_where_the_images_lie_in_the_training_set_altered_too(change):
    train = photos(60, 12, (3, 16, 16))
    other = {"brighter": (train * 0.7 + 60).byte(), "mirrored": train.flip(-1), "moved": train.roll(1, -1)}[change]
    index = TolerantIndex(torch.cat([train, other]))
    threshold = tolerant_threshold(index.query(photos(300, 13, (3, 16, 16))).ratio)
    samples = train * 0.8 + 20 + 8 * torch.randn(train.shape, generator=rng(14))
    assert (index.query(samples.clamp(0, 255).byte()).ratio < threshold).double().mean() > 0.95


def test_a_mirrored_second_image_counts_where_training_mirrors():
    """A blend with another image's mirror image."""
    train = photos(30, 15, (3, 16, 16))
    blends = (0.5 * train + 0.5 * train.flip(-1).roll(1, 0)).byte()
    t = make_training_set(train, flip=True)
    plain, flipped = TolerantIndex(train).query(blends).ratio, TolerantIndex(train, group_index(t)).query(blends).ratio
    assert bool((flipped >= plain).all()) and flipped.median() > 0.6 > plain.median()


def test_flat_images_match_nothing():
    train = torch.cat([photos(5, 16), torch.full((1, 3, 8, 8), 90, dtype=torch.uint8)])
    train[4, 1] = 7  # one flat channel
    index = TolerantIndex(train)
    flat = index.query(torch.full((2, 3, 8, 8), 91, dtype=torch.uint8))
    assert flat.ratio.tolist() == [1, 1] and flat.distance.tolist() == [1, 1]
    found = index.query(train[:5])
    assert found.groups.tolist() == [0, 1, 2, 3, 4] and found.ratio.max() < 1e-6
    assert not (index.query(photos(50, 17)).groups == 5).any()
    dots = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    dots[0, 0, 0, 0] = dots[1, 0, 7, 7] = 1  # flat in most overlaps
    assert bool(TolerantIndex(dots).query(photos(20, 18, (1, 8, 8))).ratio.isfinite().all())


# ---- blocks, candidates, refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exhaustive", [2**21, 0])
def test_batches_and_blocks_change_no_bit(exhaustive, monkeypatch):
    monkeypatch.setattr(tolerant, "EXHAUSTIVE", exhaustive)
    monkeypatch.setattr(tolerant, "CANDIDATES", 9)
    train, queries = photos(40, 19, (3, 9, 8)), torch.cat([photos(20, 20, (3, 9, 8)), photos(40, 19, (3, 9, 8))[:9]])
    whole = TolerantIndex(train).query(queries)
    for name, size in {"TABLE": 500, "PIXELS": 3000, "QUERIES": 7, "ROWS": 11}.items():
        monkeypatch.setattr(tolerant, name, size)
    index = TolerantIndex(train)
    assert index.compared == (40 if exhaustive else 9)
    for batch in (1, 4, 29):
        parts = [index.query(part) for part in queries.split(batch)]
        for name in ("ratio", "groups", "distance"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name)), (batch, name)


def test_candidates_hold_the_copied_image(monkeypatch):
    """Mirrored, moved, recoloured, zoomed and noisy copies among 400 images."""
    train = photos(400, 21, (3, 16, 16))
    exact = TolerantIndex(train)
    monkeypatch.setattr(tolerant, "EXHAUSTIVE", 0)
    index = TolerantIndex(train)
    assert exact.compared == 400 and index.compared == 64
    x = train[:50].float()
    zoomed = F.interpolate(x, scale_factor=1.25, mode="bilinear")[..., 2:18, 2:18]
    noise = 25 * torch.randn(x.shape, generator=rng(22))
    kinds = [
        x.flip(-1),
        x.roll((2, -2), (-2, -1)),
        x * 0.4 + 30,
        zoomed,
        x + noise,
        x.flip(-1).roll(1, -2) * 0.6 + noise,
    ]
    for kind in kinds:
        samples = kind.clamp(0, 255).byte()
        found, want = index.query(samples), exact.query(samples)
        assert (found.groups == torch.arange(50)).double().mean() >= 0.96
        same = found.groups == want.groups
        assert same.double().mean() >= 0.96 and torch.equal(found.ratio[same], want.ratio[same])


def test_products_of_large_images_are_exact():
    """More terms than float32 sums without rounding, all of one sign and odd."""
    a, b = (torch.randint(60, 64, (5, 9001), generator=rng(seed)) * 2 + 1 for seed in (0, 1))
    found = exact_products(a.float(), b.float().T)
    assert found.dtype == torch.float64 and torch.equal(found.long(), a @ b.T)
    assert not torch.equal((a.float() @ b.float().T).long(), a @ b.T)


def test_what_cannot_be_searched_is_refused():
    train = photos(3, 23)
    with pytest.raises(InputError, match=r"data.n \(training_set\)=1"):
        TolerantIndex(train[:1].repeat(4, 1, 1, 1))
    with pytest.raises(InputError, match="must be uint8"):
        TolerantIndex(train.float())
    for images in (train.float(), train[..., :7]):
        with pytest.raises(InputError, match="the training images are uint8"):
            TolerantIndex(train).query(images)
    nothing = TolerantIndex(train).query(train[:0])
    assert nothing.ratio.dtype == torch.float64 and nothing.groups.dtype == torch.int64 and not len(nothing.distance)


# ---- the threshold --------------------------------------------------------------------------------------------------


def test_the_threshold_is_that_of_the_held_out_images():
    ratios = torch.arange(1, 200, dtype=torch.float64) / 200
    assert tolerant_threshold(ratios[:98]) is None and tolerant_threshold(ratios[:99]) == ratios[0]
    assert tolerant_threshold(ratios.flip(0)) == ratios[1]


def test_fresh_images_are_copies_as_rarely_as_promised():
    """1 % of 4,000 has a standard deviation of 0.16 %; that of the threshold from 500 is 0.4 %."""
    index = TolerantIndex(photos(40, 24, (1, 8, 8)))
    threshold = tolerant_threshold(index.query(photos(500, 25, (1, 8, 8))).ratio)
    assert 0 < (index.query(photos(4000, 26, (1, 8, 8))).ratio < threshold).double().mean() < 0.025


def test_a_search_is_shared_and_does_not_outlive_its_training_set():
    t = make_training_set(random_images(6, (1, 8, 8)), held_out=random_images(9, (1, 8, 8), seed=1))
    search = tolerant_search(t)
    assert tolerant_search(t) is search and tolerant_search(t, "auto") is not search
    assert search.threshold is None and len(search.control.ratio) == len(search.control_squared) == 9
    images = random_images(5, (1, 8, 8), seed=2)
    assert search.index.query(images) is search.index.query(images), "asked once per batch"
    before = search.index.query(images).ratio
    images[0] = t.images[0]
    assert search.index.query(images).ratio[0] < 1e-6 < before[0], "the buffer was written anew"
