"""The help that is printed without importing anything heavy is what the parsers say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cdmem.cli.help_pages import of_its_own, page
from cdmem.cli.main import COMMANDS, HELP_PAGES

NAMES = [name for name in COMMANDS if of_its_own(name)]


@pytest.mark.parametrize("command", NAMES)
def test_it_is_what_the_parser_says(command):
    """Line breaks aside, which differ between versions of Python."""
    kept = (HELP_PAGES / f"{command}.txt").read_text(encoding="utf-8")
    assert kept.split() == page(command).split(), "run python -m cdmem.cli.help_pages"


@pytest.mark.parametrize("command", NAMES)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_it_imports_nothing_heavy(command, flag):
    code = f"""import sys
from cdmem.cli.main import dispatch
assert dispatch([{command!r}, {flag!r}]) == 0
print(sorted({{"torch", "lightning", "numpy", "jsonargparse"}} & set(sys.modules)), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n" and done.stdout == (HELP_PAGES / f"{command}.txt").read_text(encoding="utf-8")


def test_no_page_of_a_command_that_is_gone():
    assert {file.stem for file in HELP_PAGES.iterdir()} == set(NAMES)
