"""A student beside its teacher: the comparison of their samples that the verdict rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cdmem.metrics.comparison.equal_noise import equal_noise
from cdmem.metrics.comparison.images_copied import images_copied
from cdmem.metrics.comparison.lost_seeds import MOST_DAMAGED, damaged_share, damaged_share_unpaired, lost_seeds
from cdmem.metrics.comparison.paired import compare, difference
from cdmem.metrics.memorization.ratio import memorized
from cdmem.metrics.neighbors.index import GroupIndex

TOLERANT = "tolerant_ratio"  # column of rows where tolerant copies were looked for


@dataclass(frozen=True)
class Samples:
    """A model's samples of the seeds that are compared.

    Attributes:
        images: uint8 (m, C, H, W), in seed order.
        rows: ``seeds``, ``squared`` (m, 2), ``groups`` (m, 2); with ``tolerant_ratio`` and ``tolerant_group`` (m,)
            where tolerant copies were looked for.
    """

    images: Tensor
    rows: dict[str, Tensor]


@dataclass(frozen=True)
class Yardstick:
    """What counts as a copy.

    Attributes:
        search: over T.
        threshold: memorised means d1/d2 below it.
        control: d1/d2 of held-out images, or None without them.
        tolerant_threshold: of the tolerant ratio, or None where H is too small for it.
    """

    search: GroupIndex
    threshold: float
    control: Tensor | None
    tolerant_threshold: float | None

    def strict(self, rows: dict[str, Tensor]) -> Tensor:
        """Which samples are memorised, bool (m,)."""
        return memorized(rows["squared"][:, 0], rows["squared"][:, 1], self.threshold)

    def tolerant(self, rows: dict[str, Tensor]) -> Tensor | None:
        """Which samples are copies if shifts, mirroring and contrast are tolerated, bool (m,); None if unknown."""
        if self.tolerant_threshold is None or TOLERANT not in rows:
            return None
        return self.strict(rows) | (rows[TOLERANT] < self.tolerant_threshold)


def pair_record(
    teacher: Samples,
    student: Samples,
    yardstick: Yardstick,
    belong: bool,
    cheap: Samples | None = None,
    error: float = 0.05,
) -> dict[str, Any]:
    """Everything that is said of a student against its teacher.

    Args:
        teacher: at full cost.
        student: on the same seeds.
        yardstick: what counts as a copy.
        belong: whether a seed means the same for both: they share its nearest image more often than by chance.
        cheap: the teacher at the student's own cost, or None.
        error: of the intervals, see :func:`~cdmem.metrics.comparison.paired.difference`.

    Returns:
        the record of `cdmem.metrics.comparison.paired.compare`, with ``seeds_belong_together``, ``tolerant``
        (difference of tolerant copies, or None), ``matched`` (at equal noise), ``lost_seeds`` and ``gained_seeds``
        (None without pairs), ``damaged_share`` (of the seeds that make the difference) and ``damaged`` (whether these
        are too many; None where nobody can tell), ``images`` and ``equal_nfe``.
    """
    y = yardstick
    pair = compare(teacher.rows, student.rows, y.threshold, belong, error)
    loose = [y.tolerant(s.rows) for s in (teacher, student)]
    matched = equal_noise(
        teacher.images, student.images, teacher.rows, student.rows, y.search, y.threshold, y.control, belong, error
    )
    copied = [s.rows["groups"][y.strict(s.rows), 0].numpy() for s in (teacher, student)]
    pair |= {
        "seeds_belong_together": belong,
        "tolerant": None if loose[0] is None or loose[1] is None else difference(loose[0], loose[1], belong, error),
        "matched": matched,
        "images": images_copied(*copied),
        "lost_seeds": None,
        "gained_seeds": None,
        "equal_nfe": None if cheap is None else compare(cheap.rows, student.rows, y.threshold, belong),
    }
    if belong:
        for key, rows in (
            ("lost_seeds", (teacher.rows, student.rows)),
            ("gained_seeds", (student.rows, teacher.rows)),
        ):
            pair[key] = lost_seeds(*rows, y.threshold, matched["recognised_at"])
        share = damaged_share(pair["lost_seeds" if pair["difference"]["value"] < 0 else "gained_seeds"])
    else:
        share = damaged_share_unpaired(pair["difference"], matched["recognised"])
    return pair | {"damaged_share": share, "damaged": None if share is None else share > MOST_DAMAGED}
