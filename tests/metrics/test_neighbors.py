"""The neighbour search is exact: equal to int64 brute force, whatever the tiles, batches and order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cdmem.errors import InputError
from cdmem.metrics.neighbors import pixels as neighbors
from cdmem.metrics.neighbors.pixels import FAR, NeighborIndex, Neighbors, connected, int_mm_pays, int_mm_works, products
from support import random_images

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(1, 8, 8), (3, 32, 32)]
PATHS = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(not int_mm_works(torch.device("cpu")), reason="no int8 product")),
]
MEMORY_CASES = [(4, True, 256, 2), (48, True, 2, 51), (48, False, 256, 2)]


def adversarial(shape):
    """The largest distances there are: black, white, both checkerboards and single pixels that differ."""
    board = (torch.arange(shape[1])[:, None] + torch.arange(shape[2])) % 2
    white = torch.full(shape, 255, dtype=torch.uint8)
    board = (board * 255).to(torch.uint8).expand(shape)
    nearly_white, nearly_black = white.clone(), torch.zeros_like(white)
    nearly_white[0, 0, 0] = 254
    nearly_black[-1, -1, -1] = 1
    return torch.stack([torch.zeros_like(white), white, board, 255 - board, nearly_white, nearly_black])


def brute_force(train, groups, queries, k=2, exclude=None, flip=False):
    """k best groups by int64 differences: squared distances and groups (B, k), ties to the lower group."""
    sides = [train.long(), train.flip(-1).long()] if flip else [train.long()]
    answer = []
    for j, query in enumerate(queries.long()):
        distance = torch.stack([(side - query).square().flatten(1).sum(1) for side in sides]).amin(0)
        best = {}
        for d, g in zip(distance.tolist(), groups):
            best[g] = min(d, best.get(g, FAR))
        ranked = sorted((d, g) for g, d in best.items() if exclude is None or g != int(exclude[j]))
        answer.append(ranked[:k])
    return torch.tensor(answer).unbind(2)


def same(found, want):
    return torch.equal(found.squared, want[0]) and torch.equal(found.groups, want[1])


def build(train, use_int_mm=False, **options):
    index = NeighborIndex(train, **options)
    index.use_int_mm = use_int_mm
    return index


def cases(shape):
    train = torch.cat([random_images(25, shape, 1), adversarial(shape)])
    near = train[:8].clone()
    near[:, 0, 0, :3] ^= 1  # almost copies: what cancellation would spoil
    return train, torch.cat([random_images(10, shape, 2), adversarial(shape), near, train[3:5]])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("use_int_mm", PATHS)
@pytest.mark.parametrize("memory_mib", [0, 1, 256])
def test_equals_brute_force(shape, use_int_mm, memory_mib):
    train, queries = cases(shape)
    index = build(train, use_int_mm, memory_mib=memory_mib)
    want = brute_force(train, range(len(train)), queries)
    assert same(index.query(queries), want)
    for batch in (1, 7):
        parts = [index.query(part) for part in queries.split(batch)]
        found = Neighbors(*(torch.cat([getattr(p, name) for p in parts]) for name in ("squared", "groups", "nearest")))
        assert same(found, want) and found.squared.dtype == found.groups.dtype == found.nearest.dtype == torch.int64
    assert torch.equal(found.squared1, want[0][:, 0]) and torch.equal(found.squared2, want[0][:, 1])
    assert torch.equal(found.group1, want[1][:, 0]) and torch.equal(found.d1, found.squared1.double().sqrt())
    none = index.query(queries[:0])
    assert none.squared.shape == none.groups.shape == (0, 2) and none.nearest.shape == (0,)


@pytest.mark.parametrize("side", [32, 256])
@pytest.mark.parametrize("use_int_mm", PATHS)
def test_the_largest_distance_is_exact(use_int_mm, side):
    """Also beyond int32: 255^2 * 196,608 = 1.28e10."""
    black = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    found = build(torch.cat([black, ~black]), use_int_mm).query(~black)
    assert found.squared.tolist() == [[0, 255**2 * 3 * side**2]] and found.groups.tolist() == [[1, 0]]


@pytest.mark.parametrize("copies", [2, 6, 60])
@pytest.mark.parametrize("memory_mib", [0, 256])
def test_duplicated_rows_change_nothing(copies, memory_mib):
    train = random_images(9, (1, 8, 8), 5)
    queries = torch.cat([train, random_images(12, (1, 8, 8), 6)])
    want = brute_force(train, range(9), queries)
    for rows in (train.repeat(copies, 1, 1, 1), train.repeat_interleave(copies, 0)):
        index = NeighborIndex(rows, memory_mib=memory_mib)
        assert index.num_groups == 9 and same(index.query(queries), want)


@pytest.mark.parametrize("memory_mib", [0, 256])
@pytest.mark.parametrize("use_int_mm", PATHS)
def test_a_mirror_image_is_the_same_group(memory_mib, use_int_mm):
    train = random_images(12, (3, 8, 8), 7)
    train[5] = train[2].flip(-1)  # a mirror image within the set
    train[8] = (train[8].int() + train[8].flip(-1).int()).div(2, rounding_mode="floor").to(torch.uint8)
    assert torch.equal(train[8], train[8].flip(-1))  # its own mirror image
    queries = torch.cat([train.flip(-1), train, random_images(6, (3, 8, 8), 8)])
    index = build(train, use_int_mm, flip=True, memory_mib=memory_mib)
    found = index.query(queries)
    assert index.num_groups == 11
    assert same(found, brute_force(train, index.row_groups.tolist(), queries, flip=True))
    assert found.squared1[:24].eq(0).all() and found.squared2.gt(0).all()
    assert torch.equal(found.group1[:12], found.group1[12:24])
    assert found.group1[2] == found.group1[5] and not found.group1.eq(found.groups[:, 1]).any()
    plain = build(train, use_int_mm).query(train[:1].flip(-1))
    assert plain.squared1.item() > 0


@pytest.mark.parametrize("memory_mib", [0, 256])
def test_the_mirror_image_is_never_the_second_neighbour(memory_mib):
    # Almost symmetric: the mirror image is much nearer than any other image.
    first, other = torch.full((1, 4, 4), 100, dtype=torch.uint8), torch.full((1, 4, 4), 200, dtype=torch.uint8)
    first[0, 0, 0] = 101
    train = torch.stack([first, other])
    for query in (first, first.flip(-1)):  # whichever of its two rows comes first
        found = NeighborIndex(train, flip=True, memory_mib=memory_mib).query(query[None])
        assert found.squared.tolist() == [[0, 15 * 100**2 + 99**2]] and found.groups.tolist() == [[0, 1]]
    rows = NeighborIndex(torch.stack([first, first.flip(-1), other])).query(first[None])
    assert rows.squared2.item() == 2  # ungrouped, it is


def test_permuted_training_set_gives_the_same_images():
    train, queries = random_images(30, (3, 8, 8), 9), random_images(20, (3, 8, 8), 10)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(11))
    a, b = NeighborIndex(train).query(queries), NeighborIndex(train[order]).query(queries)
    assert same(a, (b.squared, order[b.groups]))


@pytest.mark.parametrize("memory_mib", [0, 256])
def test_ties_go_to_the_lowest_group(memory_mib):
    train = torch.full((5, 1, 8, 8), 100, dtype=torch.uint8)
    train[0] = 0
    for k in range(1, 5):
        train[k, 0, 0, k] = 110  # all four as far from the flat image
    flat = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        found = NeighborIndex(train[order], memory_mib=memory_mib).query(flat)
        want = [k for k, row in enumerate(order) if row != 0][:2]
        assert found.groups.tolist() == [want] and found.squared.tolist() == [[100, 100]]


@pytest.mark.parametrize("k", [1, 2, 5, 29, 51])
@pytest.mark.parametrize("use_int_mm", PATHS)
@pytest.mark.parametrize("memory_mib", [0, 256])
def test_k_groups_with_labels_and_without_the_own_group(k, use_int_mm, memory_mib):
    """Three grey levels only, so that equal distances are everywhere."""
    train = random_images(60, (1, 3, 3), 20).remainder(3)
    labels = torch.arange(60) // 2
    index = build(train, use_int_mm, labels=labels, memory_mib=memory_mib)
    groups = index.row_groups.tolist()
    assert all(groups[k] == groups[k + 1] for k in range(0, 60, 2))
    queries = torch.cat([train[::3], random_images(9, (1, 3, 3), 21).remainder(3)])
    for exclude in (None, torch.arange(len(queries)) % index.num_groups):
        found = index.query(queries, k, exclude=exclude)
        assert same(found, brute_force(train, groups, queries, k, exclude))
        nearest = (train[found.nearest].long() - queries.long()).square().flatten(1).sum(1)
        assert torch.equal(nearest, found.squared1)
        assert found.squared.shape[1] == min(k, index.num_groups - (exclude is not None))


def test_the_nearest_image_is_the_lowest_row_also_when_mirrored():
    train = random_images(6, (1, 4, 4), 22)
    train[4] = train[1]
    found = NeighborIndex(train, flip=True).query(torch.cat([train, train.flip(-1)]))
    assert found.nearest.tolist() == [0, 1, 2, 3, 1, 5] * 2
    index = NeighborIndex(train)
    assert index.row_groups.tolist() == [0, 1, 2, 3, 1, 4] and index.representatives.tolist() == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(threads):
    train, queries = random_images(300, (3, 16, 16), 23), random_images(100, (3, 16, 16), 24)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = NeighborIndex(train).query(queries, 7)
        torch.set_num_threads(threads)
        found = NeighborIndex(train, memory_mib=2).query(queries, 7)
    finally:
        torch.set_num_threads(before)
    assert same(found, (want.squared, want.groups))


def test_the_nearest_image_of_a_mirror_pair_is_the_lower_one():
    train = random_images(9, (1, 4, 4), 25)
    train[7] = train[3].flip(-1)
    index = NeighborIndex(train, flip=True, labels=torch.tensor([0, 1, 2, 3, 4, 1, 6, 7, 8]))
    found = index.query(torch.cat([train[7:8], train[3:4], train[5:6]]))
    assert found.nearest.tolist() == [3, 3, 5] and found.group1.tolist() == [3, 3, 1]


@pytest.mark.parametrize("seed", range(12))
def test_flips_labels_and_exclusion_together(seed):
    """Images of few pixels and levels, so that duplicates, mirror pairs and ties abound."""
    mask, shape = [(1, (1, 3, 3)), (3, (3, 1, 2)), (255, (1, 4, 4))][seed % 3]
    train, queries = random_images(40, shape, seed + 50) & mask, random_images(30, shape, seed + 80) & mask
    labels = random_images(40, (1, 1, 1), seed + 99).flatten() % 20 if seed % 2 else None
    index = build(train, seed % 4 < 2, flip=True, labels=labels, memory_mib=seed % 5)
    groups = index.row_groups.tolist()
    exclude = torch.arange(30) % index.num_groups
    found = index.query(queries, 3, exclude=exclude)
    twice = torch.cat([train, train.flip(-1)])
    assert same(found, brute_force(train, groups, queries, 3, exclude, flip=True))
    for query, image, d, group in zip(queries.long(), found.nearest, found.squared1, found.group1):
        distance = (twice.long() - query).square().flatten(1).sum(1).reshape(2, -1).amin(0)
        assert int(image) == min(i for i in range(40) if distance[i] == d and groups[i] == group)


def cuda_int_mm(a, b):
    """With the sizes that torch demands on CUDA: more than 16 rows, the others multiples of 8."""
    assert a.shape[0] > 16 and a.shape[1] % 8 == b.shape[1] % 8 == 0
    return (a.long() @ b.long()).to(torch.int32)


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 5, 5), (1, 4, 4)])
@pytest.mark.parametrize("count", [2, 8, 9, 31])
@pytest.mark.parametrize("memory_mib", [0, 256])
def test_products_have_the_sizes_that_cuda_wants(shape, count, memory_mib, monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", cuda_int_mm)
    train = random_images(count, shape, 30)
    index = build(train, use_int_mm=True, memory_mib=memory_mib)
    for queries in (random_images(size, shape, 31) for size in (1, 16, 17, 24, 41)):
        assert same(index.query(queries), brute_force(train, range(count), queries))


def test_products_that_saturate_are_noticed(monkeypatch):
    """Without VNNI pairs of products are added in int16: 2 x 127 x 127 still fits, 2 x 128 x 128 does not."""

    def saturating(a, b):
        pairs = (a.long()[:, :, None] * b.long()[None]).unflatten(1, (-1, 2)).sum(2)
        return pairs.clamp(-(2**15), 2**15 - 1).sum(1).to(torch.int32)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not int_mm_works(torch.device("cpu"))


@pytest.mark.skipif(not int_mm_works(torch.device("cpu")), reason="no int8 product")
@pytest.mark.parametrize("width", [8, neighbors.BLOCK + 8, neighbors.INT_BLOCK + 8])
def test_both_paths_give_the_same_bits(width):
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, (n, width), generator=draw).to(torch.int8) for n in (24, 32))
    a[0] = b[0] = -128
    by_int8, by_float = products(a, b, True), products(a, b, False)
    assert by_int8.dtype == by_float.dtype and torch.equal(by_int8, by_float)
    assert torch.equal(by_float.long(), a.long() @ b.long().t())


@pytest.fixture
def fresh_choice():
    int_mm_pays.cache_clear()
    yield
    int_mm_pays.cache_clear()


@pytest.mark.parametrize(("int8", "float32", "exact"), [(1.0, 2.0, True), (2.0, 1.0, True), (1.0, 2.0, False)])
def test_the_faster_exact_path_is_taken_and_timed_once(monkeypatch, fresh_choice, int8, float32, exact):
    """By a clock that only products move; the first product of either path is slow and does not count."""
    clock, calls = [0.0], []

    def timed(queries, rows, use_int_mm):
        assert len(queries) > 16 and not (len(queries) % 8 or len(rows) % 8 or rows.shape[1] % 8)  # as CUDA wants them
        clock[0] += (int8 if use_int_mm else float32) + (0 if use_int_mm in calls else 100 * (1 + use_int_mm))
        calls.append(use_int_mm)
        return products(queries, rows, False)

    monkeypatch.setattr(neighbors, "products", timed)
    monkeypatch.setattr(neighbors, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(neighbors, "int_mm_works", lambda device: exact)
    images = random_images(4, (1, 8, 8), 14)
    assert NeighborIndex(images).use_int_mm == (exact and int8 < float32)
    count = len(calls)
    assert NeighborIndex(images).to("cpu").use_int_mm == (exact and int8 < float32)
    assert len(calls) == count and set(calls) == ({True, False} if exact else set())


def test_components_are_numbered_by_their_first_member():
    found = connected(6, torch.tensor([5, 4, 3]), torch.tensor([1, 3, 5]))
    assert found.tolist() == [0, 1, 2, 1, 1, 1]


IMAGES = random_images(4, (3, 8, 8), 14)
PAIR = torch.stack([IMAGES[0], IMAGES[0].flip(-1)])
REFUSED = {
    "no training images": (lambda: NeighborIndex(IMAGES[:0]), "training_set"),
    "one image": (lambda: NeighborIndex(IMAGES[:1]), "two different images"),
    "one image, repeated": (lambda: NeighborIndex(IMAGES[:1].repeat(5, 1, 1, 1)), "two different images"),
    "one image and its mirror image": (lambda: NeighborIndex(PAIR, flip=True), "two different images"),
    "floats": (lambda: NeighborIndex(IMAGES.float()), "must be uint8"),
    "vectors": (lambda: NeighborIndex(IMAGES.flatten(1)), "must be uint8"),
    "negative memory": (lambda: NeighborIndex(IMAGES, memory_mib=-1), "is a size"),
    "labels of other images": (lambda: NeighborIndex(IMAGES, labels=torch.arange(3)), "one label per image"),
    "queries with fewer channels": (lambda: NeighborIndex(IMAGES).query(IMAGES[:, :1]), "the training images are"),
    "larger queries": (lambda: NeighborIndex(IMAGES).query(IMAGES.repeat(1, 1, 2, 2)), "the training images are"),
    "float queries": (lambda: NeighborIndex(IMAGES).query(IMAGES.float()), "the training images are"),
    "no neighbours": (lambda: NeighborIndex(IMAGES).query(IMAGES, 0), "must be at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_input_is_refused(case):
    call, problem = REFUSED[case]
    with pytest.raises(InputError, match=problem):
        call()
    assert NeighborIndex(PAIR).num_groups == 2


MEMORY = """
import sys
from pathlib import Path
import torch
from cdmem.metrics.neighbors.pixels import NeighborIndex

