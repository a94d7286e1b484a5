"""A metric on samples is a function of (seed, image) pairs: not of order, batches, repetition or processes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.metrics.base import SampleMetric
from cdmem.metrics.comparison.paired import PairedWithTeacher
from cdmem.metrics.memorization.authenticity import Authenticity
from cdmem.metrics.memorization.copy_detection import CopyDetection
from cdmem.metrics.memorization.coverage import HitCoverage
from cdmem.metrics.memorization.data_copying import CopyTest, TrainPreference, TwoSampleAccuracy
from cdmem.metrics.memorization.extraction import AbsoluteExtraction, AdaptiveExtraction
from cdmem.metrics.memorization.feature_likelihood import FeatureLikelihood
from cdmem.metrics.memorization.fraction import MemorizedFraction
from cdmem.metrics.memorization.tolerant import TolerantCopies
from cdmem.metrics.neighbors.index import group_index
from cdmem.metrics.quality.fidelity import Fidelity
from cdmem.metrics.quality.prdc import ManifoldQuality
from support import make_training_set, random_images


class Weighted(SampleMetric):
    """Depends on everything it must not depend on, if the base lets it through: order, number, repetition."""

    min_samples = 3

    def columns(self, images):
        return {"level": images.flatten(1).double().mean(1), "images": images}

    def evaluate(self, rows):
        weights = torch.arange(1, len(rows["seeds"]) + 1, dtype=torch.float64)
        return {"value": float((weights * rows["level"] / 3).sum()), "samples": float(len(weights))}


def case(n=50):
    train = random_images(20, seed=8)
    samples = random_images(n, seed=9)
    samples[::3] = train[torch.arange(len(samples[::3])) % 20]
    seeds = torch.randperm(10 * n, generator=torch.Generator().manual_seed(10))[:n]
    return make_training_set(train, torch.tensor([1, 4]).repeat(10), random_images(99, seed=11)), samples, seeds


def feed(metric, images, seeds, batch=1000):
    """PairedWithTeacher wants two sets of float images; all others want one of uint8."""
    for x, s in zip(images.split(batch), seeds.split(batch)):
        if isinstance(metric, PairedWithTeacher):
            metric.update(0.8 * to_float(x) + 0.03, to_float(x), s)
        else:
            metric.update(x, s)
    return metric


METRICS = {
    "weighted": Weighted,
    "f_mem": MemorizedFraction,
    "coverage": HitCoverage,
    "absolute": AbsoluteExtraction,
    "adaptive": lambda: AdaptiveExtraction(neighbors=5),
    "paired": PairedWithTeacher,
    "fidelity": lambda: Fidelity(interval=True),
    "manifold": ManifoldQuality,
    "authenticity": Authenticity,
    "copy_test": lambda: CopyTest(cells=1),
    "preference": TrainPreference,
    "two_sample": TwoSampleAccuracy,
    "likelihood": FeatureLikelihood,
    "hog": CopyDetection,
    "tolerant": TolerantCopies,
}
NAMES = list(METRICS)
KINDS = [
    "weighted",
    "f_mem",
    "coverage",
    "paired",
    "fidelity",
    "tolerant",
]  # every kind of states and numbers, for processes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_order_and_batches_do_not_matter(name, batch):
    training_set, samples, seeds = case()
    whole = feed(METRICS[name]().prepare(training_set), samples, seeds)
    order = torch.randperm(len(seeds), generator=torch.Generator().manual_seed(batch))
    parts = feed(METRICS[name]().prepare(training_set), samples[order], seeds[order], batch)
    assert parts.compute() == whole.compute()
    rows, want = parts.rows(), whole.rows()
    assert rows.keys() == want.keys() and torch.equal(rows["seeds"], seeds.sort().values)
    assert all(torch.equal(rows[k], want[k]) for k in rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_counts_once(name):
    training_set, samples, seeds = case()
    once, more = (feed(METRICS[name]().prepare(training_set), samples, seeds) for _ in range(2))
    feed(more, samples[:9], seeds[:9])
    feed(more, samples[4:5].repeat(3, 1, 1, 1), seeds[4:5].repeat(3))
    assert more.compute() == once.compute()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reset_forgets_and_nothing_is_refused(name):
    training_set, samples, seeds = case()
    metric = METRICS[name]().prepare(training_set)
    with pytest.raises(InputError, match="samples=0"):
        metric.compute()
    want = feed(metric, samples, seeds).compute()
    metric.reset()
    assert all(len(column) == 0 for column in metric.rows().values())
    with pytest.raises(InputError, match="samples=0"):
        metric.compute()
    assert feed(metric, samples, seeds).compute() == want
    assert not metric.state_dict() and not list(metric.parameters())


def test_too_few_samples_are_counted_by_seed():
    training_set, samples, _ = case()
    metric = feed(Weighted().prepare(training_set), samples[:5], torch.tensor([4, 4, 7, 7, 4]))
    with pytest.raises(InputError, match=r"samples=2: Weighted needs at least 3; give more samples"):
        metric.compute()
    assert feed(metric, samples[5:6], torch.tensor([1])).compute()["samples"] == 3


def test_every_image_needs_a_seed():
    training_set, samples, seeds = case()
    with pytest.raises(InputError, match="one seed per image"):
        Weighted().prepare(training_set).update(samples, seeds[:-1])


def test_rows_do_not_end_the_collection():
    training_set, samples, seeds = case()
    metric = feed(Weighted().prepare(training_set), samples[:20], seeds[:20])
    assert len(metric.rows()["seeds"]) == 20
    assert len(feed(metric, samples[20:], seeds[20:]).rows()["seeds"]) == 50


# ---- the shared search ----------------------------------------------------------------------------------------------


def test_metrics_of_one_training_set_share_a_search():
    training_set, *_ = case()
    search = MemorizedFraction().prepare(training_set).search
    assert HitCoverage().prepare(training_set).search is search is group_index(training_set)
    assert MemorizedFraction().prepare(case()[0]).search is not search
    assert torch.equal(search.multiplicities, training_set.multiplicities)


def test_a_search_is_asked_once_per_batch_and_answers_for_what_is_in_it(monkeypatch):
    training_set, samples, _ = case()
    search, asked = group_index(training_set), []
    real = search.index.query
    monkeypatch.setattr(search.index, "query", lambda *a, **k: asked.append(1) or real(*a, **k))
    three, two = search.query(samples, 3), search.query(samples, 2)
    assert len(asked) == 1 and torch.equal(two.squared, three.squared[:, :2]) and two.squared.shape[1] == 2
    assert search.query(samples, 4).squared.shape[1] == 4 and len(asked) == 2
    samples[0] = training_set.images[5]
    assert search.query(samples, 2).groups[0, 0] == 5, "the buffer was written anew"
    other = samples.clone()
    search.query(other)
    assert len(asked) == 4


def test_a_search_does_not_outlive_its_training_set():
    training_set, samples, seeds = case()
    metric = feed(MemorizedFraction().prepare(training_set), samples, seeds)
    search = weakref.ref(metric.search)
    del metric
    gc.collect()
    assert search() is group_index(training_set)
    del training_set
    gc.collect()
    assert search() is None


def test_copies_of_rows_and_mirrors_are_one_group():
    images = random_images(4, seed=3)
    rows = torch.cat([images, images[:2], images[:1].flip(-1)])
    plain = group_index(make_training_set(rows))
    assert plain.index.num_groups == 5 and plain.multiplicities.tolist() == [2, 2, 1, 1, 1]
    flipped = group_index(make_training_set(rows, torch.tensor([1, 2, 3, 4, 5, 6, 7]), flip=True))
    assert flipped.index.num_groups == 4 and flipped.multiplicities.tolist() == [13, 8, 3, 4]


def test_spacing_is_the_distance_to_the_nearest_other_group():
    images = random_images(9, seed=4)
    points = images.flatten(1).double()
    want = torch.cdist(points, points).fill_diagonal_(torch.inf).amin(1)
    found = group_index(make_training_set(torch.cat([images, images[3:]]))).spacing()
    assert found.tolist() == pytest.approx(want.tolist(), rel=1e-12)


def test_unknown_grouping_is_refused():
    with pytest.raises(InputError, match="near_duplicates=of"):
        MemorizedFraction(near_duplicates="of").prepare(case()[0])


# ---- processes ------------------------------------------------------------------------------------------------------


def share(kind, rank):
    """Positions of a rank's samples: uneven with two padded seeds, or all on rank 1."""
    everything = torch.arange(50)
    if kind == "uneven":
        return everything[:33] if rank == 0 else torch.cat([everything[33:], everything[:2]])
    return everything[:0] if rank == 0 else everything


