"""Runs that are killed: one server of processes, one set of configs, one undisturbed run each."""

from __future__ import annotations

import pytest

from support.killing import Mortals
from support.scenario import Scenario, write_configs


@pytest.fixture(scope="module")
def mortals():
    with Mortals() as server:
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    write_configs(folder)
    return folder


@pytest.fixture(scope="module")
def killed_teacher(mortals, place):
    return Scenario(mortals, place, "teacher", "fit", "--config", "teacher.yaml")


@pytest.fixture(scope="module")
def killed_study(mortals, place):
    return Scenario(mortals, place, "study", "study", "--config", "study.yaml")
