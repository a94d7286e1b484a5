"""What may be claimed of a student, by a rule fixed beforehand (docs/verdict.md holds it in words).

The first line that applies is the claim:

1. ``unpaired``: no teacher was sampled.
2. ``not_distilled``: variance ratio of the images outside 0.9-1.1, or rmse to the teacher's endpoints rising.
3. ``nothing_to_transfer``: the teacher's f_mem is not above the held-out control (or, without H, its lower bound is 0).
4. The table *now x limit* of `cdmem.metrics.comparison.claims`: ``reduced``, ``transient``, ``unchanged``,
   ``amplified`` or ``undecided``.
5. What the table calls a difference must be one for tolerant copies too, where copies are recognised, and at equal
   noise; it must not consist of damaged copies, and a reduction must outlast a phase at a tenth of the learning rate.
   Otherwise ``undecided``.

The comparison with the teacher at *equal NFE* is another question and is always stated separately.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cdmem.metrics.comparison.claims import LIMIT_MARGIN, MARGIN, State, claim, state

AMPLITUDE = (0.9, 1.1)
SIGNIFICANT = 0.05
OF_FEWER = ", of fewer images"
CLAIMS = (
    "unpaired",
    "not_distilled",
    "nothing_to_transfer",
    "reduced",
    "transient",
    "unchanged",
    "amplified",
    "amplified" + OF_FEWER,
    "undecided",
)
NO_STATEMENT = ("unpaired", "not_distilled", "nothing_to_transfer")
SIDES: dict[str, State] = {"reduced": "below", "transient": "below", "amplified": "above"}
Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the rule looks at.

    Attributes:
        variance_ratio: student over teacher, of the images.
        teacher_ci95: interval of the teacher's f_mem, or None without teacher.
        control_ci95: interval of the held-out images' f_mem, or None.
        pair: the comparison on the same seeds, see `cdmem.audit.pairs`, or None.
        limit: of the paired difference along the distillation, by ``strict`` and ``tolerant``: record of
            `cdmem.metrics.comparison.limit`, or why there is none, as text.
        ceiling: the perfect student of this recipe, minus the teacher: ``value``, ``ci95``; None if unknown.
        slow_phase: change of the difference in the phase at a lower rate, with ``ci95``; None without one.
        rmse_trend: record of the convergence of rmse, or None.
        converged: taken as given by the user: the limit is what is seen now.
        as_real: whether the student's Frechet distance to H is not above the teacher's (intervals apart), or None.
        equal_nfe: difference to the teacher at the student's NFE, or None.
        specific: comparison with the study's controls, see `cdmem.metrics.comparison.specific`, or None.
        distillation: how much of it there was, in words; empty if unknown.
        who: subject of the sentences.
    """

    variance_ratio: float | None
    teacher_ci95: tuple[float, float] | None
    control_ci95: tuple[float, float] | None = None
    pair: Record | None = None
    limit: Mapping[str, Record | str] | None = None
    ceiling: Record | None = None
    slow_phase: Record | None = None
    rmse_trend: Record | None = None
    converged: bool = False
    as_real: bool | None = None
    equal_nfe: Record | None = None
    specific: Record | None = None
    distillation: str = ""
    who: str = "the student"


@dataclass(frozen=True)
class Verdict:
    """The claim and why.

    Attributes:
        claim: one of :data:`CLAIMS`.
        reason: short, for example ``limit unclear``; empty where the claim says it all.
        statement: one sentence for people.
        checks: every condition looked at and whether it held (None: could not be looked at).
        equal_nfe: sentence about the teacher at the student's own cost, or None.
        coverage: how many different images both copy.
        limit: value, interval, exponent and first step of the limit, or why there is none; with ``ceiling``, the
            perfect student of this recipe against the teacher, where it is known.
        lost_seeds: what became of the seeds that the teacher alone copies.
        specific: whether the controls of the study differ, or None; also where nothing can be stated.
    """

    claim: str
    reason: str
    statement: str
    checks: dict[str, bool | None] = field(default_factory=dict)
    equal_nfe: str | None = None
    coverage: Record | None = None
    limit: Record | None = None
    lost_seeds: Record | None = None
    specific: Record | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def points(difference: Record) -> str:
    """``-12.3 points [-15.0, -9.6]``."""
    low, high = (100 * x for x in difference["ci95"])
    return f"{100 * difference['value']:+.1f} points [{low:+.1f}, {high:+.1f}]"


def state_now(difference: Record) -> State:
    """Where the student stands against the teacher; a difference must be significant in its family of tests."""
    where = state(difference["ci90"], difference["ci95"], MARGIN)
    significant = difference.get("p_holm", difference["p_value"]) < SIGNIFICANT
    return where if where == "equivalent" or significant else "unclear"


