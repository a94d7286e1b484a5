"""The command around the laboratories: settings, files, page, and one line for every mistake."""

from __future__ import annotations

import csv
import json
from html import unescape

import pytest

from cdmem.audit.result import plain
from cdmem.cli import theory as theory_command
from support.breaking import BOMB
from support.laboratory import succeed
from support.untrusted import refused


@pytest.fixture(autouse=True)
def laboratory(monkeypatch):
    monkeypatch.setitem(theory_command.LABORATORIES, "edge", "support.laboratory")


def theory(capsys, *args):
    """What the command prints, when it succeeds."""
    succeed("theory", *args)
    return capsys.readouterr()


def test_files_of_a_laboratory(capsys, tmp_path):
    out = tmp_path / "made" / "here"
    said = theory(capsys, "edge", "--out", out, "--t", "0.25", "--group.widths", "[2,4,8]", "--seed", "3")
    assert said.out.splitlines() == ["first value 0.500", f"page: {out / 'report.html'}"]
    results = json.loads((out / "results.json").read_text())
    settings = {"t": 0.25, "group": {"widths": [2, 4, 8]}, "kind": "plain", "seed": 3}
    assert results == {"laboratory": "edge", "settings": settings, "values": [0.5, 1.0, 2.0], "none": None, "seed": 3}
    assert (out / "figures/line.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "figures/line.csv").open()))
    assert [float(row["y"]) for row in rows] == [0.5, 1.0, 2.0]
    assert sorted(p.name for p in out.iterdir()) == ["figures", "report.html", "results.json"]


def test_the_page_escapes_and_marks_reconstructions(capsys, tmp_path):
    theory(capsys, "edge", "--out", tmp_path, "--kind", "<b>bold</b>")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") == 1 and "<b>" not in page  # the page's own script
    assert all(f'href="{link}"' in page for link in ("figures/line.png", "figures/line.csv", "#part0"))
    # The text, the table, how it was made, and the mark.
    shown = ("<script>text</script>", "<b>bold</b>", "--kind '<b>bold</b>'", "Reconstruction:")
    assert all(words in unescape(page) for words in shown)


def test_a_config_and_flags_over_it(capsys, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("t: 0.5\nseed: 7\ngroup: {widths: [3]}\n")
    theory(capsys, "edge", "--config", config, "--out", tmp_path / "o", "--seed", "8")
    settings = json.loads((tmp_path / "o/results.json").read_text())["settings"]
    assert (settings["t"], settings["group"]["widths"], settings["seed"]) == (0.5, [3], 8)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], ["theory=nowhere", "random-features"]),
        (["edge", "--t", "wide"], ["t=wide", "number"]),
        (["edge", "--breadth", "3"], ["breadth=3", "group"]),
        (["edge", "--group.breadth", "3"], ["group.breadth=3"]),
        (["edge", "--group.widths", "[0]"], ["group.widths=0", "1 to 100"]),
        (["edge", "--config", "group.yaml"], ["group=None"]),
        (["edge", "--config", "none.yaml"], ["t=None"]),
        (["edge", "--kind", "odd"], ["odd"]),
        (["edge", "--t", "nan"], ["t=nan"]),
        (["edge", "--t", ".inf"], ["t=.inf", "finite"]),
        (["edge", "--seed", "-1"], ["seed=-1"]),
        (["edge", "--config", "missing.yaml"], ["missing.yaml"]),
        (["edge", "--config", "broken.yaml"], ["config="]),
        (["edge", "--group", "bomb.yaml"], ["group="]),
        (["edge", "--out", ""], ["out="]),
    ],
)
def test_one_line_for_a_mistake(capsys, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    files = {"broken.yaml": "t: [1, {", "group.yaml": "group: null", "none.yaml": "t: null", "bomb.yaml": BOMB}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    line = refused(["theory", *args], capsys, tmp_path)
    assert all(word in line for word in words), line


def test_earlier_results_are_kept_unless_told(capsys, tmp_path):
    theory(capsys, "edge", "--out", tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    assert "--overwrite" in refused(["theory", "edge", "--out", tmp_path, "--t", "9"], capsys, tmp_path)
    assert theory(capsys, "edge", "--out", tmp_path, "--t", "9", "--overwrite", "--quiet").err == ""
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["t"] == 9
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_help_names_every_setting(capsys):
    said = theory(capsys, "edge", "--help").out
    assert all(f"--{name}" in said for name in ("t", "group.widths", "kind", "seed", "out", "config"))
    said = theory(capsys, "--help").out
    assert all(name in said for name in theory_command.LABORATORIES)


def test_only_json_types_are_written():
    with pytest.raises(TypeError, match="complex"):
        plain({"a": [1j]})
