"""Where the seeds that a student no longer copies went: to other images, or to a damaged copy of the same one.

A seed is *lost* if the teacher's sample is memorised and the student's is not. If the student forgot, its sample has
nothing to do with the teacher's image, which is then the nearest one by chance alone. If the sample is a copy that was
shifted, zoomed, recoloured or compressed beyond d1/d2 < 1/3, that image is still the nearest, and stands out: its d1/d2
is rarer than in 1 % of held-out images.

A mixture of two training images may stand out too, but as often beside the other image as beside the teacher's. So the
share of seeds that stand out beside *another* image is taken off: it is nothing for damaged copies.

With the models exchanged the same numbers tell of the seeds that a student *gained*: whether the teacher had copied
them already, damaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cdmem.metrics.comparison.paired import chance_agreement
from cdmem.metrics.memorization.ratio import memorized, ratios
from cdmem.metrics.statistics import fraction

MOST_DAMAGED = 0.1  # share of the seeds that make a difference; above it the difference is not claimed
LEAST_LOST = 20  # seeds; a share of fewer says nothing


def lost_seeds(
    teacher: dict[str, Tensor], student: dict[str, Tensor], threshold: float, recognised_at: float
) -> dict[str, Any]:
    """The fate of the seeds that the first model memorises and the second does not.

    Args:
        teacher: rows of `cdmem.metrics.memorization.fraction.MemorizedFraction`, sorted by seed.
        student: rows of the same seeds.
        threshold: memorised means d1 / d2 below it.
        recognised_at: d1 / d2 that 1 % of held-out images pass.

    Returns:
        ``count``; ``nearest_to_same`` (share whose nearest training image is the one that the teacher copied, with
        ``ci95``) and ``chance`` (the same for unrelated seeds); ``damaged`` (those of them with d1 / d2 below
        ``recognised_at``); ``like_another`` (as near to another image). The shares are None without lost seeds.
    """
    hit_t, hit_s = (memorized(r["squared"][:, 0], r["squared"][:, 1], threshold) for r in (teacher, student))
    lost = hit_t & ~hit_s
    record: dict[str, Any] = {"count": int(lost.sum())}
    if not record["count"]:
        return record | dict.fromkeys(("nearest_to_same", "chance", "damaged", "like_another"))
    wanted, nearest = teacher["groups"][lost, 0], student["groups"][lost, 0]
    same = wanted == nearest
    seen = ratios(student["squared"][lost]) < recognised_at
    record["nearest_to_same"] = fraction(int(same.sum()), len(same)).record()
    record["chance"] = chance_agreement(wanted, nearest)
    record["damaged"] = fraction(int((same & seen).sum()), len(same)).record()
    record["like_another"] = fraction(int((~same & seen).sum()), len(same)).record()
    return record


def damaged_share(lost: dict[str, Any]) -> float | None:
    """Share of the lost seeds that are damaged copies, beyond what mixtures show; None of fewer than 20."""
    if lost["count"] < LEAST_LOST:
        return None
    return lost["damaged"]["value"] - lost["like_another"]["value"]


def damaged_share_unpaired(difference: Mapping[str, Any], recognised: Mapping[str, Any]) -> float | None:
    """Share of a difference of f_mem that is gone at the threshold of recognition, for models without common seeds:
    nobody knows which image a seed should have copied, but how many copies there are past d1/d2 < 1/3. None where the
    difference may be 0."""
    low, high = difference["ci95"]
    return None if low <= 0 <= high else 1 - recognised["value"] / difference["value"]