def now_and_limit(difference: Record, limit: Record | str | None, converged: bool) -> tuple[str, str]:
    """Claim and reason by the table."""
    now = state_now(difference)
    if converged:
        return claim(now, now)
    if limit is None or isinstance(limit, str):
        return claim(now, None, limit or "no evaluations along the distillation")
    where = state(limit["ci90"], limit["ci95"], LIMIT_MARGIN)
    return claim(now, where, stays=limit["value"] / (difference["value"] or math.inf))


def on_side(difference: Record | None, side: State) -> bool | None:
    """Whether a difference lies below or above 0 with its 95 % interval; None without one."""
    if difference is None:
        return None
    low, high = difference["ci95"]
    return bool(high < 0) if side == "below" else bool(low > 0)


def judge(evidence: Evidence) -> Verdict:
    """Apply the rule of the module."""
    e = evidence
    beside = None
    if e.equal_nfe is not None:
        beside = f"{e.who} against the teacher at equal NFE: f_mem {points(e.equal_nfe)} (another question: its cost)."
    pair = e.pair or {}
    limit = (e.limit or {}).get("strict")
    reached: Record | None = {"unavailable": limit} if isinstance(limit, str) else limit
    if e.ceiling is not None:
        reached = dict(reached or {}) | {"ceiling": {key: e.ceiling[key] for key in ("value", "ci95")}}
    about: dict[str, Any] = {
        "equal_nfe": beside,
        "coverage": pair.get("images"),
        "limit": reached,
        "lost_seeds": pair.get("lost_seeds"),
        "specific": e.specific,
    }

    def verdict(what: str, reason: str, text: str, checks: dict[str, bool | None] | None = None) -> Verdict:
        if what in NO_STATEMENT:
            about["specific"] = None
        return Verdict(what, reason, f"{e.who}: {text}", checks or {}, **about)

    if not pair or e.variance_ratio is None or e.teacher_ci95 is None:
        return verdict("unpaired", "no teacher", "no teacher was sampled; nothing can be said about a transfer.")
    checks = ground(e)
    if not checks["amplitude"]:
        text = f"not distilled (variance ratio {e.variance_ratio:.3f} outside 0.9-1.1): no statement on f_mem."
        return verdict("not_distilled", "variance ratio", text, checks)
    if checks["rmse_not_rising"] is False:
        text = "not distilled (rmse to the teacher rises): no statement on f_mem."
        return verdict("not_distilled", "rmse rising", text, checks)
    if not checks["teacher_above_control"]:
        text = "the teacher's f_mem does not exceed the control: there is no memorisation to transfer."
        return verdict("nothing_to_transfer", "teacher at control level", text, checks)
    what, reason = now_and_limit(pair["difference"], limit, e.converged)
    side = SIDES.get(what)
    checks |= conditions(e, side or ("above" if pair["difference"]["value"] > 0 else "below"), what)
    if side is not None:
        reason = objection(what, side, checks, e)
        what = "undecided" if reason else what
    if what == "amplified" and (pair.get("images") or {}).get("fewer"):
        what += OF_FEWER
    return verdict(what, reason, sentence(what, reason, e), checks)


def ground(e: Evidence) -> dict[str, bool | None]:
    """What must hold before anything is claimed."""
    assert e.variance_ratio is not None and e.teacher_ci95 is not None
    return {
        "amplitude": AMPLITUDE[0] <= e.variance_ratio <= AMPLITUDE[1],
        "rmse_not_rising": None if e.rmse_trend is None else e.rmse_trend["trend"] != "rising",
        "teacher_above_control": e.teacher_ci95[0] > (e.control_ci95[1] if e.control_ci95 else 0.0),
        "seeds_belong_together": (e.pair or {}).get("seeds_belong_together"),
    }


def conditions(e: Evidence, side: State, what: str) -> dict[str, bool | None]:
    """What a difference to the teacher must outlast; None where it could not be looked at."""
    pair = e.pair or {}
    noise, damaged = pair.get("matched") or {}, pair.get("damaged")
    tolerant = (e.limit or {}).get("tolerant")
    limit_agrees = None
    if not e.converged and isinstance(tolerant, Mapping):
        wanted = {"reduced": "below", "amplified": "above"}.get(what, "equivalent")
        limit_agrees = state(tolerant["ci90"], tolerant["ci95"], LIMIT_MARGIN) == wanted
    return {
        "difference": on_side(pair["difference"], side),
        "for_tolerant_copies": on_side(pair.get("tolerant"), side),
        "limit_of_tolerant_copies": limit_agrees,
        "where_recognised": on_side(noise.get("recognised"), side),
        "at_equal_noise": on_side(noise.get("difference"), side),
        "as_real_as_teacher": e.as_real,
        "no_damaged_copies": None if damaged is None else not damaged,
        "outlasts_a_slow_phase": None if e.slow_phase is None else on_side(e.slow_phase["after"], "below"),
    }


