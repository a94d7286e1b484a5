"""Which claims do students get whose truth is known? The simulated teachers and students of the tests.

Each world has training images, held-out images and a teacher whose samples copy or are new; its students forgot, copy
more, copy fewer images, or have the same images damaged, for all seeds or for half of them. Convergence is taken as
given; everything else is the audit's rule::

    python benchmarks/known_students.py --worlds 5
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.judged import ALLOWED, Bench
from support.students import World


def main() -> None:
    """Print a line a truth: pairs, claims and how many the truth does not allow; then the names of these."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=5, help="sets of images, seeds 0, 1, ...")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    options = parser.parse_args()
    claims: dict[str, Counter[str]] = {truth: Counter() for truth in ALLOWED}
    wrong = []
    for seed in range(options.first, options.first + options.worlds):
        torch.manual_seed(0)
        bench = Bench(World(seed))
        for name, student in bench.world.students.items():
            verdict = bench.verdict(name)[0]
            claims[student.truth][verdict["claim"]] += 1
            if verdict["claim"] not in ALLOWED[student.truth]:
                wrong.append(f"world {seed}, {name}: {student.truth}, but {verdict['statement']}")
    for truth, found in claims.items():
        false = sum(count for claim, count in found.items() if claim not in ALLOWED[truth])
        said = ", ".join(f"{claim} {count}" for claim, count in found.most_common())
        print(f"| {truth} | {found.total()} | {said} | {false} |")
    print("\n".join(wrong))


if __name__ == "__main__":
    main()
