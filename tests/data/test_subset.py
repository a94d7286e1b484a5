"""Choosing T and H: nested, disjoint by content, counted exactly, hashed independently of order."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

import support
from cdmem.data.duplication import multiplicities
from cdmem.data.pixels import ImagePool
from cdmem.data.subset import SubsetSpec, choose, load_record
from cdmem.errors import InputError

CLASSES = ("a", "b", "c")


def pool_of(images, labels=None, names=CLASSES, source="test"):
    count = len(images)
    labels = torch.arange(count) % len(CLASSES) if labels is None else labels
    return ImagePool(images, labels, names, torch.arange(count) + 100, source, {"md5": "x"})


random_images = partial(support.random_images, shape=(1, 4, 4))


def contents(images, flip=False):
    both = [images, images.flip(-1)] if flip else [images]
    return {x.tobytes() for part in both for x in part.numpy()}


def key_of(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value.key


POOL = pool_of(random_images(60))


# choosing


@pytest.mark.parametrize("balance", [False, True])
def test_smaller_sets_begin_larger_ones_and_held_out_stays(balance):
    sets = [choose(POOL, SubsetSpec(n, 5, balance=balance, held_out=12)) for n in (2, 10, 31, 48)]
    for small, large in pairwise(sets):
        n = len(small.images)
        assert torch.equal(small.indices, large.indices[:n])
        assert torch.equal(small.images, large.images[:n])
        assert torch.equal(small.held_out_indices, large.held_out_indices)
        assert small.held_out_hash == large.held_out_hash
        assert small.hash != large.hash


def test_fields_belong_together_and_seeds_differ():
    chosen = choose(POOL, SubsetSpec(20, 1, held_out=7))
    assert torch.equal(chosen.images, POOL.images[chosen.indices - 100])
    assert torch.equal(chosen.labels, POOL.labels[chosen.indices - 100])
    assert torch.equal(chosen.held_out_images, POOL.images[chosen.held_out_indices - 100])
    assert torch.equal(chosen.held_out_labels, POOL.labels[chosen.held_out_indices - 100])
    assert (len(chosen.images), len(chosen.held_out_images), chosen.rows) == (20, 7, 20)
    assert chosen.shape == (1, 4, 4)
    assert chosen.num_classes == 3
    assert chosen.indices.unique().numel() == 20
    assert not torch.equal(chosen.indices, choose(POOL, SubsetSpec(20, 2)).indices)
    assert torch.equal(chosen.indices, choose(POOL, SubsetSpec(20, 1)).indices)
    assert choose(POOL, SubsetSpec(20)).held_out_images.shape == (0, 1, 4, 4)


def test_balance_keeps_counts_within_one():
    labels = torch.tensor([0] * 40 + [1] * 12 + [2] * 8)
    pool = pool_of(POOL.images, labels)
    for n in range(2, 19):
        chosen = choose(pool, SubsetSpec(n, balance=True, held_out=6))
        for counted in (chosen.labels, chosen.held_out_labels):
            counts = counted.bincount(minlength=3)
            assert counts.max() - counts.min() <= 1
    # Two of class 2's eight images are held out: 6 rounds of three, then classes 0 and 1 once more.
    assert len(choose(pool, SubsetSpec(20, balance=True, held_out=6)).images) == 20
    with pytest.raises(InputError, match=r"^data\.n=21.*at most 20"):
        choose(pool, SubsetSpec(21, balance=True, held_out=6))
    assert len(choose(pool, SubsetSpec(54, held_out=6)).images) == 54


@pytest.mark.parametrize("balance", [False, True])
def test_the_largest_possible_choice_uses_everything_once(balance):
    chosen = choose(POOL, SubsetSpec(48, balance=balance, held_out=12))
    both = torch.cat([chosen.indices, chosen.held_out_indices])
    assert torch.equal(both.sort().values, POOL.indices)
    with pytest.raises(InputError, match=r"overlap.*at most 48"):
        choose(POOL, SubsetSpec(49, balance=balance, held_out=12))


def test_repeated_content_is_dropped_and_never_held_out():
    images = random_images(20)
    repeated = pool_of(torch.cat([images, images, images.flip(-1)]))
    chosen = choose(repeated, SubsetSpec(30, held_out=10))  # without flips a mirror image is another image
    assert len(contents(chosen.images) | contents(chosen.held_out_images)) == 40
    assert ((chosen.indices - 100 < 20) | (chosen.indices - 100 >= 40)).all()
    with pytest.raises(InputError, match=r"40 distinct.*at most 30"):
        choose(repeated, SubsetSpec(31, held_out=10))

    chosen = choose(repeated, SubsetSpec(12, held_out=8, flip=True))
    assert not contents(chosen.images, flip=True) & contents(chosen.held_out_images, flip=True)
    assert (torch.cat([chosen.indices, chosen.held_out_indices]) < 120).all()  # the first of each stays
    assert key_of(lambda: choose(repeated, SubsetSpec(13, held_out=8, flip=True))) == "data.n"


def test_impossible_specs_name_their_key():
    for spec, line in (
        (SubsetSpec(1), "data.n=1"),
        (SubsetSpec(61), r"data.n=61: .* 60 distinct images, 0 held out; use at most 60"),
        # One image is no training set, so no n helps.
        (SubsetSpec(3, held_out=58), r"data.n=3: .* 58 held out; use at most 2$"),
        (SubsetSpec(2, held_out=59), r"data.n=2: .* 59 held out; lower data.held_out$"),
        (SubsetSpec(2, held_out=61), r"data.n=2: .* 61 held out; lower data.held_out$"),
        (SubsetSpec(4, balance=True, held_out=57), r"data.n=4: .* 60 distinct images, balanced, 57 held out"),
        (SubsetSpec(2, held_out=-1), "data.held_out=-1"),
        (SubsetSpec(2, seed=-1), "data.seed=-1"),
        (SubsetSpec(2, seed=2**63), "data.seed="),
    ):
        with pytest.raises(InputError, match=line):
            choose(POOL, spec)
    unlabelled = replace(POOL, class_names=())
    assert key_of(lambda: choose(unlabelled, SubsetSpec(2, balance=True))) == "data.balance"


# a held-out pool of its own


def test_external_held_out_is_the_first_distinct_images_in_order():
    other = random_images(9, seed=7)
    pool = pool_of(torch.cat([other[:3], other]), source="elsewhere")
    chosen = choose(POOL, SubsetSpec(60, held_out=5), pool)
    assert torch.equal(chosen.held_out_images, other[:5])
    assert chosen.held_out_indices.tolist() == [100, 101, 102, 106, 107]
    assert torch.equal(choose(POOL, SubsetSpec(60), pool).held_out_images, other)
    assert chosen.record()["provenance"]["held_out"]["source"] == "elsewhere"
    assert torch.equal(chosen.indices, choose(POOL, SubsetSpec(60)).indices)
    assert key_of(lambda: choose(POOL, SubsetSpec(9, held_out=10), pool)) == "data.held_out"


def test_external_held_out_must_not_overlap_or_differ_in_shape():
    training = choose(POOL, SubsetSpec(10, flip=True))
    mirrored = pool_of(torch.cat([random_images(4, seed=7), training.images[:2].flip(-1)]))
    with pytest.raises(InputError, match=r"^data\.held_out_path=.*2 of 6 held-out images"):
        choose(POOL, SubsetSpec(10, flip=True), mirrored)
    assert len(choose(POOL, SubsetSpec(10), mirrored).held_out_images) == 6
    for other in (training.images[3:4], random_images(3, shape=(1, 4, 5))):
        assert key_of(partial(choose, POOL, SubsetSpec(10), pool_of(other))) == "data.held_out_path"


# duplication


def test_groups_have_their_fractions_and_copies():
    groups = [{"fraction": 0.1, "copies": 10}, {"fraction": 0.25, "copies": 3}]
    chosen = choose(POOL, SubsetSpec(40, duplication=groups))
    assert chosen.multiplicities.dtype == torch.int64
    assert chosen.multiplicities.bincount().tolist() == [0, 26, 0, 10, 0, 0, 0, 0, 0, 0, 4]
    assert chosen.rows == 26 + 30 + 40
    assert not torch.equal(chosen.multiplicities.sort(descending=True).values, chosen.multiplicities)
    assert torch.equal(multiplicities(groups, 40, 0), chosen.multiplicities)
    assert not torch.equal(multiplicities(groups, 40, 1), chosen.multiplicities)


def test_fractions_that_fill_the_set_survive_rounding():
    thirds = [{"fraction": 1 / 3, "copies": k} for k in (2, 3, 4)]
    assert multiplicities(thirds, 10, 0).bincount().tolist() == [0, 0, 3, 4, 3]
    assert multiplicities([{"fraction": 0.1, "copies": 2}] * 10, 25, 0).tolist() == [2] * 25


def test_power_law_follows_its_formula():
    found = multiplicities({"power_law": 1.0, "max_copies": 12}, 30, 0).sort(descending=True).values
    assert found.tolist() == [max(1, round(12 / (rank + 1))) for rank in range(30)]
    assert multiplicities({"power_law": 0, "max_copies": 4}, 5, 0).tolist() == [4] * 5


def test_a_file_is_taken_in_the_chosen_order(tmp_path):
    numbers = [3, 1, 2, 5]
    (tmp_path / "m.json").write_text(json.dumps(numbers))
    (tmp_path / "m.txt").write_text("3 1\n2\n5\n")
    np.save(tmp_path / "m.npy", np.array(numbers))
    for name in ("m.json", "m.txt", "m.npy"):
        chosen = choose(POOL, SubsetSpec(4, duplication=str(tmp_path / name)))
        assert chosen.multiplicities.tolist() == numbers
        assert chosen.row_to_group.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 3]
        assert str(tmp_path) not in json.dumps(chosen.record())


@pytest.mark.parametrize(
    "bad",
    [
        [{"fraction": 0.6, "copies": 2}, {"fraction": 0.5, "copies": 2}],
        [{"fraction": 0.5}],
        [{"fraction": 0.5, "copies": 0}],
        [{"fraction": 0.5, "copies": 1.5}],
        [{"fraction": -0.5, "copies": 2}],
        [{"fraction": float("nan"), "copies": 2}],
        [{"fraction": 0.01, "copies": 2}],
        [{"fraction": 0.5, "copies": 10**12}],
        [3],
        {"power_law": -1.0, "max_copies": 3},
        {"power_law": 1.0, "max_copies": 0},
        {"power_law": 1.0},
        {"power_law": "steep", "max_copies": 3},
        {"power_law": 0.0, "max_copies": 2**27},
        7,
        "missing.json",
        "missing.csv",
    ],
)
def test_bad_duplication_is_refused(bad):
    assert key_of(lambda: multiplicities(bad, 10, 0)) == "data.duplication"


@pytest.mark.parametrize("content", ["[1, 2]", "[1, 2, 0]", "[1, 2, 1.5]", "[1, 2, true]", "{}", "[", "[1, 2, -1]"])
def test_bad_multiplicity_files_are_refused(tmp_path, content):
    (tmp_path / "m.json").write_text(content)
    np.save(tmp_path / "pickled.npy", np.array([1, 2, 3], dtype=object), allow_pickle=True)
    np.save(tmp_path / "broken.npy", np.array([1.0, 2.0, 3.0]))
    for name in ("m.json", "pickled.npy", "broken.npy"):
        assert key_of(partial(multiplicities, str(tmp_path / name), 3, 0)) == "data.duplication"


# hash, sigma, record


def test_the_hash_ignores_order_and_sees_everything_else():
    base = choose(POOL, SubsetSpec(12, duplication=[{"fraction": 0.25, "copies": 3}]))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))

    def changed(**fields):
        return replace(base, **fields).hash

    assert changed(images=base.images[order], multiplicities=base.multiplicities[order]) == base.hash
    assert changed(images=base.images[order]) != base.hash  # the copies now belong to other images
    assert changed(multiplicities=torch.ones(12, dtype=torch.int64)) != base.hash
    assert changed(flip=True) != base.hash
    assert changed(images=base.images.reshape(12, 1, 2, 8)) != base.hash
    touched = base.images.clone()
    touched[5, 0, 1, 2] += 1
    assert changed(images=touched) != base.hash
    assert changed(labels=base.labels + 1, source="other") == base.hash
    assert len(base.hash) == 64
    assert base.hash is base.hash  # computed once


def test_sigma_data_is_the_population_std_of_all_rows():
    chosen = choose(POOL, SubsetSpec(15, duplication=[{"fraction": 0.4, "copies": 7}]))
    rows = chosen.images[chosen.row_to_group].double() / 127.5 - 1
    assert chosen.sigma_data == pytest.approx(rows.std(correction=0).item(), rel=1e-12)
    assert chosen.sigma_data != pytest.approx(choose(POOL, SubsetSpec(15)).sigma_data, rel=1e-6)
    two = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2).contiguous()
    assert choose(pool_of(two), SubsetSpec(2)).sigma_data == 1.0


def test_the_record_survives_json_and_names_the_set(tmp_path):
    spec = SubsetSpec(8, 3, held_out=4, duplication={"power_law": 1.0, "max_copies": 5})
    chosen = choose(POOL, spec)
    file = tmp_path / "training_set.json"
    file.write_text(json.dumps(chosen.record()))
    record = load_record(file)
    assert record == load_record(tmp_path) == chosen.record()
    assert record["hash"] == chosen.hash
    assert record["held_out_hash"] == chosen.held_out_hash
    assert (record["n"], record["held_out"], record["rows"]) == (8, 4, int(chosen.multiplicities.sum()))
    assert record["indices"] == chosen.indices.tolist()
    assert record["shape"] == [1, 4, 4]
    assert record["spec"] == {"n": 8, "seed": 3, "balance": False, "held_out": 4, "flip": False} | {
        "duplication": spec.duplication
    }


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"n": 1}', "\xff"])
def test_bad_records_are_refused(tmp_path, content):
    file = tmp_path / "training_set.json"
    file.write_text(content, encoding="latin-1")
    assert key_of(lambda: load_record(file)) == "training_set"
    assert key_of(lambda: load_record(tmp_path / "none.json")) == "training_set"


@pytest.mark.parametrize("change", [{"n": 9}, {"indices": 3}, {"multiplicities": [1]}])
def test_records_that_contradict_themselves_are_refused(tmp_path, change):
    file = tmp_path / "training_set.json"
    file.write_text(json.dumps(choose(POOL, SubsetSpec(8)).record() | change))
    assert key_of(lambda: load_record(file)) == "training_set"
