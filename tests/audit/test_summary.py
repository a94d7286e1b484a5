"""The table and the sentences: every model, every control, every verdict, also where there is nothing to show."""

from __future__ import annotations

from cdmem.audit.result import AuditResult
from cdmem.audit.text import print_summary, sentences, table, transfer

TRANSFER = {"kept_same": 5, "kept_other": 1, "lost": 3, "gained": 0, "neither": 1}


def result(**changes) -> AuditResult:
    def model(name: str, role: str, method: str, value: float) -> dict:
        return {
            "name": name,
            "role": role,
            "method": method,
            "nfe": 1,
            "samples": 10,
            "seeds": [0, 9],
            "f_mem": {"value": value, "ci95": [value - 0.02, value + 0.02]},
            "quality": {"fd_pixels": 1.0, "kid_pixels": 0.1, "fd_pixels_train": 0.5},
            "variance_ratio": 1.0,
            "rmse_to_teacher": 0.1,
            "same_basin": 0.9,
            "unique": 3,
        }

    student = model("student", "student", "consistency", 0.2)
    student["paired"] = {
        "transfer": TRANSFER,
        "difference": {"value": -0.3, "ci95": [-0.4, -0.2], "p_mcnemar": 0.01, "p_holm": 0.02},
    }
    student["verdict"] = {"claim": "undecided", "statement": "student, 1 NFE: undecided.", "equal_nfe": "At equal NFE."}
    full = {"f_mem": {"value": 1.0, "ci95": [0.9, 1.0]}, "quality": {"fd_pixels": 2.0}}
    about = {"n": 4, "source": "digits", "rows": 8, "hash": "0123456789abcdef", "held_out": 0}
    fields = {
        "training_set": about,
        "models": [model("teacher", "teacher", "heun", 0.9), student],
        "control": {"heldout_f_mem": None, "copycat": full},
        "settings": {"features": "pixels"},
        "notes": ["3 of the held-out images are training images and were removed"],
    }
    return AuditResult(**(fields | changes))


def test_the_table_shows_every_model_and_control():
    lines = table(result())
    assert any(line.startswith("teacher (heun)") and "90.0 % [88.0, 92.0]" in line for line in lines)
    assert any(line.startswith("copies of T") and "100.0 %" in line and "2.000" in line for line in lines)
    assert any(line.startswith("held-out images") and " -" in line for line in lines)


def test_columns_that_need_a_teacher_are_left_out_without_one():
    r = result()
    for m in r.models:
        m |= {"variance_ratio": None, "rmse_to_teacher": None, "same_basin": None}
    assert "rmse to teacher" in table(result())[0] and "rmse to teacher" not in table(r)[0]


def test_inception_is_called_fid():
    r = result(settings={"features": "inception"})
    r.models[0]["quality"] = {"fid": 3.25, "kid": 0.5, "fid_train": 1.0}
    lines = table(r)
    assert "fid to H" in lines[0] and "3.250" in lines[2]


def test_the_transfer_table_counts_every_fate():
    head, _, row = transfer(result())
    assert [head.split()[0], *row.split()[2:7]] == ["student", "5", "1", "3", "0", "1"]
    assert "-30.0 points [-40.0, -20.0]" in row and row.endswith("0.02")
    alone = result()
    del alone.models[1]["paired"]
    assert transfer(alone) == []


def test_the_verdict_its_cost_and_its_extrapolation_are_said():
    found = {"f_mem": 0.5, "ci95": [0.4, 0.6], "slope": -1.0, "rmse": [0.2, 0.3], "reach": 2.0, "evaluations": 4}
    said = sentences(result(distillation={"student": {"extrapolation": {"1": found}}}))
    assert said[0] == "student, 1 NFE: undecided." and said[-1] == "At equal NFE."
    assert "extrapolated to rmse 0" in said[1] and "50 % [40, 60]" in said[1]
    found["reach"] = 8.0
    assert "no extrapolation" in sentences(result(distillation={"student": {"extrapolation": {"1": found}}}))[1]
    assert sentences(result()) == ["student, 1 NFE: undecided.", "At equal NFE."]


def test_everything_is_printed(capsys):
    print_summary(result())
    printed = capsys.readouterr().out
    for part in (
        "4 unique images of digits (8 rows, 0123456789ab)",
        "kept same",
        "undecided.",
        "note: 3 of the held-out",
    ):
        assert part in printed