def one_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    training_set, samples, seeds = case()
    answers = {}
    for kind in ("uneven", "empty"):
        mine = share(kind, rank)
        for name in KINDS:
            metric = METRICS[name]().prepare(training_set)
            if len(mine):
                feed(metric, samples[mine], seeds[mine], 8)
            rows = metric.rows()  # before and after compute
            answers[kind, name] = {"compute": metric.compute(), "rows": rows, "again": metric.rows()}
    metric = feed(Weighted().prepare(training_set), samples[rank : rank + 1], seeds[rank : rank + 1])
    try:
        metric.compute()
    except InputError as error:
        answers["few"] = str(error)
    torch.save(answers, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_to_the_bit(tmp_path):
    code = f"import sys, test_sample_metric as t; t.one_rank(int(sys.argv[1]), {str(tmp_path)!r})"
    tests = Path(__file__).resolve().parent
    path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path}
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    training_set, samples, seeds = case()
    for rank in range(2):
        answers = torch.load(tmp_path / f"{rank}.pt")
        assert answers.pop("few").startswith("samples=2: Weighted needs at least 3")
        for (kind, name), answer in answers.items():
            single = feed(METRICS[name]().prepare(training_set), samples, seeds)
            assert answer["compute"] == single.compute(), (rank, kind, name)
            for column, values in single.rows().items():
                for given in (answer["rows"][column], answer["again"][column]):
                    assert given.dtype == values.dtype and torch.equal(given, values), (rank, kind, name, column)
