"""The order of examples is a pure function of (seed, batch number, rank)."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from cdmem.data.stream import BatchStream
from cdmem.errors import InputError

N = 7
MULTIPLICITIES = torch.tensor([1, 4, 1, 2, 1, 1, 3])
ROWS = int(MULTIPLICITIES.sum())  # 13
IMAGES = torch.randint(0, 256, (N, 2, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
IDS = torch.arange(N) * 10 + 3


def stream(batch_size=4, seed=0, **more):
    row_to_group = torch.repeat_interleave(torch.arange(N), MULTIPLICITIES)
    return BatchStream(IMAGES, torch.arange(N) % 3, IDS, row_to_group, batch_size=batch_size, seed=seed, **more)


def first(source, count):
    return list(itertools.islice(source, count))


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_batch_holds_the_images_labels_and_ids_of_its_rows():
    s = stream()
    for k, batch in enumerate(first(s, 8)):
        group = s.row_to_group[s.rows_of(k)]
        assert batch.image.dtype == torch.uint8
        assert batch.image.shape == (4, 2, 3, 4)
        assert torch.equal(batch.image, IMAGES[group])
        assert torch.equal(batch.label, group % 3)
        assert torch.equal(batch.index, IDS[group])
        assert batch.label.dtype == batch.index.dtype == torch.int64


@pytest.mark.parametrize("batch_size", [1, 4, 13, 14, 40])
def test_every_row_is_seen_exactly_once_an_epoch(batch_size):
    epochs = 3
    s = stream(batch_size)
    seen = torch.cat([s.rows_of(k) for k in range(-(-epochs * ROWS // batch_size))])[: epochs * ROWS]
    for epoch in seen.view(epochs, ROWS):
        assert torch.equal(epoch.sort().values, torch.arange(ROWS))
    assert not torch.equal(seen[:ROWS], seen[ROWS : 2 * ROWS])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("start", [1, 3, 4, 17])
def test_a_later_start_continues_the_same_stream(start, flip):
    whole = first(stream(5, flip=flip), start + 4)
    resumed = first(stream(5, flip=flip, start=start), 4)
    assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


@pytest.mark.parametrize("batch_size", [4, 28])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_partition_the_global_batch(world_size, batch_size):
    whole = stream(batch_size, flip=True)
    ranks = [stream(batch_size, flip=True, rank=r, world_size=world_size) for r in range(world_size)]
    for k in range(9):
        shares = [rank.batch(k) for rank in ranks]
        assert all(len(share.index) == batch_size // world_size for share in shares)
        assert same([torch.cat(field) for field in zip(*shares)], whole.batch(k))
        assert torch.equal(torch.cat([rank.rows_of(k) for rank in ranks]), whole.rows_of(k))


def test_batch_size_does_not_change_the_order():
    small = torch.cat([stream(2).rows_of(k) for k in range(30)])
    large = torch.cat([stream(20).rows_of(k) for k in range(3)])
    assert torch.equal(small, large)


def test_another_seed_gives_another_order():
    assert not torch.equal(stream(ROWS).rows_of(0), stream(ROWS, seed=1).rows_of(0))
    # seed + epoch would make epoch 1 of seed 0 the epoch 0 of seed 1
    assert not torch.equal(stream(ROWS).rows_of(1), stream(ROWS, seed=1).rows_of(0))


def test_flips_mirror_half_the_images_and_change_from_epoch_to_epoch():
    plain, flipped = stream(ROWS), stream(ROWS, flip=True)
    epochs = 200
    mirrored = torch.zeros(epochs, ROWS, dtype=torch.bool)
    for k in range(epochs):
        a, b = plain.batch(k).image, flipped.batch(k).image
        kept, turned = (b == a).flatten(1).all(1), (b == a.flip(-1)).flatten(1).all(1)
        assert (kept ^ turned).all()  # each is one or the other, whole
        mirrored[k, plain.rows_of(k)] = turned
    # 2600 fair coins have a mean with standard deviation 0.0098; a row's 200 coins one of 0.035: five of them
    assert abs(mirrored.double().mean() - 0.5) < 0.049
    assert (abs(mirrored.double().mean(0) - 0.5) < 0.177).all()


def test_a_global_batch_that_ranks_cannot_share_is_refused():
    for batch_size, world_size in ((6, 4), (0, 1), (-4, 2)):
        with pytest.raises(InputError, match=r"^data\.batch_size="):
            stream(batch_size, world_size=world_size)


def test_misuse_by_the_program_is_refused():
    with pytest.raises(ValueError, match="rank"):
        stream(rank=2, world_size=2)
    with pytest.raises(ValueError, match="start"):
        stream(start=-1)
    with pytest.raises(ValueError, match="one length"):
        BatchStream(IMAGES, torch.arange(3), IDS, torch.arange(3), batch_size=1, seed=0)


def test_a_loader_without_workers_passes_batches_through():
    s = stream(flip=True)
    assert all(same(a, b) for a, b in zip(first(DataLoader(s, batch_size=None), 9), first(s, 9), strict=True))
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(iter(DataLoader(stream(), batch_size=None, num_workers=1)))


def test_memory_does_not_grow_with_the_epochs():
    s = stream(5 * ROWS)
    first(s, 10)
    assert len(s._epochs) <= 2
