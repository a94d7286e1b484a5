"""Told to stop, failing or out of disk at random moments, and a sweep killed there: the same bits in the end."""

from __future__ import annotations

import pytest

from support.scenario import Scenario, chosen

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("how", ["TERM", "FAIL", "FULL"])
def test_a_study_disturbed_at_random_moments(killed_study, how):
    for at in chosen(killed_study, 8, seed=2):
        killed_study.survive(at, how)


def test_a_sweep_killed_at_random_moments(mortals, place):
    sweep = Scenario(mortals, place, "sweep", "study", "--config", "study.yaml", "--sweep", "seed=0,1")
    for at in chosen(sweep, 5, seed=3):
        sweep.survive(at, "KILL")
