"""The rule for claims: every claim can be reached, every condition decides on its own, and sentences carry numbers."""

from __future__ import annotations

import copy
import json

import pytest

from cdmem.metrics.comparison.convergence import MARGIN
from cdmem.metrics.comparison.verdict import CLAIMS, judge


def difference(value, half=0.02, p=1e-6, ci95=None):
    return {"value": value, "ci95": ci95 or [value - half, value + half], "p_mcnemar": p, "p_holm": p}


def trend(name="stopped", change=0.0, half=0.01):
    return {
        "trend": name,
        "change": change,
        "low": change - half,
        "high": change + half,
        "from_step": 4000,
        "to_step": 6000,
        "samples": 1000,
    }


def inputs(**changes):
    """A case that is ``reduced``, with changes."""
    case = {
        "variance_ratio": 1.01,
        "paired": {
            "difference": difference(-0.3),
            "matched": {"recognised": difference(-0.2), "difference": difference(-0.25), "noise": 2.0},
        },
        "teacher_ci95": (0.55, 0.65),
        "control_ci95": (0.0, 0.01),
        "f_mem_trend": trend(),
        "rmse_trend": trend(),
        "annealed": False,
        "as_real": True,
    }
    return copy.deepcopy(case) | changes


def paired(value=-0.3, recognised=-0.2, noise=-0.25, **options):
    matched = {
        "recognised": None if recognised is None else difference(recognised),
        "difference": None if noise is None else difference(noise),
    }
    return {"difference": difference(value, **options), "matched": matched}


