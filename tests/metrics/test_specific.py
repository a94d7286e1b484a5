"""Is a reduction specific to the distillation? The table of states, and differences of limits against simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cdmem.metrics.comparison.claims import LIMIT_MARGIN, MARGIN
from cdmem.metrics.comparison.specific import Control, difference_of_limits, specific_record


def interval(value, half=0.02):
    return {"value": value, "ci95": [value - half, value + half], "ci90": [value - 0.84 * half, value + 0.84 * half]}


STATES = {
    "below": interval(-0.2),
    "above": interval(0.2),
    "equivalent": interval(0.0),
    "unclear": interval(-0.02, 0.05),
}


@pytest.mark.parametrize(
    ("states", "holds"),
    [
        (["below"], True),
        (["below", "below"], True),
        (["equivalent"], False),
        (["above"], False),
        (["unclear"], None),
        (["below", "equivalent"], False),
        (["below", "unclear"], None),
        (["unclear", "above"], False),  # one that copies no more decides, whatever the others
    ],
)
def test_the_table(states, holds):
    controls = [Control(f"control {k}", STATES[where]) for k, where in enumerate(states)]
    found = specific_record(None, controls)
    assert found["holds"] is holds and [row["state"] for row in found["controls"]] == states
    assert [row["difference"] for row in found["controls"]] == [STATES[where] for where in states]
    assert json.loads(json.dumps(found)) == found
    said = {True: "is specific", False: "is not specific", None: "open"}[holds]
    assert said in found["statement"]
    decisive = {True: ["below"], False: ["equivalent", "above"], None: ["unclear"]}[holds]
    named = [f"control {k}" in found["statement"] for k in range(len(states))]
    assert named == [where in decisive for where in states]


def test_without_controls_there_is_nothing_to_say():
    assert specific_record(interval(-0.2), []) is None


def test_trained_controls_are_compared_by_their_limits():
    """Now it stands far below, because the control learns faster; in the limit they are the same, and the reverse."""
    fast = Control("regression", interval(-0.4), interval(-0.2, 0.01), trained=True)
    assert specific_record(interval(-0.2, 0.01), [fast])["holds"] is False
    slow = Control("regression", interval(0.1), interval(0.1), trained=True)
    found = specific_record(interval(-0.2), [slow])
    assert found["holds"] is True and found["controls"][0]["difference"]["value"] == pytest.approx(-0.3)
    # A stopped teacher is not trained along: its value counts, whatever the student's limit.
    assert specific_record("no limit", [Control("stopped", interval(-0.1))])["holds"] is True


@pytest.mark.parametrize("limits", [("why not", interval(0.0)), (interval(0.0), "why not"), (None, None)])
def test_no_limit_leaves_it_open(limits):
    student, control = limits
    found = specific_record(student, [Control("regression", interval(-0.4), control, trained=True)])
    assert found["holds"] is None and found["controls"][0]["difference"] is None


def test_margins_are_those_of_claims():
    """Of values 3 points, of limits 5."""
    for half, where in ((MARGIN, "equivalent"), (MARGIN + 1e-9, "unclear")):
        control = Control("stopped", {"value": 0.0, "ci90": [-half, half], "ci95": [-0.1, 0.1]})
        assert specific_record(None, [control])["controls"][0]["state"] == where
    exact = {"value": 0.0, "ci90": [0.0, 0.0], "ci95": [0.0, 0.0]}
    for half, where in ((LIMIT_MARGIN, "equivalent"), (LIMIT_MARGIN + 1e-9, "unclear")):
        limit = {"value": 0.0, "ci90": [-half, half], "ci95": [-0.1, 0.1]}
        control = Control("regression", interval(0.0), limit, trained=True)
        assert specific_record(exact, [control])["controls"][0]["state"] == where


def test_difference_of_limits_by_hand():
    """Unequal arms: the lower arm of the student goes with the upper one of the control."""
    student = {"value": -0.3, "ci95": [-0.33, -0.26], "ci90": [-0.32, -0.27]}
    control = {"value": -0.1, "ci95": [-0.22, -0.06], "ci90": [-0.20, -0.07]}
    found = difference_of_limits(student, control)
    assert found["value"] == pytest.approx(-0.2)
    assert found["ci95"] == pytest.approx([-0.2 - np.hypot(0.03, 0.04), -0.2 + np.hypot(0.04, 0.12)])
    assert found["ci90"] == pytest.approx([-0.2 - np.hypot(0.02, 0.03), -0.2 + np.hypot(0.03, 0.10)])
    back = difference_of_limits(control, student)
    assert back["ci95"] == pytest.approx([-found["ci95"][1], -found["ci95"][0]])


def test_difference_of_limits_covers_the_truth():
    """Two independent Gaussian estimates with their own intervals: 95 and 90 of a hundred hold the difference."""
    rng, errors, held = np.random.default_rng(0), (0.02, 0.05), {"ci95": 0, "ci90": 0}
    for _ in range(4000):
        estimates = [truth + rng.normal(0, error) for truth, error in zip((-0.3, -0.1), errors)]
        fits = [
            {"value": v, "ci95": [v - 1.96 * e, v + 1.96 * e], "ci90": [v - 1.645 * e, v + 1.645 * e]}
            for v, e in zip(estimates, errors)
        ]
        found = difference_of_limits(*fits)
        for key in held:
            held[key] += found[key][0] <= -0.2 <= found[key][1]
    assert held["ci95"] / 4000 == pytest.approx(0.95, abs=0.015) and held["ci90"] / 4000 == pytest.approx(0.9, abs=0.02)
