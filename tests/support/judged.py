"""Pairs of samples whose truth is known, judged by the audit's own path, and which claims their truth allows."""

from __future__ import annotations

from typing import Any

from cdmem.audit.auditor import Auditor, Measured
from cdmem.audit.generators import Generator
from cdmem.audit.given_images import GivenImages
from cdmem.audit.settings import AuditSettings
from cdmem.audit.verdicts import Audited, Verdicts
from cdmem.metrics.comparison.paired import adjust
from cdmem.metrics.comparison.verdict import CLAIMS, OF_FEWER
from support.students import World, saved

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

    def drawn(self, images: Any, role: str) -> Measured:
        sampler = GivenImages(saved(images), list(range(len(images))))
        return self.audit.draw(Generator(role, role, "given", sampler, "given", None))

    def verdict(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
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
