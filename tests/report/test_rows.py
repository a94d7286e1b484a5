"""Numbers as text, and the same numbers on the terminal, on the page and in the model card."""

from __future__ import annotations

import json
import math
import re

import pytest

from cdmem.audit.result import AuditResult
from cdmem.audit.text import opinions, table
from cdmem.models.model_card import audit_rows, audit_table
from cdmem.report.build import write_report
from cdmem.report.rows import (
    NOTHING,
    bounded,
    discoveries,
    model_table,
    number,
    p_value,
    percent,
    points,
    second_opinions,
)
from support.report import make_study_folder


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.000"), (1.5, "1.500"), (-0.25, "-0.250"), (0.001, "0.001"), (0.00099, "9.9e-04"), (-0.0002, "-2.0e-04")]
    + [(99999.9, "99999.900"), (1e5, "1.0e+05"), (-5129215512678158336.0, "-5.1e+18"), (10**400, NOTHING)]
    + [("-inf", "-inf"), ("inf", "inf")]
    + [(v, NOTHING) for v in (None, True, "1", [1], math.nan, math.inf, -math.inf)],
)
def test_numbers_stay_readable(value, text):
    assert number(value) == text


def test_digits_and_other_forms():
    assert number(0.00012, 4) == "0.0001" and number(12.7, 0) == "13" and number(0.0, 0) == "0"
    estimate = {"value": 0.931, "ci95": [0.919, 0.941]}
    assert str(percent(estimate)) == "93.1 % [91.9, 94.1]" and str(points(estimate)) == "+93.1 [+91.9, +94.1]"
    assert percent(None) == points(None) == p_value(None) == NOTHING
    assert [p_value(p) for p in (1, 0.02, 0.0009, 0.0)] == ["1.000", "0.020", "9.0e-04", "< 1e-300"]


def test_unbounded_estimates_show_the_end_that_is_known():
    slope = {"slope": "inf", "slope_low": 1.0273, "slope_high": "inf"}
    assert bounded(slope, "slope") == ">= 1.027" and bounded({"slope": "inf"}, "slope") == "inf"
    assert bounded({"slope": "-inf", "slope_low": "-inf", "slope_high": 0.31}, "slope") == "<= 0.310"
    assert bounded({"slope": 0.5, "slope_low": 0.1}, "slope", 2) == "0.50" and bounded({}, "slope") == NOTHING


def test_discoveries_stand_beside_what_can_be_seen():
    record = {"discoveries": 0, "smallest_visible": 0.0999}
    assert discoveries(record) == "0 (10.0 %)" and discoveries(record | {"smallest_visible": None}) == "0 (never)"
    assert discoveries({"discoveries": 12}) == "12" and discoveries(None) == discoveries({}) == NOTHING
    summary = {"settings": {}, "models": [{"metrics": {}, "conformal": record}, {"metrics": {}}]}
    assert second_opinions(summary) == [["beyond H (seen from)", "0 (10.0 %)", NOTHING, NOTHING, NOTHING]]
    assert second_opinions(summary | {"models": [{"metrics": {}, "conformal": None}]}) == []


def test_chao_is_shown_as_what_it_is_a_lower_bound():
    slope = {"duplication_slope": "inf", "duplication_slope_low": 2.5, "duplication_slope_high": "inf"}
    record = {"coverage": {"chao1": 12.6, "chao1_low": 9.0} | slope}
    rows = second_opinions({"settings": {}, "models": [{"metrics": record}]})
    assert rows == [
        ["Chao1, at least", "9", NOTHING, NOTHING],
        ["duplication slope", ">= 2.500", NOTHING, NOTHING],
    ]


def test_terminal_page_and_card_show_the_same_numbers(tmp_path):
    run = make_study_folder(tmp_path / "run")
    summary = json.loads((run / "audit/summary.json").read_text())
    for k, m in enumerate(summary["models"]):  # every number another one
        m["f_mem"] = {"value": 0.123 + k / 10, "ci95": [0.101 + k / 10, 0.147 + k / 10]}
        m |= {"unique": 11 + k, "variance_ratio": 0.81 + k, "rmse_to_teacher": 0.31 + k, "same_basin": 0.61 + k}
        m["quality"] = {"fd_pixels": 5.125 + k, "fd_pixels_train": 1.375 + k, "kid_pixels": 0.0625 + k}
        m["metrics"] |= {"copy_test_pixels": {"c_t": 3.5 + k, "c_t_heldout": -0.75}}
    (run / "audit/summary.json").write_text(json.dumps(summary))
    result = AuditResult.from_dict(summary)
    html = re.sub(r"<[^>]+>", " ", write_report(run).read_text(encoding="utf-8"))
    page, terminal = " ".join(html.split()), [" ".join(line.split()) for line in [*table(result), *opinions(result)]]
    card = audit_table(audit_rows(summary, "0" * 64), None)
    head, rows = model_table(summary)
    assert " ".join(head) in page and " ".join(head) in terminal[0]
    for m, row in zip(summary["models"], rows):
        cells = " ".join(map(str, row))
        assert cells in page and any(line.startswith(m["name"]) and cells in line for line in terminal)
        assert f"{row[0]} | {' | '.join(row[-3:])} |" in card
    second = next(r for r in second_opinions(summary) if r[0] == "C_T")
    assert second == ["C_T", "3.500", "4.500", "5.500", "6.500", NOTHING, "-0.750"]
    assert " ".join(second).replace(" - ", " – ") in page
    for cell in second[1:5]:
        assert any(cell in line for line in terminal)
    assert any(line.startswith("held-out images") and "-0.750" in line for line in terminal)