def resident(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))

draw = torch.Generator().manual_seed(0)
train = torch.randint(0, int(sys.argv[3]), (6000, 3, 16, 16), dtype=torch.uint8, generator=draw)
index = NeighborIndex(train, memory_mib=int(sys.argv[1]), flip=True)
index.use_int_mm = sys.argv[2] == "True"
queries = torch.randint(0, 256, (3000, 3, 16, 16), dtype=torch.uint8, generator=draw)
index.query(queries[:8])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
before = resident("VmRSS")
index.query(queries, int(sys.argv[4]))
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset")
@pytest.mark.parametrize(("limit", "use_int_mm", "levels", "k"), MEMORY_CASES)
def test_temporary_memory_is_bounded(limit, use_int_mm, levels, k):
    """Peak resident size of a process of its own; two grey levels make many equal distances.

    All 3,000 x 12,000 distances would take 137 MiB in int32 alone.
    """
    command = [sys.executable, "-c", MEMORY, str(limit), str(use_int_mm), str(levels), str(k)]
    # Freed memory goes back at once: what the first query leaves behind must not hide what the second one takes.
    plain = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT, env=plain)
    answer = 3000 * 16 * k / 2**20
    # 4 MiB for the libraries' own.
    assert 1 < float(done.stdout) < limit + answer + 4
