"""Would a look at part of a long run have claimed what the whole run excludes? The prefix test on real runs.

Each run is a study's folder (`student/evaluations`, `audit/teacher_*.npz`) that distilled at a constant rate. At every
look the claim of the table now x limit is made from the evaluations so far, once with an error of 5 % at each look and
once with 5 % over all looks; the whole run's 95 % interval of the limit is the judge::

    python benchmarks/prefixes.py runs/long/seed=0 runs/long/seed=1 --half_life 300
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from cdmem.io.arrays import read_arrays
from cdmem.metrics.comparison.claims import LIMIT_MARGIN, MARGIN, claim, state
from cdmem.metrics.comparison.limit import LEAST_EVALUATIONS, fit_limit, paired_differences, possible
from cdmem.metrics.comparison.looks import confidences

NAME = re.compile(r"step=(\d+)_nfe=(\d+)\.npz")
Flags = tuple[np.ndarray, np.ndarray]  # seeds, copies


@dataclass(frozen=True)
class Curve:
    """Paired differences (K, m) at steps (K,), and what their mean can be."""

    steps: np.ndarray
    differences: np.ndarray
    bounds: tuple[float, float]

    def first(self, count: int) -> Curve:
        return Curve(self.steps[:count], self.differences[:count], self.bounds)


def flags(file: Path, threshold: float) -> Flags:
    """Seeds and copies of one evaluation."""
    rows = read_arrays(file, ("seeds", "squared1", "squared2"))
    return rows["seeds"], rows["squared1"] < threshold**2 * rows["squared2"]


def curves(study: Path, threshold: float, until: int | None) -> dict[int, Curve]:
    """The curve of every NFE, without the evaluation at step 0.

    Raises:
        SystemExit: a study without the teacher's samples, or with other seeds.
    """
    teachers = sorted((study / "audit").glob("teacher_*.npz"), key=lambda f: (-int(f.stem.split("nfe=")[1]), f.name))
    if not teachers:
        raise SystemExit(f"{study}: no audit/teacher_*.npz")
    teacher, by_nfe = flags(teachers[0], threshold), {}
    for file in sorted((study / "student/evaluations").glob("step=*_nfe=*.npz")):
        named = NAME.fullmatch(file.name)
        if named and int(named[1]) > 0 and (until is None or int(named[1]) <= until):
            by_nfe.setdefault(int(named[2]), {})[int(named[1])] = flags(file, threshold)
    found = {}
    for nfe, by_step in sorted(by_nfe.items()):
        pairs = paired_differences(teacher, by_step)
        if isinstance(pairs, str):
            raise SystemExit(f"{study}, NFE {nfe}: {pairs}")
        seeds = next(iter(by_step.values()))[0]
        copied = int((np.isin(teacher[0], seeds) & teacher[1]).sum())
        found[nfe] = Curve(*pairs, possible(copied, len(seeds)))
    return found


def look(curve: Curve, spacing: float, confidence: tuple[float, float]) -> dict[str, object]:
    """What would have been claimed."""
    last = curve.differences[-1]
    error = float(last.std(ddof=1)) / np.sqrt(len(last))
    narrow, wide = (error * float(stats.norm.ppf(0.5 + c / 2)) for c in confidence)
    value = float(last.mean())
    now = state((value - narrow, value + narrow), (value - wide, value + wide), MARGIN)
    limit = fit_limit(curve.steps, curve.differences, spacing, curve.bounds)
    base = {"step": int(curve.steps[-1]), "now": value}
    if isinstance(limit, str):
        made, reason = claim(now, None, limit)
        return base | {"limit": None, "claim": made, "reason": reason}
    interval = limit.interval(confidence[1])
    where = state(limit.interval(confidence[0]), interval, LIMIT_MARGIN)
    made, reason = claim(now, where, stays=limit.value / (value or np.inf))
    return base | {"limit": list(interval), "claim": made, "reason": reason}


def excluded(made: str, whole: list[float] | None) -> bool:
    """Whether the whole run's interval leaves no room for what the claim says of the limit."""
    if whole is None or made == "undecided":
        return False
    if made == "reduced":
        return whole[0] >= 0
    if made == "amplified":
        return whole[1] <= 0
    return whole[0] > LIMIT_MARGIN or whole[1] < -LIMIT_MARGIN


def prefixes(curve: Curve, spacing: float, every: int, spend: bool) -> dict[str, object]:
    """All looks at one curve, ``every`` so many evaluations from the twelfth on, and which of them were wrong."""
    whole = look(curve, spacing, (0.90, 0.95))
    looks = []
    for number, seen in enumerate(range(LEAST_EVALUATIONS, len(curve.steps) + 1, every), 1):
        confidence = confidences(number) if spend else (0.90, 0.95)
        one = look(curve.first(seen), spacing, confidence)
        looks.append(one | {"excluded": excluded(str(one["claim"]), whole["limit"])})  # type: ignore[arg-type]
    first = next((x for x in looks if x["claim"] != "undecided"), None)
    return {"whole": whole, "looks": looks, "first": first, "wrong": any(x["excluded"] for x in looks)}


def main() -> None:
    """Print a line a run, NFE and way of counting the error, then the share of curves that were wrong at some look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--half_life", type=float, default=0.0, help="of the evaluated average, in steps")
    parser.add_argument("--every", type=int, default=2, help="evaluations between looks")
    parser.add_argument("--until", type=int, help="last step of the constant rate")
    parser.add_argument("--threshold", type=float, default=1 / 3)
    parser.add_argument("--out", type=Path, help="JSON file for all looks")
    options = parser.parse_args()
    found = []
    for study in options.studies:
        for nfe, curve in curves(study, options.threshold, options.until).items():
            for spend in (False, True):
                one = prefixes(curve, 3 * options.half_life, options.every, spend)
                found.append({"study": str(study), "nfe": nfe, "spending": spend, **one})
                whole, first = one["whole"], one["first"]
                said = "never" if first is None else f"{first['claim']} at {first['step']}"  # type: ignore[index]
                print(
                    f"{study} NFE {nfe}, {'over all looks' if spend else 'at each look'}: first claim {said};", end=" "
                )
                print(f"whole run {whole['claim']} {whole['limit']} {whole['reason']};", end=" ")  # type: ignore[index]
                print("EXCLUDED" if one["wrong"] else "none excluded", flush=True)
    for spend in (False, True):
        wrong = [bool(x["wrong"]) for x in found if x["spending"] == spend]
        print(f"spending {spend}: {sum(wrong)} of {len(wrong)} curves claimed at some look what the whole run excludes")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
