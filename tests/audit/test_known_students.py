"""Students whose truth is known get a claim that the truth allows, through the audit's own path."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from support.judged import ALLOWED, Bench
from support.students import DAMAGES, SEVERE, World


@cache
def bench(seed):
    torch.manual_seed(0)  # nothing may hang on it
    return Bench(World(seed))


def told(name, seed):
    verdict, pair = bench(seed).verdict(name)
    truth = bench(seed).world.students[name].truth
    assert verdict["claim"] in ALLOWED[truth], (verdict["statement"], pair)
    return verdict, pair


NAMES = [name for name, student in World(0, 4).students.items() if student.truth != "damaged"]
NAMES += [f"half {name}" for name in (*DAMAGES, "noisy", "very noisy", "blurred, variance restored")]
NAMES += [form.format(name) for name in SEVERE for form in ("{}, unrelated seeds", "teacher half {}")]


@pytest.mark.parametrize("name", NAMES)
def test_the_claim_is_one_that_the_truth_allows(name):
    told(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_so_it_is_with_other_images(seed):
    wrong = {}
    for name, student in bench(seed).world.students.items():
        claim = bench(seed).verdict(name)[0]["claim"]
        if claim not in ALLOWED[student.truth]:
            wrong[name] = claim
    assert wrong == {}