CASES = {
    # what changes against a reduced student -> claim, reason
    "no teacher": ({"paired": None}, "unpaired", "no teacher"),
    "no variance": ({"variance_ratio": None}, "unpaired", "no teacher"),
    "no interval of the teacher": ({"teacher_ci95": None}, "unpaired", "no teacher"),
    "too little variance": ({"variance_ratio": 0.89}, "not_distilled", "variance ratio"),
    "too much variance": ({"variance_ratio": 1.11}, "not_distilled", "variance ratio"),
    "nan variance": ({"variance_ratio": float("nan")}, "not_distilled", "variance ratio"),
    "rmse rises": ({"rmse_trend": trend("rising", 0.2)}, "not_distilled", "rmse rising"),
    "teacher like control": ({"control_ci95": (0.5, 0.6)}, "nothing_to_transfer", "teacher at control level"),
    "teacher at zero": (
        {"control_ci95": None, "teacher_ci95": (0.0, 0.004)},
        "nothing_to_transfer",
        "teacher at control level",
    ),
    "more": ({"paired": paired(0.1)}, "amplified", ""),
    "no curve": ({"f_mem_trend": None}, "undecided", "convergence unknown"),
    "no rmse curve": ({"rmse_trend": None}, "undecided", "convergence unknown"),
    "annealed": ({"annealed": True}, "undecided", "learning rate annealed to 0"),
    "rises": ({"f_mem_trend": trend("rising", 0.05)}, "undecided", "still rising"),
    "falls": ({"f_mem_trend": trend("falling", -0.05)}, "undecided", "still falling"),
    "may move": ({"f_mem_trend": trend("undetermined", 0, 0.1)}, "undecided", "may still be moving"),
    "rmse falls": ({"rmse_trend": trend("falling", -0.2)}, "undecided", "rmse still falling"),
    "rmse may move": ({"rmse_trend": trend("undetermined", 0, 0.1)}, "undecided", "rmse may still be moving"),
    "could be undone": (
        # -0.07 +- 0.02 lies below 0, but 3 * 0.03 more does not.
        {"paired": paired(-0.07), "f_mem_trend": trend(change=0.02)},
        "undecided",
        "could change if it went on",
    ),
    "not recognised": ({"paired": paired(recognised=-0.01)}, "undecided", "may only be blurrier"),
    "recognition unknown": ({"paired": paired(recognised=None)}, "undecided", "may only be blurrier"),
    "not matched": ({"paired": {"difference": difference(-0.3)}}, "undecided", "may only be blurrier"),
    "not at equal noise": ({"paired": paired(noise=-0.01)}, "undecided", "may only be blurrier"),
    "not significant": ({"paired": paired(p=0.06)}, "undecided", "too few samples"),
    "interval over 0": ({"paired": paired(-0.03, half=0.04)}, "undecided", "too few samples"),
    "same": ({"paired": paired(0.0)}, "unchanged", ""),
    "same without H": ({"paired": paired(0.0), "control_ci95": None}, "unchanged", ""),
    "less": ({}, "reduced", ""),
    "less without H": ({"control_ci95": None}, "reduced", ""),
    "damaged without common copies": (
        {"paired": paired(noise=None), "as_real": False},
        "undecided",
        "may only be damaged",
    ),
    "less with common copies, less real": ({"as_real": False}, "reduced", ""),
    "less, reality unknown": ({"paired": paired(noise=None), "as_real": None}, "reduced", ""),
    "less without common copies": ({"paired": paired(noise=None)}, "reduced", ""),
    # Bounds themselves, both sides of each.
    "least amplitude": ({"variance_ratio": 0.9}, "reduced", ""),
    "most amplitude": ({"variance_ratio": 1.1}, "reduced", ""),
    "teacher at the control's bound": (
        {"control_ci95": (0.0, 0.55)},
        "nothing_to_transfer",
        "teacher at control level",
    ),
    "more, from exactly 0": ({"paired": paired(0.05, ci95=[0.0, 0.1])}, "undecided", "too few samples"),
    "less, up to exactly 0": ({"paired": paired(-0.05, ci95=[-0.1, 0.0])}, "undecided", "too few samples"),
    "p at the level": ({"paired": paired(p=0.05)}, "undecided", "too few samples"),
    "p below the level": ({"paired": paired(p=0.0499)}, "reduced", ""),
    "undone to exactly 0": (
        {"paired": paired(-0.5, ci95=[-0.6, -0.375]), "f_mem_trend": trend(change=0.125, half=0.0)},
        "undecided",
        "could change if it went on",
    ),
    "recognised up to exactly 0": ({"paired": paired(recognised=-0.02)}, "undecided", "may only be blurrier"),
    "at the margin": ({"paired": paired(0.0, ci95=[-MARGIN, MARGIN])}, "unchanged", ""),
    "over the margin": ({"paired": paired(0.1, ci95=[-0.01, 0.21])}, "undecided", "too few samples"),
    "just over the margin": ({"paired": paired(0.0, ci95=[-MARGIN, MARGIN + 1e-9])}, "undecided", "too few samples"),
    "just under the margin": ({"paired": paired(0.0, ci95=[-MARGIN - 1e-9, MARGIN])}, "undecided", "too few samples"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_claim(name):
    changes, claim, reason = CASES[name]
    found = judge(**inputs(**changes))
    assert (found.claim, found.reason) == (claim, reason)
    json.dumps(found.record())


def test_every_claim_can_be_reached():
    assert {claim for _, claim, _ in CASES.values()} == set(CLAIMS)


@pytest.mark.parametrize(
    ("check", "name"),
    [
        ("amplitude", "too little variance"),
        ("rmse_not_rising", "rmse rises"),
        ("teacher_above_control", "teacher like control"),
        ("converged", "rises"),
        ("significant", "not significant"),
        ("below", "interval over 0"),
        ("below_if_it_went_on", "could be undone"),
        ("below_at_recognition", "not recognised"),
        ("below_at_equal_noise", "not at equal noise"),
    ],
)
def test_no_reduction_without_each_condition(check, name):
    """All conditions hold for a reduced student; one that fails takes the claim away."""
    assert all(value is True for value in judge(**inputs()).checks.values())
    found = judge(**inputs(**CASES[name][0]))
    failed = {key for key, value in found.checks.items() if value is not True}
    # What lies over 0 today lies over 0 if it went on; a rising rmse is not converged either.
    implied = {"below": {"below_if_it_went_on"}, "rmse_not_rising": {"converged"}}
    assert failed == {check} | implied.get(check, set())
    assert found.claim != "reduced"
    assert set(judge(**inputs()).checks) >= failed


def test_more_memorisation_needs_no_convergence():
    moving = {"f_mem_trend": trend("falling", -0.2), "rmse_trend": None, "annealed": True}
    assert judge(**inputs(paired=paired(0.1), **moving)).claim == "amplified"
    assert judge(**inputs(paired=paired(0.1, p=0.06))).claim == "undecided"


def test_holm_decides_where_there_is_one():
    for value, claim in ((0.1, "amplified"), (-0.3, "reduced")):
        both = paired(value)
        both["difference"] |= {"p_mcnemar": 0.01, "p_holm": 0.06}
        assert judge(**inputs(paired=both)).claim == "undecided"
        del both["difference"]["p_holm"]
        assert judge(**inputs(paired=both)).claim == claim


def test_pace_of_the_last_third_counts_three_times():
    for high, claim in ((0.0499 / 3, "reduced"), (0.0501 / 3, "undecided")):
        f_mem = trend() | {"high": high}
        assert judge(**inputs(paired=paired(-0.07), f_mem_trend=f_mem)).claim == claim


def test_sentences_name_numbers():
    assert "-30.0 points [-32.0, -28.0]" in judge(**inputs(who="student, NFE 2")).statement
    assert judge(**inputs(who="student, NFE 2")).statement.startswith("student, NFE 2: reduced")
    assert "+10.0 points [+8.0, +12.0]" in judge(**inputs(paired=paired(0.1))).statement
    assert "variance ratio 0.890" in judge(**inputs(variance_ratio=0.89)).statement
    rising = judge(**inputs(f_mem_trend=trend("rising", 0.05))).statement
    assert "still rising" in rising and "-30.0 points" in rising
    assert "steps 4000 to 6000" in rising and "+5.0 points [+4.0, +6.0]" in rising
    assert "+0.0 points" in judge(**inputs(paired=paired(0.0))).statement


def test_a_sentence_claims_equal_noise_only_where_it_was_looked_at():
    assert "equal nearest-image noise" in judge(**inputs()).statement
    found = judge(**inputs(paired=paired(noise=None)))
    assert found.checks["below_at_equal_noise"] is None
    assert "equal nearest-image noise" not in found.statement and "recognised" in found.statement


def test_equal_cost_is_another_sentence():
    assert judge(**inputs()).equal_nfe is None
    for changes in ({}, {"paired": None}, {"variance_ratio": 2.0}):
        found = judge(**inputs(equal_nfe=difference(0.15), **changes))
        assert "+15.0 points [+13.0, +17.0]" in found.equal_nfe and "equal NFE" in found.equal_nfe
        assert found.claim == judge(**inputs(**changes)).claim
