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
from cdmem.images import to_float, to_uint8
from cdmem.metrics.base import SEEDS, SampleMetric
from cdmem.metrics.memorization.ratio import memorized, ratios
from cdmem.metrics.neighbors.index import NearDuplicates, group_index
from cdmem.metrics.statistics import (
    Estimate,
    fisher_exact,
    holm,
    mcnemar_exact,
    newcombe_difference,
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


def chance_agreement(first: Tensor, second: Tensor) -> float:
    """Share of equal groups among unrelated pairs: sum_i p_i q_i of the two frequencies; groups int64 (m,), m >= 1."""
    size = int(torch.maximum(first.max(), second.max())) + 1
    p, q = (torch.bincount(g, minlength=size).double() / len(g) for g in (first, second))
    return float((p * q).sum())


def identity_agreement(first: Tensor, second: Tensor) -> dict[str, Any] | None:
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
    same, chance = int((first == second).sum()), chance_agreement(first, second)
    kappa = None if chance >= 1 - 1e-12 else (same / count - chance) / (1 - chance)
    return {"same": same / count, "ci95": list(wilson_interval(same, count)), "chance": chance, "kappa": kappa}


def difference(teacher: Tensor, student: Tensor, paired: bool = True, error: float = 0.05) -> dict[str, Any]:
    """f_mem of the student minus the teacher's, bool (m,) each; on the same seeds unless ``paired`` is False.

    ``error`` is that of ``ci95``, two-sided, and of ``ci90``, one-sided: smaller where several looks share it.

    Returns:
        ``value``, ``ci95`` and ``ci90`` (Newcombe 1998, method 10, of pairs or of independent samples) and ``p_value``
        (two-sided: McNemar's exact test, or Fisher's).
    """
    intervals = [difference_interval(teacher, student, c, paired) for c in (1 - error, 1 - 2 * error)]
    if paired:
        p = mcnemar_exact(int((student & ~teacher).sum()), int((~student & teacher).sum()))
    else:
        p = fisher_exact(int(student.sum()), len(student), int(teacher.sum()), len(teacher))
    return intervals[0].record() | {"ci90": list(intervals[1][1:]), "p_value": p}


def difference_interval(teacher: Tensor, student: Tensor, confidence: float, paired: bool = True) -> Estimate:
    """Newcombe's interval of the student's share minus the teacher's, bool (m,) each."""
    if not paired:
        counts = int(student.sum()), len(student), int(teacher.sum()), len(teacher)
        return newcombe_difference(*counts, confidence)
    cells = (student & teacher, student & ~teacher, ~student & teacher, ~student & ~teacher)
    both, gained, lost, neither = (int(x.sum()) for x in cells)
    return newcombe_paired_difference(both, gained, lost, neither, confidence)


def compare(
    teacher: dict[str, Tensor],
    student: dict[str, Tensor],
    threshold: float,
    paired: bool = True,
    error: float = 0.05,
) -> dict[str, Any]:
    """The comparison of two models' rows of the same seeds.

    Args:
        teacher: ``seeds`` (m,), ``squared`` (m, >= 2), ``groups`` (m, >= 1), sorted by seed.
        student: the same columns for the same seeds.
        threshold: memorised means d1 / d2 below it.
        paired: whether a seed means the same for both models.
        error: of the intervals, see :func:`difference`.

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
        "difference": difference(hit_t, hit_s, paired, error),
        "transfer": transfer_table(hit_t, hit_s, groups_t, groups_s),
        "identity": identity_agreement(groups_t[both], groups_s[both]),
        "log_ratio": wilcoxon_signed_rank(logs[1] - logs[0]),
        "samples": len(hit_t),
    }


def adjust(comparisons: Sequence[dict[str, Any]]) -> None:
    """Add ``p_holm`` to the ``difference`` of every comparison: one family, the NFEs of one student."""
    for c, p in zip(comparisons, holm([c["difference"]["p_value"] for c in comparisons])):
        c["difference"]["p_holm"] = p


class PairedWithTeacher(SampleMetric):
    """Distance of a student's samples to the teacher's ODE endpoints of the same seeds, as both would be saved.

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
        """``images``: float32 (B, 2, C, H, W), student and teacher; ``basins``: their nearest groups, int64 (B, 2)."""
        if images.ndim == 4:  # the empty uint8 batch that declares the states
            images = torch.zeros(0, 2, *images.shape[1:])
        nearest = [self.search.index.query(to_uint8(images[:, k]), 1).groups.cpu() for k in (0, 1)]
        return {"images": images.float(), "basins": torch.cat(nearest, 1)}

    def update(self, student: Tensor, teacher: Tensor, seeds: Tensor) -> None:  # type: ignore[override]
        """Add float images (B, C, H, W) in [-1, 1], not clamped, row k of both from the same seed."""
        super().update(torch.stack([student.cpu(), teacher.cpu()], 1), seeds)

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """On the images as they would be saved, clamped to uint8: ``rmse_to_teacher`` (per pixel, [-1, 1] units),
        ``variance_ratio`` (student / teacher, total variance over samples), ``same_basin`` (share with the same nearest
        training group) with its 95 % Wilson interval, ``same_basin_chance`` (for unrelated seeds). Of the models' own
        values, pixels that no image has: ``rmse_unclamped``, ``variance_ratio_unclamped``."""
        first, second = rows["basins"].T
        rmse, ratio = _distance(_saved(rows))
        rmse_unclamped, ratio_unclamped = _distance(rows["images"])
        return {
            "rmse_to_teacher": rmse,
            "variance_ratio": ratio,
            **share("same_basin", int((first == second).sum()), len(first)),
            "same_basin_chance": chance_agreement(first, second),
            "rmse_unclamped": rmse_unclamped,
            "variance_ratio_unclamped": ratio_unclamped,
        }

    @staticmethod
    def squared_errors(rows: dict[str, Tensor]) -> Tensor:
        """Mean squared difference per pixel of every seed, float64 (m,): its mean is rmse_to_teacher squared."""
        pair = _saved(rows).double()
        return (pair[:, 0] - pair[:, 1]).flatten(1).square().mean(1)


def _saved(rows: dict[str, Tensor]) -> Tensor:
    """Both models' images after saving, float32 (m, 2, C, H, W) in [-1, 1]."""
    return to_float(to_uint8(rows["images"]))


def _distance(pair: Tensor) -> tuple[float, float]:
    """Root mean square difference, and ratio of total variances, of images (m, 2, C, H, W)."""
    student, teacher = (pair[:, k].flatten(1).double() for k in (0, 1))
    total = [x.var(0, correction=0).sum() for x in (student, teacher)]
    return float((student - teacher).square().mean().sqrt()), float(total[0] / total[1])
