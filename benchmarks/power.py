"""Power of paired comparisons of f_mem: how many seeds which claim takes.

    python benchmarks/power.py                        # 60 % memorised on one side, margin 3 points, 2,000 draws a cell

A share q of the seeds changes sides between the two models (or looks), so that the fractions differ by `difference`.
Of each draw the package's own intervals say whether it is *equivalent* (Newcombe's paired 90 % interval within the
margin: two one-sided tests at 5 %), and whether it is *below* (the 95 % interval below 0, and McNemar's exact p below
5 %), equivalence being asked first. What is neither is undecided.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from cdmem.metrics.statistics import mcnemar_exact, newcombe_paired_difference

SEEDS = (500, 1000, 2000, 5000, 10_000)
SWITCHING = (0.1, 0.3, 0.5)
DIFFERENCES = (0.0, -0.01, -0.03, -0.05, -0.1, -0.15)


def outcome(table: Sequence[int], margin: float) -> str:
    """``equivalent``, ``below`` or ``undecided`` of a table (both, only the first, only the second, neither)."""
    narrow, wide = (newcombe_paired_difference(*table, confidence=level) for level in (0.9, 0.95))
    if -margin <= narrow.low and narrow.high <= margin:
        return "equivalent"
    return "below" if wide.high < 0 and mcnemar_exact(table[1], table[2]) < 0.05 else "undecided"


def draw(
    seeds: int, switching: float, difference: float, level: float, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Tables of the first against the second side, int64 (draws, 4); ``level`` is the fraction on the second."""
    first, second = (switching + difference) / 2, (switching - difference) / 2
    return rng.multinomial(seeds, [level - second, first, second, 1 - level - first], size=draws)


def needed(switching: float, margin: float, confidence: float, power: float = 0.8) -> int:
    """Seeds for equivalence at a true difference of 0, by the normal approximation."""
    quantiles = stats.norm.ppf(0.5 + confidence / 2) + stats.norm.ppf(0.5 + power / 2)
    return math.ceil(switching * quantiles**2 / margin**2)


def main(level: float, margin: float, draws: int, seed: int) -> None:
    """Print the tables."""
    rng = np.random.default_rng(seed)
    print(f"P(equivalent) / P(below), %: margin {100 * margin:g} points, {draws} draws a cell\n")
    print("| seeds | q | " + " | ".join(f"{100 * d:+g} points" for d in DIFFERENCES) + " |")
    print("|---|---|" + "---|" * len(DIFFERENCES))
    for seeds in SEEDS:
        for switching in SWITCHING:
            cells = []
            for difference in DIFFERENCES:
                if abs(difference) > switching:
                    cells.append("")
                    continue
                said = [outcome(t, margin) for t in draw(seeds, switching, difference, level, draws, rng).tolist()]
                cells.append(" / ".join(f"{100 * said.count(what) / draws:.0f}" for what in ("equivalent", "below")))
            print(f"| {seeds:,} | {100 * switching:g} % | {' | '.join(cells)} |", flush=True)
    print("\nSeeds for a power of 80 % of equivalence at a true difference of 0 (normal approximation):\n")
    print("| interval | " + " | ".join(f"q = {100 * q:g} %" for q in SWITCHING) + " |\n|---|" + "---|" * len(SWITCHING))
    for confidence in (0.9, 0.95):
        row = " | ".join(f"{needed(q, margin, confidence):,}" for q in SWITCHING)
        print(f"| {100 * confidence:g} % | {row} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", type=float, default=0.6, help="fraction memorised by the second side")
    parser.add_argument("--margin", type=float, default=0.03)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
