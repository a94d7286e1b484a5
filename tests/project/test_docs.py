"""README and docs name tests and files that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_tests_exist(page):
    assert wrong(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = [a or b for a, b in LINK.findall(page.read_text(encoding="utf-8"))]
    assert [x for x in links if "://" not in x and not x.startswith("mailto:") and not (page.parent / x).exists()] == []


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    below = (ROOT / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize(
    ("page", "heading"), [("README.md", "When things go wrong"), ("docs/security.md", "Every loader")]
)
def test_every_promise_names_its_test(page, heading):
    found = rows(page, heading)
    assert len(found) >= 12
    for cells in found:
        assert TEST.search(cells[-1]), cells[0]


def test_modules_of_the_table_of_loaders_exist():
    for _, files, *_ in rows("docs/security.md", "Every loader"):
        for name in re.findall(r"`([\w/]+\.py)`", files):
            assert (ROOT / "cdmem" / name).is_file(), name


def test_wrong_names_are_found():
    right = "| x | `test_docs.py::test_wrong_names_are_found` (slow), `test_named_tests_exist`, `test_docs.py` |"
    assert wrong(right) == []
    assert wrong(right.replace("wrong_names", "no_names")) == ["test_docs.py::test_no_names_are_found"]
    assert wrong(right.replace("named_tests", "named")) == ["test_docs.py::test_named_exist"]
    assert wrong(right.replace("`test_docs.py`", "`tests/test_nothing.py`")) == ["tests/test_nothing.py"]
    assert wrong("`test_nowhere_at_all`") == ["None::test_nowhere_at_all"]
    assert LINK.findall('[a](b.md#c) <img src="d.png"> [e](#f)') == [("b.md", ""), ("", "d.png")]
