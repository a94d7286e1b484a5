"""Where the seeds that a student no longer copies went: to other images, or to a damaged copy of the same one.

A seed is *lost* if the teacher's sample is memorised and the student's is not. If the student forgot, its sample has
nothing to do with the teacher's image, which is then the nearest one by chance alone. If the sample is a copy that was
shifted, zoomed, recoloured or compressed beyond d1/d2 < 1/3, that image is still the nearest, and stands out: its d1/d2
is rarer than in 1 % of held-out images.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cdmem.metrics.comparison.paired import chance_agreement
from cdmem.metrics.memorization.ratio import memorized, ratios
from cdmem.metrics.statistics import fraction

MOST_DAMAGED = 0.2  # share of the lost seeds; above it a reduction is not claimed
LEAST_LOST = 20  # seeds; a share of fewer says nothing


def lost_seeds(
    teacher: dict[str, Tensor], student: dict[str, Tensor], threshold: float, recognised_at: float
) -> dict[str, Any]:
    """The fate of the seeds that the teacher memorises and the student does not.

    Args:
        teacher: rows of `cdmem.metrics.memorization.fraction.MemorizedFraction`, sorted by seed.
        student: rows of the same seeds; with ``tolerant_ratio`` and ``tolerant_group`` where those were measured.
        threshold: memorised means d1 / d2 below it.
        recognised_at: d1 / d2 that 1 % of held-out images pass.

    Returns:
        ``count``; ``nearest_to_same`` (share whose nearest training image is the one that the teacher copied, with
        ``ci95``) and ``chance`` (the same for unrelated seeds); ``damaged`` (those of them with d1 / d2 below
        ``recognised_at``). The shares are None without lost seeds.
    """
    hit_t, hit_s = (memorized(r["squared"][:, 0], r["squared"][:, 1], threshold) for r in (teacher, student))
    lost = hit_t & ~hit_s
    record: dict[str, Any] = {"count": int(lost.sum()), "nearest_to_same": None, "chance": None, "damaged": None}
    if not record["count"]:
        return record
    wanted, nearest = teacher["groups"][lost, 0], student["groups"][lost, 0]
    same = wanted == nearest
    damaged = same & (ratios(student["squared"][lost]) < recognised_at)
    record["nearest_to_same"] = fraction(int(same.sum()), len(same)).record()
    record["chance"] = chance_agreement(wanted, nearest)
    record["damaged"] = fraction(int(damaged.sum()), len(same)).record()
    return record


def blocks(record: dict[str, Any] | None) -> bool | None:
    """Whether so many of the lost seeds are damaged copies that no reduction can be claimed: more than
    :data:`MOST_DAMAGED` of them; None where too few seeds were lost to tell. Of copies that were zoomed, rotated or
    recoloured 42 to 92 % are, of mixtures of two training images about 10 %, of new images none."""
    if record is None or record["count"] < LEAST_LOST:
        return None
    return record["damaged"]["value"] > MOST_DAMAGED
