"""Students whose truth is known get a claim that the truth allows, through the audit's own path."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from cdmem.audit.auditor import Auditor
from cdmem.audit.generators import Generator
from cdmem.audit.given_images import GivenImages
from cdmem.audit.settings import AuditSettings
from cdmem.audit.verdicts import Audited, Verdicts
from cdmem.metrics.comparison.paired import adjust
from cdmem.metrics.comparison.verdict import CLAIMS, OF_FEWER
from support.students import DAMAGES, SEVERE, World, saved

DIFFERENCES = {"reduced", "transient", "amplified", "amplified" + OF_FEWER}
ALLOWED = {
    "same": set(CLAIMS) - DIFFERENCES,
    "damaged": set(CLAIMS) - DIFFERENCES,
    "fewer": set(CLAIMS) - {"amplified", "reduced", "transient"},
    "more": {"amplified"},
    "less": {"reduced"},
}


class Bench:
    """An audit of one world's pairs, each taken as converged."""

    def __init__(self, world: World) -> None:
        self.world, self.teachers = world, {}
        settings = AuditSettings(samples=world.seeds, metrics=[])
        self.audit = Auditor(world.training_set, settings, progress=False, converged=True)
        self.held_out = self.audit.control()["heldout_f_mem"]

    def drawn(self, images, role):
        sampler = GivenImages(saved(images), list(range(len(images))))
        return self.audit.draw(Generator(role, role, "given", sampler, "given", None))

    def verdict(self, name):
        """The verdict and the comparison of one pair."""
        teacher, student, _ = self.world.students[name]
        if id(teacher) not in self.teachers:
            drawn = self.drawn(teacher, "teacher")
            self.teachers[id(teacher)] = drawn, self.audit.measure(drawn, None)
        reference, about = self.teachers[id(teacher)]
        drawn = self.drawn(student, "student")
        entry = self.audit.measure(drawn, reference)
        entry["paired"] = self.audit.pair(reference, drawn, None, entry)
        adjust([entry["paired"]])
        strict = self.audit.yardstick.strict
        models = [Audited(about, strict(reference.rows)), Audited(entry, strict(drawn.rows))]
        return Verdicts(models, self.held_out, {}, converged=True).of(models[1]), entry["paired"]


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
