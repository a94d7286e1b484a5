"""Beside a student: its ceiling, trained controls, a teacher of few steps, and one stopped at equal quality."""

from __future__ import annotations

import pytest
import torch

from cdmem.audit.verdicts import Audited, Verdicts
from cdmem.metrics.comparison.paired import adjust, compare

SEEDS, FRECHET = 400, "fd_pixels"


def model(name: str, role: str, copies: int, nfe: int = 1, **entry: object) -> Audited:
    """A model that copies at the first ``copies`` of the seeds."""
    flags = torch.arange(SEEDS) < copies
    share = copies / SEEDS
    about = {"name": name, "role": role, "nfe": nfe, "method": "given", "variance_ratio": 1.0, "quality": {}}
    about["f_mem"] = {"value": share, "ci95": [share - 0.02, share + 0.02]}
    return Audited(about | entry, flags, {"student": "distillation", "regression": "regression"}.get(name))


TEACHER = model("teacher", "teacher", 360, 35)


def student(copies: int = 200, **entry: object) -> Audited:
    m = model("student", "student", copies, **entry)
    squared = [torch.stack([torch.where(x.copies, 1.0, 9.0), torch.full((SEEDS,), 10.0)], 1) for x in (TEACHER, m)]
    groups = torch.stack([torch.arange(SEEDS) % 7, torch.arange(SEEDS) % 5 + 7], 1)
    rows = [{"seeds": torch.arange(SEEDS), "squared": s, "groups": groups} for s in squared]
    m.entry["paired"] = compare(*rows, 1 / 3)
    adjust([m.entry["paired"]])
    return m


def limit(value: float) -> dict:
    record = {"value": value, "ci90": [value - 0.01, value + 0.01], "ci95": [value - 0.02, value + 0.02], "law": ""}
    return {"limit": {"1": {"strict": record}}}


def verdict(judged: Audited, *others: Audited, distillation: dict | None = None) -> dict:
    models = [TEACHER, judged, *others]
    return Verdicts(models, None, distillation or {}, frechet=[FRECHET]).of(judged)


def test_the_ceiling_stands_beside_the_limit():
    perfect = model("ceiling of student", "ceiling", 300)
    others = [model("ceiling of student", "ceiling", 0, nfe=2), model("ceiling of student_2", "ceiling", 0)]
    found = verdict(student(), *others, perfect, distillation={"student": limit(-0.4)})
    assert found["limit"]["value"] == -0.4 and found["limit"]["ceiling"]["value"] == pytest.approx(-0.15)
    assert "a perfect student of this recipe stands at -15.0 points" in found["statement"]
    assert set(verdict(student(), perfect)["limit"]) == {"ceiling"} and verdict(student())["limit"] is None


def test_a_teacher_stopped_at_equal_quality_is_a_control():
    """The rung whose Frechet distance is nearest, not the one whose f_mem is."""
    rungs = [
        model(f"teacher at step {step}", "teacher_ladder", copies, 35, quality={FRECHET: distance})
        for step, copies, distance in ((10, 0, 9.0), (100, 195, 5.0), (1000, 350, 2.0))
    ]
    found = verdict(student(quality={FRECHET: 2.4}), *rungs)["specific"]
    (control,) = found["controls"]
    assert control["name"] == "the teacher at step 1000, of equal quality" and control["difference"]["value"] == -0.375
    assert found["holds"] is True
    assert verdict(student(quality={FRECHET: 4.8}), *rungs)["specific"]["holds"] is False
    assert verdict(student(), *rungs)["specific"] is None  # without a distance to H


@pytest.mark.parametrize(("ratio", "controls"), [(0.95, 1), (0.3, 0), (None, 0)])
def test_a_teacher_of_few_steps_counts_where_it_makes_images(ratio, controls):
    cheap = model("teacher", "teacher", 100, 1, method="euler", variance_ratio=ratio)
    other = model("teacher", "teacher", 100, 2, method="euler")
    found = verdict(student(), cheap, other)["specific"]
    assert (0 if found is None else len(found["controls"])) == controls
    if found:
        assert found["holds"] is False and "the teacher at 1 NFE copies no more" in found["statement"]


@pytest.mark.parametrize(("ratio", "holds"), [(1.0, False), (0.36, None)])
def test_a_failed_control_shows_nothing(ratio, holds):
    control = model("regression", "student", 200, variance_ratio=ratio)
    both = {"student": limit(-0.4), "regression": limit(-0.4)}
    found = verdict(student(), control, distillation=both)
    assert found["specific"]["holds"] is holds
    assert found["specific"]["statement"].rstrip(".") in found["statement"]


def test_a_student_that_lost_nothing_says_nothing_of_specificity():
    control = model("regression", "student", 200)
    found = verdict(student(360), control)
    assert found["specific"]["controls"] and "specific" not in found["statement"]
