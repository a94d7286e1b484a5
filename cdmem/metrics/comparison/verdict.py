"""What may be claimed of a student, by a rule fixed beforehand (docs/verdict.md holds it in words).

The first line that applies is the claim:

1. ``unpaired``: no teacher was sampled on the same seeds.
2. ``not_distilled``: variance ratio outside 0.9-1.1, or rmse to the teacher's endpoints rising.
3. ``nothing_to_transfer``: the teacher's f_mem is not above the held-out control (or, without H, its lower bound is 0).
4. ``amplified``: the paired interval of the difference lies above 0 (Holm p < 0.05).
5. ``undecided``: convergence unknown; learning rate annealed to 0; f_mem or rmse still moving, or too few samples to
   tell; or as much distillation again at the last third's pace would change the answer.
6. ``reduced``: the paired interval lies below 0 (Holm p < 0.05), also at the threshold at which copies are recognised,
   and at equal nearest-image noise. Where there are too few common copies to measure the latter, the Frechet distance
   to H must not be above the teacher's. Where one of these fails: ``undecided``, the student may only be blurrier.
7. ``unchanged``: the paired interval lies within +-MARGIN.
8. ``undecided``: the samples are too few.

The comparison with the teacher at *equal NFE* is another question and is always stated separately.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cdmem.metrics.comparison.convergence import MARGIN

AMPLITUDE = (0.9, 1.1)
SIGNIFICANT = 0.05
HORIZON = 3  # the last third's pace, kept up for as long as the whole distillation took
CLAIMS = ("unpaired", "not_distilled", "nothing_to_transfer", "amplified", "reduced", "unchanged", "undecided")


@dataclass(frozen=True)
class Verdict:
    """The claim and why.

    Attributes:
        claim: one of :data:`CLAIMS`.
        reason: short, for example ``still rising``; empty where the claim says it all.
        statement: one sentence for people.
        checks: every condition looked at and whether it held (None: could not be looked at).
        equal_nfe: sentence about the teacher at the student's own cost, or None.
    """

    claim: str
    reason: str
    statement: str
    checks: dict[str, bool | None] = field(default_factory=dict)
    equal_nfe: str | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def points(difference: dict[str, Any]) -> str:
    """``-12.3 points [-15.0, -9.6]``."""
    low, high = (100 * x for x in difference["ci95"])
    return f"{100 * difference['value']:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _below(difference: dict[str, Any] | None) -> bool | None:
    return None if difference is None else difference["ci95"][1] < 0


def _significant(difference: dict[str, Any]) -> bool:
    return difference.get("p_holm", difference["p_mcnemar"]) < SIGNIFICANT


def unconverged(f_mem: dict[str, Any] | None, rmse: dict[str, Any] | None, annealed: bool) -> str | None:
    """Why the student cannot be called converged; None if it can.

    Args:
        f_mem: record of :func:`~cdmem.metrics.comparison.convergence.convergence`, or None.
        rmse: record of :func:`~cdmem.metrics.comparison.convergence.rmse_convergence`, or None.
        annealed: the learning rate went to 0.
    """
    if f_mem is None or rmse is None:
        return "convergence unknown"
    if f_mem["trend"] == "rising":
        return "still rising"
    if f_mem["trend"] == "falling":
        return "still falling"
    if f_mem["trend"] == "undetermined":
        return "may still be moving"
    if rmse["trend"] == "falling":
        return "rmse still falling"
    if rmse["trend"] != "stopped":
        return "rmse may still be moving"
    return "learning rate annealed to 0" if annealed else None


def judge(
    *,
    variance_ratio: float | None,
    paired: dict[str, Any] | None,
    teacher_ci95: tuple[float, float] | None,
    control_ci95: tuple[float, float] | None,
    f_mem_trend: dict[str, Any] | None,
    rmse_trend: dict[str, Any] | None,
    annealed: bool,
    equal_nfe: dict[str, Any] | None = None,
    as_real: bool | None = None,
    who: str = "the student",
) -> Verdict:
    """Apply the rule of the module.

    Args:
        variance_ratio: student over teacher.
        paired: ``difference`` (with ``p_holm``) and ``matched`` (see `cdmem.metrics.comparison.equal_noise`), or None.
        teacher_ci95: interval of the teacher's f_mem.
        control_ci95: interval of the held-out images' f_mem, or None.
        f_mem_trend: record of the convergence of f_mem, or None.
        rmse_trend: record of the convergence of rmse, or None.
        annealed: the learning rate went to 0.
        equal_nfe: difference to the teacher at the student's NFE, or None.
        as_real: whether the student's Frechet distance to H is not above the teacher's (intervals apart), or None.
        who: subject of the sentences.
    """
    beside = None
    if equal_nfe is not None:
        beside = (
            f"{who} against the teacher at equal NFE: f_mem {points(equal_nfe)} (another question: it is about cost)."
        )
    if paired is None or variance_ratio is None or teacher_ci95 is None:
        text = f"{who}: no teacher was sampled on the same seeds; nothing can be said about a transfer."
        return Verdict("unpaired", "no teacher", text, {}, beside)
    difference, matched = paired["difference"], paired.get("matched") or {}
    trouble = unconverged(f_mem_trend, rmse_trend, annealed)
    change = points(difference)
    drift = 0.0 if f_mem_trend is None else HORIZON * max(f_mem_trend["high"], 0.0)
    checks: dict[str, bool | None] = {
        "amplitude": AMPLITUDE[0] <= variance_ratio <= AMPLITUDE[1],
        "rmse_not_rising": None if rmse_trend is None else rmse_trend["trend"] != "rising",
        "teacher_above_control": teacher_ci95[0] > (control_ci95[1] if control_ci95 else 0.0),
        "converged": None if trouble == "convergence unknown" else trouble is None,
        "significant": _significant(difference),
        "below": _below(difference),
        "below_if_it_went_on": difference["ci95"][1] + drift < 0,
        "below_at_recognition": _below(matched.get("recognised")),
        "below_at_equal_noise": _below(matched.get("difference")),
        "as_real_as_teacher": as_real,
    }

    def verdict(claim: str, reason: str, text: str) -> Verdict:
        return Verdict(claim, reason, f"{who}: {text}", checks, beside)

    if not checks["amplitude"]:
        text = f"not distilled (variance ratio {variance_ratio:.3f} outside 0.9-1.1): no statement on f_mem."
        return verdict("not_distilled", "variance ratio", text)
    if checks["rmse_not_rising"] is False:
        return verdict(
            "not_distilled", "rmse rising", "not distilled (rmse to the teacher rises): no statement on f_mem."
        )
    if not checks["teacher_above_control"]:
        text = "the teacher's f_mem does not exceed the control: there is no memorisation to transfer."
        return verdict("nothing_to_transfer", "teacher at control level", text)
    if difference["ci95"][0] > 0 and checks["significant"]:
        return verdict("amplified", "", f"amplified: f_mem {change} against the teacher on the same seeds.")
    if trouble is not None:
        text = f"undecided: {trouble}. On the same seeds f_mem stands {change} against the teacher"
        if f_mem_trend is not None:
            t = f_mem_trend
            moved = points({"value": t["change"], "ci95": [t["low"], t["high"]]})
            text += f"; over steps {t['from_step']} to {t['to_step']} it moved {moved}"
        return verdict("undecided", trouble, text + ".")
    if checks["below"] and checks["significant"]:
        if not checks["below_if_it_went_on"]:
            text = f"undecided: f_mem stands {change}, but as much distillation again could undo it."
            return verdict("undecided", "could change if it went on", text)
        if checks["below_at_recognition"] is not True or checks["below_at_equal_noise"] is False:
            text = f"undecided: f_mem stands {change}, but not at equal nearest-image noise: it may only be blurrier."
            return verdict("undecided", "may only be blurrier", text)
        if checks["below_at_equal_noise"] is None and as_real is False:
            # Noise, a shift of brightness or an inverted image copies nothing either.
            text = (
                f"undecided: f_mem stands {change}, but the images are farther from held-out ones than the teacher's."
            )
            return verdict("undecided", "may only be damaged", text)
        also = "also at equal nearest-image noise"
        if checks["below_at_equal_noise"] is None:
            also = "also where copies are recognised; too few copies of both models to compare at equal noise"
        return verdict("reduced", "", f"reduced: f_mem {change} against the teacher, {also}.")
    if difference["ci95"][0] >= -MARGIN and difference["ci95"][1] <= MARGIN:
        return verdict(
            "unchanged", "", f"unchanged within {100 * MARGIN:.0f} points: f_mem {change} against the teacher."
        )
    return verdict("undecided", "too few samples", f"undecided: f_mem {change} is neither a change nor its absence.")
