r"""The same seeds through teacher and student: where each memorised image goes, and whether the distillation worked.

Pairing by seed turns the comparison into McNemar's: only seeds on which the two disagree carry information, which is
far sharper than two separate intervals. The transfer table is finer still:

======================  =====================================================
kept same               both memorised, the same training image
kept other              both memorised, another training image
lost                    teacher memorised, student not
gained                  student memorised, teacher not
neither                 neither
======================  =====================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.images import to_uint8
from cdmem.metrics.base import SEEDS, SampleMetric
from cdmem.metrics.memorization.ratio import memorized, ratios
from cdmem.metrics.neighbors.index import NearDuplicates, group_index
from cdmem.metrics.statistics import (
    holm,
    mcnemar_exact,
    newcombe_paired_difference,
    share,
    wilcoxon_signed_rank,
    wilson_interval,
)

TRANSFER = ("kept_same", "kept_other", "lost", "gained", "neither")


def transfer_table(teacher: Tensor, student: Tensor, teacher_groups: Tensor, student_groups: Tensor) -> dict[str, int]:
    """Counts of the five fates, see the module: ``teacher``, ``student`` bool (m,), groups int64 (m,), same seeds."""
    both, same = teacher & student, teacher_groups == student_groups
    return {
        "kept_same": int((both & same).sum()),
        "kept_other": int((both & ~same).sum()),
        "lost": int((teacher & ~student).sum()),
        "gained": int((~teacher & student).sum()),
        "neither": int((~teacher & ~student).sum()),
    }


def identity_agreement(first: Tensor, second: Tensor) -> dict[str, float] | None:
    """Do two models that both memorise a seed land on the same image more often than chance?

    Args:
        first: groups of the seeds that both memorise, int64 (b,).
        second: the other model's groups for the same seeds.

    Returns:
        ``same`` with ``ci95`` (Wilson), ``chance`` = sum_i p_i q_i of the two models' own frequencies and Cohen's
        ``kappa`` (None where chance is 1); None without such seeds.
    """
    count = len(first)
    if count == 0:
        return None
    size = int(torch.maximum(first.max(), second.max())) + 1
    p, q = (torch.bincount(g, minlength=size).double() / count for g in (first, second))
    same, chance = int((first == second).sum()), float((p * q).sum())
    kappa = None if chance >= 1 - 1e-12 else (same / count - chance) / (1 - chance)
    return {"same": same / count, "ci95": list(wilson_interval(same, count)), "chance": chance, "kappa": kappa}


def difference(teacher: Tensor, student: Tensor) -> dict[str, Any]:
    """f_mem of the student minus the teacher's on the same seeds, bool (m,) each.

    Returns:
        ``value`` and ``ci95`` (Newcombe 1998, method 10), ``p_mcnemar`` (exact, two-sided).
    """
    counts = (student & teacher, student & ~teacher, ~student & teacher, ~student & ~teacher)
    both, gained, lost, neither = (int(x.sum()) for x in counts)
    value, low, high = newcombe_paired_difference(both, gained, lost, neither)
    return {"value": value, "ci95": [low, high], "p_mcnemar": mcnemar_exact(gained, lost)}


def compare(teacher: dict[str, Tensor], student: dict[str, Tensor], threshold: float) -> dict[str, Any]:
    """The comparison of two models' rows of the same seeds.

    Args:
        teacher: ``seeds`` (m,), ``squared`` (m, >= 2), ``groups`` (m, >= 1), sorted by seed.
        student: the same columns for the same seeds.
        threshold: memorised means d1 / d2 below it.

    Returns:
        ``difference``, ``transfer``, ``identity``, ``log_ratio`` (Wilcoxon on log d1/d2, student minus teacher),
        ``samples``.

    Raises:
        InputError: the seeds differ.
    """
    if not torch.equal(teacher[SEEDS], student[SEEDS]):
        raise InputError("seeds", "...", "the two models were sampled on different seeds", "use the same --seed")
    hit_t, hit_s = (memorized(r["squared"][:, 0], r["squared"][:, 1], threshold) for r in (teacher, student))
    groups_t, groups_s = teacher["groups"][:, 0], student["groups"][:, 0]
    both = hit_t & hit_s
    # A bit-exact copy has ratio 0: as far below every other as uint8 images can tell, one grey level in one pixel.
    floor = 1.0 / float(torch.maximum(teacher["squared"][:, 1].max(), student["squared"][:, 1].max())) ** 0.5
    logs = [np.log(np.maximum(ratios(r["squared"]).numpy(), floor)) for r in (teacher, student)]
    return {
        "difference": difference(hit_t, hit_s),
        "transfer": transfer_table(hit_t, hit_s, groups_t, groups_s),
        "identity": identity_agreement(groups_t[both], groups_s[both]),
        "log_ratio": wilcoxon_signed_rank(logs[1] - logs[0]),
        "samples": len(hit_t),
    }


def adjust(comparisons: Sequence[dict[str, Any]]) -> None:
    """Add ``p_holm`` to the ``difference`` of every comparison: one family, the NFEs of one student."""
    for c, p in zip(comparisons, holm([c["difference"]["p_mcnemar"] for c in comparisons])):
        c["difference"]["p_holm"] = p


class PairedWithTeacher(SampleMetric):
    """Distance of a student's samples to the teacher's ODE endpoints of the same seeds.

    A metric of its own kind: :meth:`update` takes both models' float images.

    Args:
        near_duplicates: grouping, for the basins.
    """

    def __init__(self, near_duplicates: NearDuplicates = "off") -> None:
        super().__init__()
        self.near_duplicates = near_duplicates

    def prepare(self, training_set: TrainingSet) -> PairedWithTeacher:
        """Build the search over T."""
        self.search = group_index(training_set, self.near_duplicates)
        super().prepare(training_set)
        return self

    def columns(self, images: Tensor) -> dict[str, Tensor]:
        """``images``: float32 (B, 2, C, H, W), student and teacher; ``same``: 1 where they share the nearest group."""
        if images.ndim == 4:  # the empty uint8 batch that declares the states
            images = torch.zeros(0, 2, *images.shape[1:])
        nearest = [self.search.index.query(to_uint8(images[:, k]), 1).groups.cpu() for k in (0, 1)]
        return {"images": images.float(), "same": (nearest[0] == nearest[1]).flatten().long()}

    def update(self, student: Tensor, teacher: Tensor, seeds: Tensor) -> None:  # type: ignore[override]
        """Add float images (B, C, H, W) in [-1, 1], not clamped, row k of both from the same seed."""
        super().update(torch.stack([student.cpu(), teacher.cpu()], 1), seeds)

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """``rmse_to_teacher`` (per pixel, [-1, 1] units), ``variance_ratio`` (student / teacher, total variance over
        samples), ``same_basin`` (share with the same nearest training group) with its 95 % Wilson interval."""
        s, t = rows["images"][:, 0].flatten(1).double(), rows["images"][:, 1].flatten(1).double()
        same = int(rows["same"].sum())
        total = [x.var(0, correction=0).sum() for x in (s, t)]
        return {
            "rmse_to_teacher": float((s - t).square().mean().sqrt()),
            "variance_ratio": float(total[0] / total[1]),
            **share("same_basin", same, len(s)),
        }

    @staticmethod
    def squared_errors(rows: dict[str, Tensor]) -> Tensor:
        """Mean squared difference per pixel of every seed, float64 (m,): its mean is rmse_to_teacher squared."""
        pair = rows["images"].double()
        return (pair[:, 0] - pair[:, 1]).flatten(1).square().mean(1)
