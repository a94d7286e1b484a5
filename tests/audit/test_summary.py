"""Tables and sentences of the terminal: every model, control and verdict, also where nothing was measured."""

from __future__ import annotations

import json

import pytest

from cdmem.audit.result import AuditResult
from cdmem.audit.text import print_summary, sentences, table, transfer
from support.report import make_study_folder


@pytest.fixture
def result(tmp_path):
    return AuditResult.from_dict(json.loads((make_study_folder(tmp_path / "run") / "audit/summary.json").read_text()))


def starting(lines, start):
    return next(" ".join(line.split()) for line in lines if line.startswith(start))


def test_the_table_shows_every_model_and_control(result):
    lines = table(result)
    assert "fd_pixels to H" in lines[0] and "rmse to teacher" in lines[0]
    assert (
        starting(lines, "teacher (heun)")
        == "teacher (heun) 35 90.0 % [88.0, 92.0] 6 4.000 1.000 0.0500 1.000 0.200 0.700"
    )
    assert starting(lines, "held-out images").endswith("0.0 % [0.0, 2.0] 0.500")
    assert starting(lines, "copies of T").endswith("100.0 % [98.0, 100.0] 4.500 0.100 -")
    result.control["heldout_f_mem"] = None
    assert starting(table(result), "held-out images").endswith(" - 0.500")


def test_columns_that_need_a_teacher_are_left_out_without_one(result):
    for m in result.models:
        m |= {"variance_ratio": None, "rmse_to_teacher": None, "same_basin": None}
    assert "rmse to teacher" not in table(result)[0] and "kid_pixels" in table(result)[0]


def test_inception_is_called_fid(result):
    result.settings["features"] = "inception"
    result.models[0]["quality"] = {"fid": 3.25, "kid": 0.5, "fid_train": 1.0}
    lines = table(result)
    assert "fid to H" in lines[0] and "3.250" in starting(lines, "teacher (heun)")


def test_the_transfer_table_counts_every_fate(result):
    lines = transfer(result)
    assert lines[0].split()[:8] == ["student", "NFE", "kept", "same", "kept", "other", "lost", "gained"]
    assert starting(lines[2:], "student") == "student 1 20 2 25 3 10 64.0 % (3.4 %) -40.0 points [-42.0, -38.0] 2.0e-09"
    result.models[2]["paired"]["lost_seeds"] = None
    assert starting(transfer(result)[2:], "student") == "student 1 20 2 25 3 10 - -40.0 points [-42.0, -38.0] 2.0e-09"
    for m in result.models:
        m.pop("paired", None)
    assert transfer(result) == []


def test_the_verdict_and_its_cost_are_said(result):
    said = sentences(result)
    assert said == [m["verdict"][key] for m in result.models[2:] for key in ("statement", "equal_nfe")]
    del result.models[2]["verdict"]["equal_nfe"]
    result.models[3]["verdict"] = None
    assert sentences(result) == said[:1]


def test_everything_is_printed(result, capsys):
    print_summary(result)
    printed = capsys.readouterr().out
    for part in (
        "16 unique images of digits",
        "(16 rows, abababababab)",
        "kept same",
        "limit unclear.",
        "note: a note",
    ):
        assert part in printed
