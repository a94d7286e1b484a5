"""Had f_mem stopped rising? The rule against hand-made curves."""

from __future__ import annotations

import numpy as np
import pytest

from cdmem.metrics.convergence import MARGIN, classify, convergence


def curve(*fractions: float, m: int = 2000) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    seeds = np.arange(m)
    return {100 * (k + 1): (seeds, seeds < round(f * m)) for k, f in enumerate(fractions)}


@pytest.mark.parametrize(
    ("fractions", "trend"),
    [
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "rising"),
        ((0.1, 0.2, 0.3, 0.4, 0.4, 0.4), "stopped"),
        ((0.6, 0.6, 0.6, 0.5, 0.45, 0.4), "falling"),
    ],
)
def test_trend(fractions, trend):
    assert convergence(curve(*fractions)).trend == trend


def test_few_samples_decide_nothing():
    """Ten of forty at both ends, but on other seeds: the interval is far wider than the margin."""
    early, late = np.arange(40) < 10, np.arange(40) >= 30
    judged = convergence({200: (np.arange(40), early), 300: (np.arange(40), late)})
    assert judged.trend == "undetermined" and judged.change == 0 and judged.high > MARGIN


def test_only_the_last_third_counts():
    judged = convergence(curve(0.0, 0.9, 0.5, 0.5, 0.5, 0.5))
    assert (judged.from_step, judged.to_step, judged.trend) == (400, 600, "stopped")


def test_one_evaluation_is_no_trend():
    assert convergence(curve(0.1)) is None and convergence({}) is None


def test_classes_are_exclusive_at_the_margin():
    assert classify(-MARGIN, MARGIN) == "stopped"
    assert classify(-MARGIN - 1e-9, MARGIN) == "undetermined"
    assert classify(1e-9, MARGIN) == "rising" and classify(-MARGIN, -1e-9) == "falling"
