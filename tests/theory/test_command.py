"""The command around the laboratories: settings, files, page, and one line for every mistake."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser

import pytest

from cdmem.cli import theory as theory_command
from cdmem.cli.main import main
from cdmem.theory.experiment import plain
from support.breaking import BOMB


@pytest.fixture(autouse=True)
def laboratory(monkeypatch):
    monkeypatch.setitem(theory_command.LABORATORIES, "edge", "support.laboratory")


def theory(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["theory", *map(str, args)])
    return stop.value.code, capsys.readouterr()


def test_files_of_a_laboratory(capsys, tmp_path):
    out = tmp_path / "made" / "here"
    code, said = theory(capsys, "edge", "--out", out, "--t", "0.25", "--group.widths", "[2,4,8]", "--seed", "3")
    assert code == 0
    assert said.out.splitlines() == ["first value 0.500", f"page: {out / 'report.html'}"]
    results = json.loads((out / "results.json").read_text())
    settings = {"t": 0.25, "group": {"widths": [2, 4, 8]}, "kind": "plain", "seed": 3}
    assert results == {"laboratory": "edge", "settings": settings, "values": [0.5, 1.0, 2.0], "none": None, "seed": 3}
    assert (out / "figures/line.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "figures/line.csv").open()))
    assert [float(row["y"]) for row in rows] == [0.5, 1.0, 2.0]
    assert sorted(p.name for p in out.iterdir()) == ["figures", "report.html", "results.json"]


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k == "href"]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_escapes_and_marks_reconstructions(capsys, tmp_path):
    assert theory(capsys, "edge", "--out", tmp_path, "--kind", "<b>bold</b>")[0] == 0
    seen = _Tags()
    seen.feed((tmp_path / "report.html").read_text())
    text = " ".join(seen.text)
    assert seen.tags.count("script") == 1  # the page's own
    assert "<script>text</script>" in text and "<b>bold</b>" in text and "Reconstruction:" in text
    assert "--kind '<b>bold</b>'" in text  # how it was made
    assert {"figures/line.png", "figures/line.csv", "#part0"} <= set(seen.links)


def test_a_config_and_flags_over_it(capsys, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("t: 0.5\nseed: 7\ngroup: {widths: [3]}\n")
    assert theory(capsys, "edge", "--config", config, "--out", tmp_path / "o", "--seed", "8")[0] == 0
    settings = json.loads((tmp_path / "o/results.json").read_text())["settings"]
    assert (settings["t"], settings["group"]["widths"], settings["seed"]) == (0.5, [3], 8)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], ["theory=nowhere", "random-features"]),
        (["edge", "--t", "wide"], ["theory=edge", "wide", "float"]),
        (["edge", "--breadth", "3"], ["theory=edge", "breadth", "group"]),
        (["edge", "--group.breadth", "3"], ["theory=edge", "group.breadth"]),
        (["edge", "--group.widths", "[0]"], ["group.widths=0", "1 to 100"]),
        (["edge", "--config", "group.yaml"], ["group=None"]),
        (["edge", "--config", "none.yaml"], ["t=None"]),
        (["edge", "--kind", "odd"], ["odd"]),
        (["edge", "--t", "nan"], ["theory=edge", "nan"]),
        (["edge", "--t", ".inf"], ["t=inf", "finite"]),
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
    code, said = theory(capsys, *args)
    assert code == 2
    lines = said.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("cdmem: error: "), said.err
    assert all(word in lines[0] for word in words), lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(files)


def test_earlier_results_are_kept_unless_told(capsys, tmp_path):
    assert theory(capsys, "edge", "--out", tmp_path)[0] == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, said = theory(capsys, "edge", "--out", tmp_path, "--t", "9")
    assert code == 2 and "--overwrite" in said.err
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    (tmp_path / "mine.txt").write_text("mine")
    assert theory(capsys, "edge", "--out", tmp_path, "--t", "9", "--overwrite", "--quiet")[0] == 0
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["t"] == 9
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_help_names_every_setting(capsys):
    code, said = theory(capsys, "edge", "--help")
    assert code == 0
    assert all(f"--{name}" in said.out for name in ("t", "group.widths", "kind", "seed", "out", "config"))
    code, said = theory(capsys, "--help")
    assert code == 0 and all(name in said.out for name in theory_command.LABORATORIES)


def test_only_json_types_are_written():
    with pytest.raises(TypeError, match="complex"):
        plain({"a": [1j]})
