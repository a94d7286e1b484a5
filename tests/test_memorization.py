"""The memorised fraction: hand values, the closed form of its threshold, copies, mirrors, seeds and processes."""

from __future__ import annotations

import math

import pytest
import torch

from cdmem.errors import InputError
from cdmem.metrics.memorization import ROWS, MemorizedFraction, memorized
from cdmem.metrics.neighbors import NeighborIndex
from cdmem.metrics.statistics import wilson_interval


def random_images(n, shape, seed, low=0, high=256):
    return torch.randint(low, high, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def measure(train, samples, *, flip=False, threshold=1 / 3):
    metric = MemorizedFraction(NeighborIndex(train, flip=flip), threshold)
    metric.update(samples, torch.arange(len(samples)))
    return metric.compute()


def flat(*levels):
    return torch.tensor(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def test_three_images_by_hand():
    train = flat(0, 100, 250)
    # d1 / d2: 24/76 < 1/3, 25/75 = 1/3 (not below), 26/74, 10/160, 0.
    metric = MemorizedFraction(NeighborIndex(train))
    metric.update(flat(24, 25, 26, 240, 100), torch.tensor([14, 13, 12, 11, 10]))
    result = metric.compute()
    assert result["f_mem"] == 3 / 5 and result["samples"] == 5 and result["unique"] == 3
    assert (result["f_mem_low"], result["f_mem_high"]) == wilson_interval(3, 5)
    assert result["median_ratio"] == pytest.approx(24 / 76)
    rows = metric.rows()
    assert tuple(rows) == ROWS
    assert rows["seeds"].tolist() == [10, 11, 12, 13, 14]
    assert rows["group1"].tolist() == [1, 2, 0, 0, 0]
    assert rows["squared1"].tolist() == [0, 4 * 10**2, 4 * 26**2, 4 * 25**2, 4 * 24**2]
    assert rows["squared2"].tolist() == [4 * 100**2, 4 * 140**2, 4 * 74**2, 4 * 75**2, 4 * 76**2]


def test_threshold():
    d1, d2 = torch.tensor([0, 1, 24, 25, 100]), torch.tensor([1, 100, 100, 100, 100])
    assert memorized(d1, d2, 0.5).tolist() == [True, True, True, False, False]
    assert measure(flat(0, 100, 250), flat(26, 49), threshold=0.4)["f_mem"] == 0.5
    for bad in (0, -1, 1.5, math.nan):
        with pytest.raises(InputError):
            MemorizedFraction(NeighborIndex(flat(0, 1)), bad)


@pytest.mark.parametrize("factor, low, high", [(0.9, 0.97, 1.0), (1.1, 0.0, 0.03)])
def test_noise_around_the_closed_form_threshold(factor, low, high):
    # sep / sqrt(8 D) grey levels of noise put d1 / d2 at 1/3; levels 96..159 keep the noise away from 0 and 255.
    train = random_images(60, (3, 32, 32), 0, 96, 160)
    points = train.double().flatten(1)
    separation = torch.cdist(points, points).fill_diagonal_(math.inf).amin(1)
    sigma = factor * separation / math.sqrt(8 * points.shape[1])
    noise = torch.randn(points.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    samples = (points + sigma[:, None] * noise).round().clamp(0, 255).to(torch.uint8).reshape(train.shape)
    assert low <= measure(train, samples)["f_mem"] <= high


@pytest.mark.parametrize("copies", [1, 2, 60])
def test_a_copier_of_duplicated_rows_reads_one(copies):
    train = random_images(5, (3, 8, 8), 2).repeat_interleave(copies, 0)
    result = measure(train, train)
    assert result["f_mem"] == 1.0 and result["unique"] == 5 and result["median_ratio"] == 0.0


@pytest.mark.parametrize("flip", [False, True])
def test_mirrored_copies_count_only_with_flips(flip):
    train = random_images(40, (3, 8, 8), 3)
    assert measure(train, train.flip(-1), flip=flip)["f_mem"] == float(flip)
    assert measure(train, train, flip=flip)["f_mem"] == 1.0


def test_unrelated_images_are_not_memorised():
    assert measure(random_images(40, (3, 8, 8), 4), random_images(200, (3, 8, 8), 5))["f_mem"] == 0.0


def test_repeated_seeds_count_once():
    train = random_images(4, (1, 8, 8), 6)
    samples = torch.cat([train[:1], random_images(3, (1, 8, 8), 7)])
    metric = MemorizedFraction(NeighborIndex(train))
    metric.update(samples, torch.tensor([7, 3, 5, 1]))
    metric.update(samples[:1].repeat(6, 1, 1, 1), torch.full((6,), 7))
    result = metric.compute()
    assert result["samples"] == 4 and result["f_mem"] == 1 / 4
    assert metric.rows()["seeds"].tolist() == [1, 3, 5, 7]


def mixed(n=50):
    train = random_images(20, (3, 8, 8), 8)
    samples = random_images(n, (3, 8, 8), 9)
    samples[::3] = train[torch.arange(len(samples[::3])) % 20]
    return train, samples, torch.arange(n) + 100


def test_batches_do_not_matter():
    train, samples, seeds = mixed()
    whole = MemorizedFraction(NeighborIndex(train))
    whole.update(samples, seeds)
    for size in (1, 7, 64):
        metric = MemorizedFraction(NeighborIndex(train))
        order = torch.randperm(len(seeds), generator=torch.Generator().manual_seed(size))
        for part in order.split(size):
            metric.update(samples[part], seeds[part])
        assert metric.compute() == whole.compute()
        assert all(torch.equal(metric.rows()[name], whole.rows()[name]) for name in ROWS)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_samples_are_refused_and_reset_forgets():
    train, samples, seeds = mixed()
    metric = MemorizedFraction(NeighborIndex(train))
    with pytest.raises(InputError):
        metric.compute()
    metric.update(samples, seeds)
    assert metric.compute()["samples"] == len(seeds)
    metric.reset()
    assert all(len(column) == 0 for column in metric.rows().values())
    with pytest.raises(InputError):
        metric.compute()


def test_nothing_goes_into_a_checkpoint():
    train, samples, seeds = mixed()
    metric = MemorizedFraction(NeighborIndex(train))
    metric.update(samples, seeds)
    assert not metric.state_dict() and not list(metric.parameters())


def share(case, rank):
    """Positions of a rank's samples: uneven with one padded seed, or all on rank 0."""
    _, samples, _ = mixed()
    everything = torch.arange(len(samples))
    if case == "uneven":
        return everything[:33] if rank == 0 else torch.cat([everything[33:], everything[:1]])
    return everything if rank == 0 else everything[:0]


def one_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    train, samples, seeds = mixed()
    answers = {}
    for case in ("uneven", "empty"):
        metric = MemorizedFraction(NeighborIndex(train))
        mine = share(case, rank)
        for part in mine.split(8) if len(mine) else []:
            metric.update(samples[part], seeds[part])
        rows = metric.rows()  # before and after compute
        answers[case] = {"compute": metric.compute(), "rows": rows, "again": metric.rows()}
    torch.save(answers, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    train, samples, seeds = mixed()
    single = MemorizedFraction(NeighborIndex(train))
    single.update(samples, seeds)
    for rank in range(2):
        for case, answer in torch.load(tmp_path / f"{rank}.pt").items():
            assert answer["compute"] == single.compute(), (rank, case)
            for name, column in single.rows().items():
                assert torch.equal(answer["rows"][name], column), (rank, case, name)
                assert torch.equal(answer["again"][name], column), (rank, case, name)
                assert answer["rows"][name].dtype == torch.int64
