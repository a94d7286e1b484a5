"""Certified feature search equals float64 brute force, also where float32 products cannot tell."""

from __future__ import annotations

import pytest
import torch

from cdmem.errors import InputError
from cdmem.metrics.neighbors import features as feature_neighbors
from cdmem.metrics.neighbors.features import FeatureIndex


def draw(n, width, seed, dtype=torch.float32):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def brute_force(rows, groups, queries, k, exclude=None):
    """k best groups by float64 differences, ties to the lowest row."""
    values, ids, nearest = [], [], []
    for j, query in enumerate(queries.double()):
        squared = (rows.double() - query).square().sum(1).tolist()
        best = {}
        for row, (d, g) in enumerate(zip(squared, groups.tolist())):
            if exclude is None or g != int(exclude[j]):
                best[g] = min(best.get(g, (float("inf"), row)), (d, row))
        ranked = sorted((d, row, g) for g, (d, row) in best.items())[:k]
        missing = k - len(ranked)
        values.append([d for d, _, _ in ranked] + [float("inf")] * missing)
        ids.append([g for _, _, g in ranked] + [-1] * missing)
        nearest.append(ranked[0][1] if ranked else 0)
    return torch.tensor(values, dtype=torch.float64), torch.tensor(ids), torch.tensor(nearest)


def same(found, want):
    return all(torch.equal(a, b) for a, b in zip((found.squared, found.groups, found.nearest), want))


