"""README and docs name tests, files and classes that exist; README is short; every page is in the index; hooks,
workflow and type checks are set as CONTRIBUTING says."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from functools import cache

import pytest
import yaml

from support.source import ROOT

TOP = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
README_BYTES = 8192
CODE = re.compile(r"`([^`\n]+)`")
TEST = re.compile(r"(?:tests/(?:\w+/)?)?(test_\w+\.py)(?:::(test_\w+))?")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)\"")


@cache
def functions(name: str) -> frozenset[str]:
    """Test functions of a file; of no file there are none."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "tests").rglob(name)]
    return frozenset(n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


@cache
def everywhere() -> frozenset[str]:
    """Test functions of all files."""
    return frozenset().union(*(functions(f.name) for f in (ROOT / "tests").rglob("test_*.py")))


def wrong(text: str) -> list[str]:
    """Tests that do not exist of those named: ``file.py``, ``file.py::test``, a bare ``test`` of the file before it
    (of any file, where none was named)."""
    found, file = [], None
    for line in text.splitlines():
        for code in CODE.findall(line):
            named = TEST.fullmatch(code)
            if named:
                file = named[1]
                if not functions(file) or (named[2] and named[2] not in functions(file)):
                    found.append(code)
            elif re.fullmatch(r"test_\w+", code) and code not in (functions(file) if file else everywhere()):
                found.append(f"{file}::{code}")
    return found


CODE_FILE = re.compile(r"`((?:cdmem|callbacks|configs|benchmarks|tests)/[\w/.-]*)`")
CLASS = re.compile(r"\b((?:cdmem|callbacks)(?:\.[a-z]\w*)*\.[A-Z]\w+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    """Tests, files, classes, the goals of links."""
    text = page.read_text(encoding="utf-8")
    assert wrong(text) == []
    assert [name for name in CODE_FILE.findall(text) if not (ROOT / name).exists()] == []
    links = [a or b for a, b in LINK.findall(text)]
    assert [x for x in links if "://" not in x and not x.startswith("mailto:") and not (page.parent / x).exists()] == []
    for name in set(CLASS.findall(text)) if page.name != "CHANGELOG.md" else ():  # a change log names what was
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", text):
        headings = re.findall(r"^#+ (.+)$", (page.parent / target).read_text() if target else text, re.M)
        anchors = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
        assert anchor in anchors, f"{target}#{anchor}"


def rows(page: str, heading: str | None) -> list[list[str]]:
    """Cells of the table below a heading, or below the page's own, without its head."""
    sections = re.split(r"^#+ (.+)\n", (ROOT / page).read_text(encoding="utf-8"), flags=re.M)[1:]
    below = dict(zip(sections[::2], sections[1::2]))[heading or sections[0]]
    lines = [line for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize(("page", "heading"), [("docs/robustness.md", None), ("docs/security.md", "Every loader")])
def test_every_promise_names_its_test(page, heading):
    found = rows(page, heading)
    assert len(found) >= 12
    for cells in found:
        assert TEST.search(cells[-1]), cells[0]


def test_modules_of_the_table_of_loaders_exist():
    for _, files, *_ in rows("docs/security.md", "Every loader"):
        for name in re.findall(r"`([\w/]+\.py)`", files):
            assert (ROOT / "cdmem" / name).is_file(), name


def test_classes_of_the_tables_of_metrics_exist():
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| `([A-Z]\w+)`", text, re.M)
    assert len(names) >= 12
    assert [name for name in names if not hasattr(importlib.import_module("cdmem.metrics"), name)] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


def test_the_index_links_every_page():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / a).resolve() for a, _ in LINK.findall(index.read_text(encoding="utf-8"))}
    assert set((ROOT / "docs").rglob("*.md")) - linked == {index}


def test_the_workflow_calls_the_ci_script_and_nothing_else():
    (workflow,) = (ROOT / ".github" / "workflows").iterdir()
    (job,) = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").is_file()


def test_hooks_run_what_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    commands = [" ".join(hook["entry"].split()[:2]) for hook in hooks]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert commands == ["ruff check", "ruff format"]
    assert all(f"bin/{command}" in makefile for command in [*commands, "mypy"])


def test_types_of_the_pure_rooms_are_checked_and_shipped():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    rooms = {f"cdmem/{name}" for name in ("io", "run", "diffusion", "data", "metrics", "distillation")}
    assert rooms <= set(settings["mypy"]["files"])
    assert (ROOT / "cdmem" / "py.typed").is_file() and "py.typed" in settings["setuptools"]["package-data"]["cdmem"]


def test_wrong_names_are_found():
    right = "| x | `test_docs.py::test_wrong_names_are_found` (slow), `test_the_readme_is_short`, `test_docs.py` |"
    assert wrong(right) == []
    assert wrong(right.replace("wrong_names", "no_names")) == ["test_docs.py::test_no_names_are_found"]
    assert wrong(right.replace("the_readme", "no_readme")) == ["test_docs.py::test_no_readme_is_short"]
    assert wrong(right.replace("`test_docs.py`", "`tests/test_nothing.py`")) == ["tests/test_nothing.py"]
    assert wrong("`test_nowhere_at_all`") == ["None::test_nowhere_at_all"]
    assert LINK.findall('[a](b.md#c) <img src="d.png"> [e](#f)') == [("b.md", ""), ("", "d.png")]
