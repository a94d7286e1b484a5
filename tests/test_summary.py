"""What a summary may say: nothing of a reduction unless the student is distilled and f_mem has stopped rising."""

from __future__ import annotations

import pytest

from cdmem.audit import AuditResult
from cdmem.summary import sentences, table


def result(trend: str | None, ratio: float = 1.0, f_mem: float = 0.2, schedule: str = "constant") -> AuditResult:
    def model(name: str, role: str, method: str, value: float) -> dict:
        return {
            "name": name,
            "role": role,
            "method": method,
            "nfe": 1,
            "f_mem": {"value": value, "ci95": [value - 0.02, value + 0.02]},
            "quality": {"fd_pixels": 1.0, "kid_pixels": 0.1},
            "variance_ratio": ratio,
            "rmse_to_teacher": 0.1,
            "same_basin": 0.9,
            "unique": 3,
        }

    judged = {"trend": trend, "change": 0.0, "low": -0.01, "high": 0.01, "from_step": 1, "to_step": 2}
    return AuditResult(
        training_set={},
        models=[model("teacher", "teacher", "heun", 0.9), model("student", "student", "consistency", f_mem)],
        control={"heldout_f_mem": None, "copycat": {"f_mem": {"value": 1.0, "ci95": [0.9, 1.0]}, "quality": {}}},
        settings={"features": "pixels"},
        distillation={"student": {"f_mem_trend": {"1": judged if trend else None}, "lr_schedule": schedule}},
    )


@pytest.mark.parametrize("trend", ["rising", "undetermined", None])
def test_no_claim_before_convergence(trend):
    (said,) = sentences(result(trend))
    assert "no claim" in said and "below" not in said


@pytest.mark.parametrize("ratio", [0.89, 1.11])
def test_no_claim_for_a_student_that_was_not_distilled(ratio):
    (said,) = sentences(result("stopped", ratio))
    assert "not distilled" in said and "below" not in said


@pytest.mark.parametrize("trend", ["stopped", "falling"])
def test_a_converged_student_is_compared(trend):
    assert "lies below the teacher's 90.0 %" in sentences(result(trend))[0]
    assert "does not lie below" in sentences(result(trend, f_mem=0.88))[0]


def test_an_annealed_rate_is_named():
    assert "annealed" in sentences(result("stopped", schedule="cosine"))[0]
    assert "annealed" not in sentences(result("stopped"))[0]


def test_the_table_shows_controls_without_held_out_images():
    r = result("stopped")
    r.control["copycat"]["quality"] = {"fd_pixels": 2.0, "kid_pixels": None}
    lines = table(r)
    assert any(line.startswith("copies of T") and "100.0 %" in line for line in lines)
    assert any(line.startswith("held-out images") and " -" in line for line in lines)
