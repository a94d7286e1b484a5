"""The same seeds through teacher and student: did the distillation work, and does it land in the same basin?"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from cdmem.images import to_uint8
from cdmem.metrics.neighbors import NeighborIndex
from cdmem.metrics.statistics import wilson_interval

SUMS = ("count", "same", "squared_error")
MOMENTS = ("student_sum", "student_squares", "teacher_sum", "teacher_squares")


class PairedWithTeacher(Metric):
    """Distance of a student's samples to the teacher's ODE endpoints of the same seeds.

    Args:
        index: search over T, for the basins.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, index: NeighborIndex) -> None:
        super().__init__()
        self.index = index
        for name in (*SUMS, *MOMENTS):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Add float images (B, C, H, W) in [-1, 1], not clamped, row k of both from the same seed."""
        s, t = (x.to(self.device, torch.float64) for x in (student, teacher))
        same = self.index.query(to_uint8(student)).group1 == self.index.query(to_uint8(teacher)).group1
        self.count = self.count + len(s)
        self.same = self.same + same.sum().to(self.device)
        self.squared_error = self.squared_error + (s - t).square().flatten(1).mean(1).sum()
        self.student_sum = self.student_sum + s.sum(0)
        self.student_squares = self.student_squares + s.square().sum(0)
        self.teacher_sum = self.teacher_sum + t.sum(0)
        self.teacher_squares = self.teacher_squares + t.square().sum(0)

    def _variance(self, who: str) -> Tensor:
        """Total variance: over samples, summed over pixels."""
        mean = getattr(self, f"{who}_sum") / self.count
        return (getattr(self, f"{who}_squares") / self.count - mean.square()).sum()

    def compute(self) -> dict[str, float]:
        """``rmse_to_teacher`` (per pixel, [-1, 1] units), ``variance_ratio`` (student / teacher, total variance over
        samples), ``same_basin`` (share with the same nearest training group) with its 95 % Wilson interval."""
        low, high = wilson_interval(int(self.same), int(self.count))
        return {
            "rmse_to_teacher": float((self.squared_error / self.count).sqrt()),
            "variance_ratio": float(self._variance("student") / self._variance("teacher")),
            "same_basin": float(self.same / self.count),
            "same_basin_low": low,
            "same_basin_high": high,
        }