CASES = {
    "plain": lambda: (draw(300, 40, 0), draw(50, 40, 1)),
    "float64": lambda: (draw(300, 40, 0, torch.float64), draw(50, 40, 1, torch.float64)),
    "far from the origin": lambda: (draw(300, 40, 0) + 1e4, draw(50, 40, 1) + 1e4),
    "copies and near copies": lambda: (draw(300, 40, 0), draw(300, 40, 0)[:50] + 1e-6 * draw(50, 40, 1)),
    "equal rows": lambda: (draw(30, 40, 0).repeat(10, 1), draw(30, 40, 0)),
    "near ties": lambda: (1e3 + 1e-4 * draw(300, 40, 0), 1e3 + 1e-4 * draw(50, 40, 1)),
    "one outlier": lambda: (torch.cat([draw(299, 40, 0), torch.full((1, 40), 1e6)]), draw(50, 40, 1)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_equals_brute_force(case, k):
    rows, queries = CASES[case]()
    found = FeatureIndex(rows).query(queries, k)
    assert same(found, brute_force(rows, torch.arange(len(rows)), queries, k))


@pytest.mark.parametrize("size", [2, 40, 400])
def test_groups_larger_than_the_candidates(size):
    """40 rows of the nearest group fill the first candidates, 400 also the second: then all rows are compared."""
    rows = draw(800, 20, 2)
    groups = torch.arange(800) // size
    rows[:size] = rows[0] + 1e-3 * draw(size, 20, 3)
    queries = torch.cat([rows[:2] + 1e-4, draw(20, 20, 4)])
    found = FeatureIndex(rows, groups).query(queries, 2, exclude=None)
    assert same(found, brute_force(rows, groups, queries, 2))
    assert bool(found.certified[:2].all()) is (size < 400)


def test_the_own_group_can_be_left_out():
    rows, groups = draw(60, 10, 5), torch.arange(60) // 3
    found = FeatureIndex(rows, groups).query(rows, 2, exclude=groups)
    assert same(found, brute_force(rows, groups, rows, 2, groups)) and bool((found.squared > 0).all())


def test_fewer_groups_than_asked_for():
    rows, groups = draw(40, 10, 6), torch.arange(40) // 20
    found = FeatureIndex(rows, groups).query(rows[:3], 4, exclude=groups[:3])
    assert same(found, brute_force(rows, groups, rows[:3], 4, groups[:3]))
    assert found.squared[:, 1:].isinf().all() and (found.groups[:, 1:] == -1).all()


def test_well_separated_rows_are_certified_and_near_ties_are_not():
    assert FeatureIndex(draw(300, 40, 0)).query(draw(50, 40, 1)).certified.all()
    rows, queries = CASES["one outlier"]()
    # The outlier pulls the centre away from all others, and large products round coarsely: honest, though right.
    assert not FeatureIndex(rows).query(queries).certified.any()


@pytest.mark.parametrize("entries", [64, 1000, 2**22])
def test_blocks_do_not_matter(monkeypatch, entries):
    rows, queries = CASES["copies and near copies"]()
    want = FeatureIndex(rows).query(queries, 3)
    monkeypatch.setattr(feature_neighbors, "TABLE_ENTRIES", entries)
    monkeypatch.setattr(feature_neighbors, "PAIR_ENTRIES", entries)
    found = FeatureIndex(rows).query(queries, 3)
    assert same(found, (want.squared, want.groups, want.nearest))


def test_autocast_and_low_precision_settings_do_not_reach_the_products():
    rows, queries = draw(300, 40, 0), draw(50, 40, 1)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = FeatureIndex(rows).query(queries)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert same(found, brute_force(rows, torch.arange(300), queries, 2)) and found.certified.all()


def test_wrong_features_are_refused():
    with pytest.raises(InputError):
        FeatureIndex(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(InputError):
        FeatureIndex(draw(3, 4, 0)).query(draw(3, 5, 0))
    for bad in (float("nan"), float("inf")):
        rows = draw(3, 4, 0)
        rows[1, 2] = bad
        with pytest.raises(InputError, match="finite"):
            FeatureIndex(rows)
        with pytest.raises(InputError, match="finite"):
            FeatureIndex(draw(3, 4, 0)).query(rows)


@pytest.mark.parametrize("scale", [1e-25, 1e-20, 1e12, 1e20])
def test_squares_beyond_the_range_of_float32(scale):
    """Products that vanish or overflow prove nothing."""
    rows, queries = draw(300, 40, 0, torch.float64) * scale, draw(50, 40, 1, torch.float64) * scale
    found = FeatureIndex(rows).query(queries)
    assert same(found, brute_force(rows, torch.arange(300), queries, 2))
    assert bool(found.certified.all()) is (scale == 1e12)


def test_many_neighbours_are_certified_too():
    rows, queries = draw(2000, 40, 0), draw(20, 40, 1)
    found = FeatureIndex(rows).query(queries, 51)
    assert same(found, brute_force(rows, torch.arange(2000), queries, 51)) and found.certified.all()


def test_no_queries_give_empty_columns():
    found = FeatureIndex(draw(5, 4, 0)).query(draw(0, 4, 0), 3)
    assert found.squared.shape == found.groups.shape == (0, 3) and found.nearest.shape == found.certified.shape == (0,)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e18, 1e19])
def test_balls_are_decided_exactly(scale):
    """Against float64 differences: copies, near copies and points at a radius, which are outside."""
    draw = torch.Generator().manual_seed(5)
    rows = scale * torch.randn(70, 40, generator=draw)
    queries = torch.cat([rows[:20], rows[20:40] * (1 + 1e-6), scale * torch.randn(30, 40, generator=draw)])
    squared = (queries.double()[:, None] - rows.double()).square().sum(2)
    of_rows, of_queries = squared.sort(0).values[3], squared.sort(1).values[:, 4]  # each is one of the distances
    parts = list(FeatureIndex(rows).inside(queries, of_rows, of_queries))
    assert torch.equal(torch.cat([part[1] for part in parts]), squared < of_rows)
    assert torch.equal(torch.cat([part[2] for part in parts]), squared < of_queries[:, None])
    assert [len(queries[part[0]]) for part in parts] == [len(part[1]) for part in parts]


def test_balls_a_block_at_a_time(monkeypatch):

    draw = torch.Generator().manual_seed(6)
    rows, queries = torch.randn(9, 3, generator=draw), torch.randn(7, 3, generator=draw)
    radii = torch.full((9,), 2.0).double(), torch.full((7,), 3.0).double()
    whole = next(iter(FeatureIndex(rows).inside(queries, *radii)))
    monkeypatch.setattr(feature_neighbors, "TABLE_ENTRIES", 18)
    parts = list(FeatureIndex(rows).inside(queries, *radii))
    assert [p[0] for p in parts] == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    for k in (1, 2):
        assert torch.equal(torch.cat([p[k] for p in parts]), whole[k])
