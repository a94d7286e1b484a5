"""The table of now x limit, cell by cell, and the states' bounds from both sides."""

from __future__ import annotations

import pytest

from cdmem.metrics.comparison.claims import claim, state

TINY = 1e-9


@pytest.mark.parametrize(
    ("ci90", "ci95", "expected"),
    [
        ((-0.03, 0.03), (-0.04, 0.04), "equivalent"),
        ((-0.03 - TINY, 0.02), (-0.04, 0.03), "unclear"),
        ((-0.02, 0.03 + TINY), (-0.03, 0.04), "unclear"),
        # Equivalence is asked first: a small difference that is certain stays within the margin.
        ((-0.02, -0.01), (-0.025, -0.005), "equivalent"),
        ((-0.05, -0.01), (-0.06, -TINY), "below"),
        ((-0.05, -0.01), (-0.06, 0.0), "unclear"),
        ((0.01, 0.05), (TINY, 0.06), "above"),
        ((0.01, 0.05), (0.0, 0.06), "unclear"),
    ],
)
def test_states(ci90, ci95, expected):
    assert state(ci90, ci95, 0.03) == expected


TABLE = {
    ("below", "below"): ("reduced", ""),
    ("below", "equivalent"): ("transient", ""),
    ("below", "above"): ("undecided", "reduced now, but amplified in the limit"),
    ("below", "unclear"): ("undecided", "reduced now, limit unclear"),
    ("below", None): ("undecided", "no limit can be given: too few"),
    ("equivalent", "below"): ("undecided", "unchanged now, but reduced in the limit"),
    ("equivalent", "equivalent"): ("unchanged", ""),
    ("equivalent", "above"): ("undecided", "unchanged now, but amplified in the limit"),
    ("equivalent", "unclear"): ("undecided", "unchanged now, limit unclear"),
    ("equivalent", None): ("undecided", "no limit can be given: too few"),
    ("above", "below"): ("undecided", "amplified now, but reduced in the limit"),
    ("above", "equivalent"): ("undecided", "amplified now, but not in the limit"),
    ("above", "above"): ("amplified", ""),
    ("above", "unclear"): ("undecided", "amplified now, limit unclear"),
    ("above", None): ("undecided", "no limit can be given: too few"),
    ("unclear", "below"): ("undecided", "the difference now is unclear, but reduced in the limit"),
    ("unclear", "equivalent"): ("undecided", "the difference now is unclear, unchanged in the limit"),
    ("unclear", "above"): ("undecided", "the difference now is unclear, but amplified in the limit"),
    ("unclear", "unclear"): ("undecided", "the difference now is unclear, limit unclear"),
    ("unclear", None): ("undecided", "no limit can be given: too few"),
}


@pytest.mark.parametrize("cell", TABLE, ids=str)
def test_every_cell(cell):
    assert claim(cell[0], cell[1], "too few") == TABLE[cell]


def test_what_mostly_stays_is_not_transient():
    """-4 points now and -3 in the limit: outside the one margin, inside the other, and hardly a matter of patience."""
    assert claim("below", "equivalent", stays=0.75) == ("undecided", "reduced now, and 75 % of it stays in the limit")
    assert claim("below", "equivalent", stays=0.5)[0] == "transient"
    for now, limit in TABLE.keys() - {("below", "equivalent")}:
        assert claim(now, limit, "too few", 0.75) == TABLE[now, limit]
