"""The page from its files: every section, everything escaped, torn files left out, nothing fetched."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markupsafe import escape
from PIL import Image

from cdmem.errors import InputError
from cdmem.metrics.comparison.verdict import CLAIMS
from cdmem.report.build import confounds, headline, write_report
from cdmem.report.compare import differing, over_seeds, prepare_comparison, studies_below
from cdmem.report.run_data import read_run
from support.report import HOSTILE, make_study_folder
from support.stages import cdmem

ROOT = Path(__file__).resolve().parents[2]


class Balanced(HTMLParser):
    """Counts tags and notices one that closes what is not open."""

    VOID = {"meta", "link", "br", "img", "path", "use", "line", "rect", "circle", "image", "polygon", "clippath"}

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_study_folder(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def html(run):
    return write_report(run).read_text(encoding="utf-8")


def test_every_section_and_every_figure(run, html):
    for anchor in ("training", "seeds", "pictures", "distributions", "confounds", "made"):
        assert f'<section id="{anchor}">' in html and f'<a href="#{anchor}">' in html
    parser = Balanced()
    parser.feed(html)
    assert parser.wrong == [] and parser.open == []
    stems = {p.stem for p in (run / "report").glob("*.png")}
    assert stems == {p.stem for p in (run / "report").glob("*.csv")} and html.count('class="chart"') == len(stems) >= 10
    for stem in stems:
        with Image.open(run / f"report/{stem}.png") as image:
            assert image.width > 400
        with (run / f"report/{stem}.csv").open(encoding="utf-8", newline="") as stream:
            assert len(list(csv.reader(stream))) > 1, stem


def test_numbers_of_the_summary_are_on_the_page(html):
    text = re.sub(r"<[^>]+>", "", html)
    assert "tau_mem" in html or "τ_mem" in html
    for part in ("90.0 % [88.0, 92.0]", "-40.0", "Now below, limit unclear.", "35 NFE", "abababab", "12.5"):
        assert part in text, part


def test_what_became_of_lost_seeds_limits_and_images_stand_on_the_page(run, html):
    (table,) = confounds(read_run(run))
    rows = {row[0]: str(row[1]) for row in table.rows}
    assert all(f">{escape(name)}</th>" in html for name in rows)
    wanted = {
        "tolerant copies (points)": "-35.0 [-37.0, -33.0]",
        "in the limit (points)": "-12.0 [-14.0, -10.0]",
        "different images, teacher": "14",
        "different images, student": "9",
        "seeds lost": "25",
        "of them nearest to the same image": "64.0 % [62.0, 66.0]",
        "that by chance": "0.034",
        "of them damaged copies": "8.0 % [6.0, 10.0]",
        "noise given to the sharper side (grey levels)": "12.5",
    }
    assert {key: rows.get(key) for key in wanted} == wanted


def test_every_claim_has_a_headline_of_its_own(tmp_path):
    """What cannot be claimed is said once; every claim in words of its own, and mixed claims as undecided."""
    said = {}
    for claim in CLAIMS:
        run = read_run(make_study_folder(tmp_path / claim))
        for m in run.students:
            m["verdict"]["claim"] = claim
        said[claim] = headline(run)
    run.students[0]["verdict"]["claim"] = "reduced"
    assert headline(run) == said["undecided"] and said["unpaired"] == said["undecided"]
    assert len(set(said.values())) == len(CLAIMS) - 1
    run.students[0]["verdict"] = run.students[1]["verdict"] = None
    assert headline(run) not in said.values()


def test_text_from_outside_is_escaped(html, tmp_path):
    assert HOSTILE not in html and "&lt;script&gt;" in html
    root, name = str(tmp_path / HOSTILE.replace("/", "")), "<img src=x onerror=1>"
    folders = [make_study_folder(Path(root + k), name=name) for k in "ab"]
    for k, folder in enumerate(folders):
        (folder / "config.yaml").write_text(yaml.safe_dump({HOSTILE: k, "text": f"{HOSTILE}{k}"}))
    both = prepare_comparison(folders, tmp_path / "both.html")().read_text(encoding="utf-8")
    assert both.count("<script>") == 1 and both.count("alert(") > 5 and "<img src=x" not in both


def test_nothing_is_fetched(html):
    assert re.findall(r"""(?:src|href)=["'](?!data:|#|report/)[^"']*["']""", html) == []
    assert not re.search(r"@import|url\((?!#)", html) and "default-src 'none'" in html


def test_missing_and_torn_files_leave_a_section_out_and_a_note(tmp_path):
    run = make_study_folder(tmp_path / "run")
    (run / "audit/pictures.npz").write_bytes(b"torn")
    (run / "teacher/metrics.jsonl").write_text('{"step": 1, "memorization/f_mem": 0.5}\n{"step": 2, "memo')
    (run / "environment.json").write_text("{")
    for file in (run / "samples").iterdir():
        file.unlink()
    html = write_report(run).read_text(encoding="utf-8")
    assert "pictures.npz could not be read" in html and "environment.json could not be read" in html


def test_folders_without_a_study_are_refused(tmp_path, capsys):
    with pytest.raises(InputError, match="no such folder"):
        read_run(tmp_path / "none")
    with pytest.raises(InputError, match="holds no audit"):
        read_run(tmp_path)
    run = make_study_folder(tmp_path / "run")
    (run / "audit/summary.json").write_text(json.dumps({"models": []}))
    with pytest.raises(InputError, match="torn or empty"):
        read_run(run)
    assert cdmem("report", tmp_path / "none") == 2 and "runs=" in capsys.readouterr().err


def test_several_runs_are_compared(tmp_path):
    folders = [
        make_study_folder(tmp_path / f"sweep/data.n={n}/seed={s}", n=n, seed=s) for n in (16, 32, 64) for s in (0, 1)
    ]
    assert studies_below(tmp_path / "sweep") == folders
    assert differing([read_run(f) for f in folders]) == ["data.n", "seed"]
    html = prepare_comparison(folders, tmp_path / "sweep/comparison.html")().read_text(encoding="utf-8")
    assert "6 studies" in html and "Against data.n" in html and html.count('class="chart"') == 2
    rows = list(csv.DictReader((tmp_path / "sweep/report/f_mem_against_data_n.csv").open(encoding="utf-8")))
    assert len(rows) == 9  # three sizes, three models
    assert cdmem("report", tmp_path / "sweep/data.n=16") == 0
    assert (folders[0] / "report.html").is_file() and (folders[1] / "report.html").is_file()
    assert 'href="seed=0/report.html"' in (tmp_path / "sweep/data.n=16/comparison.html").read_text(encoding="utf-8")


def test_intervals_over_runs_have_the_run_as_unit():
    mean, low, high = over_seeds([0.1, 0.3])
    assert mean == pytest.approx(0.2) and high - mean == pytest.approx(12.7062 * 0.1, rel=1e-4) and low < 0
    assert over_seeds([0.4]) == pytest.approx((0.4, math.nan, math.nan), nan_ok=True)


def test_the_report_needs_neither_torch_nor_lightning():
    heavy = "{'torch', 'lightning', 'matplotlib.pyplot'}"
    code = f"import sys, cdmem.report.build, cdmem.report.compare; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_an_installed_package_holds_the_template(tmp_path):
    code = "from setuptools import setup; setup()"
    options = ["-q", "egg_info", "--egg-base", tmp_path, "build_py", "--build-lib", tmp_path / "built"]
    subprocess.run([sys.executable, "-c", code, *map(str, options)], cwd=ROOT, timeout=60, check=True)
    name = "cdmem/report/templates/report.html.j2"
    assert (tmp_path / "built" / name).read_bytes() == (ROOT / name).read_bytes()
