"""The rule for claims: every claim can be reached, every condition decides on its own, and sentences carry numbers."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from cdmem.metrics.comparison.claims import LIMIT_MARGIN, MARGIN
from cdmem.metrics.comparison.verdict import CLAIMS, Evidence, judge


def interval(value: float, half: float = 0.02, p: float = 1e-6, **bounds: list[float]) -> dict[str, Any]:
    record = {"value": value, "ci95": [value - half, value + half], "ci90": [value - 0.8 * half, value + 0.8 * half]}
    return record | {"p_value": p, "p_holm": p} | bounds


def lost(same: float = 0.02, damaged: float = 0.0) -> dict[str, Any]:
    shares = {"nearest_to_same": interval(same, 0.01), "damaged": interval(damaged, 0.01)}
    return {"count": 300, "chance": 0.01, **shares}


def pair(value: float = -0.3, tolerant: float | None = -0.28, **changes: Any) -> dict[str, Any]:
    """A student whose difference shows by every measure."""
    seen = {"recognised": interval(value), "difference": interval(value), "noise": 2.0}
    usual = {
        "difference": interval(value),
        "tolerant": None if tolerant is None else interval(tolerant),
        "matched": seen,
        "images": {"teacher": 90, "student": 88, "ratio": 0.98, "fewer": False},
        "lost_seeds": lost(),
        "damaged_share": 0.0,
        "damaged": False,
        "seeds_belong_together": True,
    }
    return usual | changes


def at(noise: float | None = -0.3, recognised: float | None = -0.3) -> dict[str, Any]:
    values = {"recognised": recognised, "difference": noise}
    return {"matched": {k: None if v is None else interval(v) for k, v in values.items()}}


def limits(strict: float = -0.2, tolerant: float | None = -0.2, half: float = 0.03) -> dict[str, Any]:
    return {"strict": interval(strict, half), "tolerant": "no such" if tolerant is None else interval(tolerant, half)}


REDUCED: dict[str, Any] = {
    "variance_ratio": 1.01,
    "teacher_ci95": (0.55, 0.65),
    "control_ci95": (0.0, 0.01),
    "pair": pair(),
    "limit": limits(),
    "slow_phase": {"after": interval(-0.25)},
    "rmse_trend": {"trend": "falling"},
    "as_real": True,
    "distillation": "2,300 steps (147,200 images seen)",
}


def evidence(**changes: Any) -> Evidence:
    return Evidence(**copy.deepcopy(REDUCED) | changes)


SAME = {"pair": pair(0.0, 0.0), "limit": limits(0.0, 0.0)}
MORE = {"pair": pair(0.1, 0.1, **at(0.1, 0.1)), "limit": limits(0.1, 0.1), "slow_phase": None}
FEW = {"images": {"teacher": 90, "student": 12, "ratio": 0.2, "fewer": True}}
DAMAGED = {"damaged_share": 0.3, "damaged": True}
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # what changes against a reduced student -> claim, reason
    "less": ({}, "reduced", ""),
    "less in the end too": ({"limit": None, "converged": True, "slow_phase": None}, "reduced", ""),
    "less, not for ever": ({"limit": limits(0.0, 0.0), "slow_phase": None}, "transient", ""),
    "a little less, and it stays": (
        {"pair": pair(-0.06, -0.06), "limit": limits(-0.04, -0.04, 0.01)},
        "undecided",
        "reduced now, and 67 % of it stays in the limit",
    ),
    "the same": (SAME, "unchanged", ""),
    "more": (MORE, "amplified", ""),
    "more of fewer": (MORE | {"pair": MORE["pair"] | FEW}, "amplified, of fewer images", ""),
    "no teacher": ({"pair": None}, "unpaired", "no teacher"),
    "no variance": ({"variance_ratio": None}, "unpaired", "no teacher"),
    "no interval of the teacher": ({"teacher_ci95": None}, "unpaired", "no teacher"),
    "too little variance": ({"variance_ratio": 0.899}, "not_distilled", "variance ratio"),
    "least variance": ({"variance_ratio": 0.9}, "reduced", ""),
    "most variance": ({"variance_ratio": 1.1}, "reduced", ""),
    "too much variance": ({"variance_ratio": 1.101}, "not_distilled", "variance ratio"),
    "no number": ({"variance_ratio": float("nan")}, "not_distilled", "variance ratio"),
    "rmse rises": ({"rmse_trend": {"trend": "rising"}}, "not_distilled", "rmse rising"),
    "rmse unknown": ({"rmse_trend": None}, "reduced", ""),
    "teacher like control": ({"control_ci95": (0.5, 0.55)}, "nothing_to_transfer", "teacher at control level"),
    "teacher above control": ({"control_ci95": (0.5, 0.549)}, "reduced", ""),
    "teacher at zero": (
        {"control_ci95": None, "teacher_ci95": (0.0, 0.004)},
        "nothing_to_transfer",
        "teacher at control level",
    ),
    "no curve": ({"limit": None}, "undecided", "no limit can be given: no evaluations along the distillation"),
    "no limit": ({"limit": {"strict": "still linear"}}, "undecided", "no limit can be given: still linear"),
    "limit not known": ({"limit": limits(-0.02, -0.02, 0.1)}, "undecided", "reduced now, limit unclear"),
    "only tolerant limit unknown": ({"limit": limits(tolerant=None)}, "reduced", ""),
    "tolerant copies return": ({"limit": limits(tolerant=0.0)}, "undecided", "another limit for tolerant copies"),
    "not significant": (
        {"pair": pair(difference=interval(-0.3, p=0.05))},
        "undecided",
        "the difference now is unclear, but reduced in the limit",
    ),
    "just significant": ({"pair": pair(difference=interval(-0.3, p=0.0499))}, "reduced", ""),
    "tolerant unknown": ({"pair": pair(tolerant=None)}, "undecided", "tolerant copies unavailable"),
    "not tolerant": ({"pair": pair(tolerant=-0.02)}, "undecided", "not for tolerant copies"),
    "not recognised": ({"pair": pair(**at(recognised=-0.02))}, "undecided", "may only be blurrier"),
    "recognition unknown": ({"pair": pair(**at(recognised=None))}, "undecided", "may only be blurrier"),
    "not at equal noise": ({"pair": pair(**at(noise=-0.02))}, "undecided", "may only be blurrier"),
    "only sharper": (MORE | {"pair": pair(0.1, 0.1, **at(0.02, 0.1))}, "undecided", "may only be sharper"),
    "damaged copies": ({"pair": pair(**DAMAGED)}, "undecided", "damaged"),
    "more, damaged copies of the teacher": (MORE | {"pair": MORE["pair"] | DAMAGED}, "undecided", "damaged"),
    "damage unknown": ({"pair": pair(damaged=None, damaged_share=None)}, "reduced", ""),
    "few common copies": ({"pair": pair(**at(noise=None))}, "reduced", ""),
    "few common copies, unreal": (
        {"pair": pair(**at(noise=None)), "as_real": False},
        "undecided",
        "may only be damaged",
    ),
    "few common copies, unknown": ({"pair": pair(**at(noise=None)), "as_real": None}, "reduced", ""),
    "less real, common copies": ({"as_real": False}, "reduced", ""),
    "no slow phase": ({"slow_phase": None}, "undecided", "no phase at a lower learning rate"),
    "slow phase closes it": (
        {"slow_phase": {"after": interval(-0.02)}},
        "undecided",
        "closes at a lower learning rate",
    ),
    # Bounds themselves, both sides of each.
    "less, up to exactly 0": ({"pair": pair(difference=interval(-0.1, ci95=[-0.2, 0.0]))}, "undecided", None),
    "less, up to just below 0": ({"pair": pair(difference=interval(-0.1, ci95=[-0.2, -1e-9]))}, "reduced", ""),
    "more, from exactly 0": (MORE | {"pair": MORE["pair"] | {"difference": interval(0.1, 0.1)}}, "undecided", None),
    "at the margin": (SAME | {"pair": pair(difference=interval(0.0, ci90=[-MARGIN, MARGIN]))}, "unchanged", ""),
    "above the margin": (
        SAME | {"pair": pair(difference=interval(0.0, ci90=[-MARGIN, MARGIN + 1e-9]))},
        "undecided",
        None,
    ),
    "below the margin": (
        SAME | {"pair": pair(difference=interval(0.0, ci90=[-MARGIN - 1e-9, MARGIN]))},
        "undecided",
        None,
    ),
    "limit at its margin": (
        {"limit": {"strict": interval(0, ci90=[-LIMIT_MARGIN, LIMIT_MARGIN]), "tolerant": None}},
        "transient",
        "",
    ),
    "limit over its margin": (
        {"limit": {"strict": interval(0, ci90=[-LIMIT_MARGIN - 1e-9, LIMIT_MARGIN]), "tolerant": None}},
        "undecided",
        None,
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_claim(name):
    changes, claim, reason = CASES[name]
    verdict = judge(evidence(**changes))
    assert verdict.claim == claim
    assert reason is None or verdict.reason == reason
    json.dumps(verdict.record())


def test_every_claim_can_be_reached():
    assert {claim for _, claim, _ in CASES.values()} == set(CLAIMS)


def test_many_seeds_take_no_claim_away():
    """A difference of 1 point is equivalence, however sure it is."""
    for half in (0.019, 0.005, 1e-6):
        small = {"pair": pair(-0.01, -0.01, difference=interval(-0.01, half)), "limit": limits(-0.01, -0.01, half)}
        assert judge(evidence(**small)).claim == "unchanged"


def test_holm_decides_where_there_is_one():
    for p_holm, claim in ((0.06, "undecided"), (0.04, "reduced")):
        difference = interval(-0.3) | {"p_value": 0.01, "p_holm": p_holm}
        assert judge(evidence(pair=pair(difference=difference))).claim == claim
    del difference["p_holm"]
    assert judge(evidence(pair=pair(difference=difference))).claim == "reduced"


@pytest.mark.parametrize(
    ("check", "name"),
    [
        ("amplitude", "too little variance"),
        ("rmse_not_rising", "rmse rises"),
        ("teacher_above_control", "teacher like control"),
        ("for_tolerant_copies", "not tolerant"),
        ("limit_of_tolerant_copies", "tolerant copies return"),
        ("where_recognised", "not recognised"),
        ("at_equal_noise", "not at equal noise"),
        ("no_damaged_copies", "damaged copies"),
        ("outlasts_a_slow_phase", "slow phase closes it"),
    ],
)
def test_no_reduction_without_each_condition(check, name):
    """All conditions hold for a reduced student; one that fails takes the claim away."""
    assert all(value is True for value in judge(evidence()).checks.values())
    verdict = judge(evidence(**CASES[name][0]))
    assert {key for key, value in verdict.checks.items() if value is not True} == {check}
    assert verdict.claim != "reduced"


def test_sentences_name_numbers():
    said = judge(evidence(who="student, 2 NFE")).statement
    assert said.startswith("student, 2 NFE: reduced. f_mem stands -30.0 points [-32.0, -28.0]")
    assert "on the same seeds after 2,300 steps (147,200 images seen)" in said
    assert "in the limit of long distillation -20.0 points [-23.0, -17.0]" in said
    assert "88 different images, the teacher 90" in said
    assert "2.0 % [1.0, 3.0] of the 300 seeds lost are nearest to the very image" in said and "(chance 1.0 %)" in said
    assert "variance ratio 0.899" in judge(evidence(variance_ratio=0.899)).statement
    assert "taken as given" in judge(evidence(converged=True)).statement
    assert "no limit can be given (still linear)" in judge(evidence(limit={"strict": "still linear"})).statement
    said = [judge(evidence(**CASES[name][0])).statement for name in CASES if "damaged copies" in name]
    assert all("(30 % of the difference are copies that are only damaged" in text for text in said)
    assert ["the student's)" in said[0], "the teacher's)" in said[1]] == [True, True]
    other = judge(evidence(pair=pair(seeds_belong_together=False))).statement
    assert "seeds that have nothing in common" in other and "the same seeds" not in other


def test_what_the_verdict_carries():
    verdict = judge(evidence())
    assert verdict.coverage["student"] == 88 and verdict.lost_seeds["count"] == 300
    assert verdict.limit["value"] == -0.2 and verdict.specific is None
    assert judge(evidence(limit={"strict": "why"})).limit == {"unavailable": "why"}
    specific = {"holds": True, "statement": "it lies below every control"}
    verdict = judge(evidence(specific=specific))
    assert verdict.specific == specific and verdict.statement.endswith("it lies below every control.")
    # A student that failed forgets more than every control; a reduction that is none is specific to nothing.
    assert judge(evidence(specific=specific, variance_ratio=0.5)).specific is None
    little = pair(-0.02, -0.02, difference=interval(-0.02, 0.005))
    small = judge(evidence(specific=specific, pair=little, limit=limits(0.0, 0.0)))
    assert small.claim == "unchanged" and "control" not in small.statement


def test_equal_cost_is_another_sentence():
    assert judge(evidence()).equal_nfe is None
    for changes in ({}, {"pair": None}, {"variance_ratio": 2.0}):
        verdict = judge(evidence(equal_nfe=interval(0.15), **changes))
        assert "+15.0 points [+13.0, +17.0]" in verdict.equal_nfe and "equal NFE" in verdict.equal_nfe
        assert verdict.claim == judge(evidence(**changes)).claim
