"""The versions that are admitted are the versions that were tried, and our own use of them is not deprecated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from support.source import MODULES as SOURCE
from support.source import ROOT, imported

SCRIPT = ROOT / ".ci" / "versions.sh"
OPERATORS_FROM_BELOW = (">=", "==")


def admitted() -> dict[str, Requirement]:
    """Every direct dependency, those of the extras too, by canonical name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    found: dict[str, Requirement] = {}
    for line in lines:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name in found:
            assert requirement.specifier == found[name].specifier, f"{name} is bounded differently in two places"
        found[name] = requirement
    return found


def pinned(name: str) -> dict[str, Version]:
    """The pins of a constraint file: plain ``name==version`` lines, each name once."""
    lines = [line.split("#")[0].strip() for line in (ROOT / ".ci" / name).read_text(encoding="utf-8").splitlines()]
    pairs = [line.split("==") for line in lines if line]
    pins = {canonicalize_name(package): Version(version) for package, version in pairs}
    assert len(pins) == len(pairs), f"{name} names a package twice"
    return pins


def lower_bound(requirement: Requirement) -> Version:
    bounds = [Version(s.version) for s in requirement.specifier if s.operator in OPERATORS_FROM_BELOW]
    assert len(bounds) == 1, f"{requirement} needs one lower bound"
    return bounds[0]


def test_the_lowest_versions_are_the_lower_bounds():
    assert pinned("lowest.txt") == {name: lower_bound(requirement) for name, requirement in admitted().items()}


def test_the_highest_versions_are_admitted():
    pins, bounds = pinned("highest.txt"), admitted()
    assert set(pins) == set(bounds)
    refused = {n: str(v) for n, v in pins.items() if v not in bounds[n].specifier}
    assert not refused


def test_the_malicious_uploads_stay_out():
    lightning = admitted()["lightning"].specifier
    assert "2.6.2" not in lightning and "2.6.3" not in lightning and "2.6.1" in lightning


def test_what_is_imported_is_declared():
    distributions = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml", "cleanfid": "clean-fid"}
    found = {name.split(".")[0] for path in SOURCE.values() for name in imported(path, typing=True)}
    found -= sys.stdlib_module_names | {"cdmem", "callbacks"}
    found -= {"wandb_workspaces"}  # the command that wants it says how to install it
    assert {canonicalize_name(distributions.get(m, m)) for m in found} <= set(admitted())


def test_the_script_refuses_anything_else_in_one_line():
    for arguments in ([], ["newest"], ["lowest", "highest"]):
        done = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=20)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and "lowest or highest" in done.stderr


def test_the_script_runs_files_that_exist():
    files = re.findall(r"tests/\w+/test_\w+\.py", SCRIPT.read_text(encoding="utf-8"))
    assert len(files) > 10 and len(set(files)) == len(files)
    assert not [file for file in files if not (ROOT / file).is_file()]


WARN = "import warnings\ndef call(category, level=1):\n    warnings.warn('old', category, stacklevel=level)\n"
PASS_ON = "import library\ndef call(category):\n    library.call(category, {level})\n"
CATEGORIES = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")
# Module that is called: its text, and whether its deprecations are errors.
MODULES = {
    "cdmem.x": (WARN, True),
    "cdmem.metrics.x": (WARN, True),
    "callbacks.x": (WARN, True),
    "support.x": (WARN, True),
    "cdmem.blamed": (PASS_ON.format(level=2), True),
    "cdmem.innocent": (PASS_ON.format(level=1), False),
    "library": (WARN, False),
    "cdmemory": (WARN, False),
}
BITE = """
import importlib, warnings
import pytest

@pytest.mark.parametrize("category", [{categories}])
@pytest.mark.parametrize("module", {modules})
def test_call(module, category):
    importlib.import_module(module).call(category)

def test_other_kind():
    importlib.import_module("cdmem.x").call(UserWarning)

def test_here():
    warnings.warn("old", DeprecationWarning)
"""


def test_the_filter_bites(tmp_path):
    """pytest under our own settings: a deprecation is an error where our file is named as the place, and only there."""
    bite = BITE.format(categories=", ".join(CATEGORIES), modules=list(MODULES))
    for module, (text, _) in {**MODULES, "tests.test_bite": (bite, True)}.items():
        file = tmp_path / f"{module.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONWARNINGS", "PYTEST_ADDOPTS", "PYTHONPATH")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--tb=no"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    found = {name: verdict for verdict, name in re.findall(r"^(PASSED|FAILED) \S+::test_(\S+)", done.stdout, re.M)}
    bites = {f"call[{module}-{category}]": bad for module, (_, bad) in MODULES.items() for category in CATEGORIES}
    bites |= {"other_kind": False, "here": True}
    assert found == {name: "FAILED" if bad else "PASSED" for name, bad in bites.items()}, done.stdout + done.stderr