def objection(what: str, side: State, checks: Mapping[str, bool | None], e: Evidence) -> str:
    """Why a difference cannot be claimed; empty if it can."""
    blurrier = "may only be blurrier" if side == "below" else "may only be sharper"
    if checks["for_tolerant_copies"] is None:
        return "tolerant copies unavailable"
    if checks["for_tolerant_copies"] is False:
        return "not for tolerant copies"
    if checks["limit_of_tolerant_copies"] is False:
        return "another limit for tolerant copies"
    if checks["where_recognised"] is not True or checks["at_equal_noise"] is False:
        return blurrier
    if checks["no_damaged_copies"] is False and what != "transient":  # which says that they become whole
        return "damaged"
    if side == "below" and checks["at_equal_noise"] is None and checks["as_real_as_teacher"] is False:
        return "may only be damaged"  # noise, a shift of brightness or an inverted image copies nothing either
    if what == "reduced" and not e.converged and checks["outlasts_a_slow_phase"] is not True:
        missing = checks["outlasts_a_slow_phase"] is None
        return "no phase at a lower learning rate" if missing else "closes at a lower learning rate"
    return ""


EXPLAINED = {
    "not for tolerant copies": "copies that tolerate shifts, mirroring and contrast show no such difference",
    "tolerant copies unavailable": "they need 99 held-out images",
    "may only be blurrier": "at equal noise no such difference is left",
    "may only be sharper": "at equal noise no such difference is left",
    "may only be damaged": "the images are farther from held-out ones than the teacher's",
    "no phase at a lower learning rate": "a constant rate's plateau may be the optimiser's noise",
}


def sentence(what: str, reason: str, e: Evidence) -> str:
    """The statement: claim, difference, distillation, limit, images, lost seeds."""
    pair = e.pair or {}
    change = points(pair["difference"])
    after = f" after {e.distillation}" if e.distillation else ""
    seeds = "the same seeds" if pair.get("seeds_belong_together", True) else "seeds that have nothing in common with it"
    said = f"{what}{f': {reason}' if reason else ''}"
    if reason == "damaged":
        whose = "the student's" if pair["difference"]["value"] < 0 else "the teacher's"
        said += f" ({100 * pair['damaged_share']:.0f} % of the difference are copies that are only damaged, {whose})"
    elif reason in EXPLAINED:
        said += f" ({EXPLAINED[reason]})"
    parts = [f"{said}. f_mem stands {change} against the teacher on {seeds}{after}"]
    parts.append(_limit_words(what, e))
    if e.ceiling is not None:
        parts.append(f"a perfect student of this recipe stands at {points(e.ceiling)}")
    images = pair.get("images") or {}
    if images and (images["fewer"] or what.startswith(("reduced", "amplified"))):
        parts.append(f"it copies {images['student']} different images, the teacher {images['teacher']}")
    lost = pair.get("lost_seeds") or {}
    if lost.get("nearest_to_same") and lost["count"] >= 20:
        same, low, high = (100 * x for x in (lost["nearest_to_same"]["value"], *lost["nearest_to_same"]["ci95"]))
        parts.append(
            f"{same:.1f} % [{low:.1f}, {high:.1f}] of the {lost['count']} seeds lost are nearest to the very image "
            f"that the teacher copied (chance {100 * lost['chance']:.1f} %)"
        )
    if pair["difference"]["ci95"][1] < 0 and what != "unchanged":
        parts.append((e.specific or {}).get("statement", "").rstrip("."))
    return "; ".join(part for part in parts if part) + "."


def _limit_words(what: str, e: Evidence) -> str:
    """The limit in words, with the interval that the claim rests on."""
    limit = (e.limit or {}).get("strict")
    if e.converged:
        return "convergence was taken as given"
    if limit is None:
        return ""
    if isinstance(limit, str):
        return f"no limit can be given ({limit})"
    if what in ("transient", "unchanged"):  # equivalent by the 90 % interval
        low, high = (100 * x for x in limit["ci90"])
        words = f"in the limit of long distillation {100 * limit['value']:+.1f} points [{low:+.1f}, {high:+.1f}] (90 %)"
    else:
        words = f"in the limit of long distillation {points(limit)}"
    return words + (f"; {limit['law']}" if limit.get("law") else "")
