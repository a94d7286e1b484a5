"""The house keeps its floors: a room imports only lower rooms, and no two files import each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from support.source import MODULES, ROOT, imported


def floors() -> dict[str, int]:
    """Room -> floor, as docs/architecture.md draws them."""
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```\n")[1].splitlines()
    drawn: dict[str, int] = {}
    for floor, *rooms in (line.split("    ")[0].split() for line in lines):  # words about the rooms stand further right
        drawn |= {room if room == "callbacks" else f"cdmem.{room}": int(floor) for room in rooms}
    return drawn


ROOMS = floors()
# Arrows on one floor.
BESIDE = {
    ("cdmem.io", "cdmem.errors"),
    ("cdmem.seeds", "cdmem.errors"),
    ("callbacks", "cdmem.audit"),
    ("callbacks", "cdmem.theory"),
    ("cdmem.theory", "cdmem.audit"),
}
TOP_LEVEL = {"__init__", "__main__", "errors", "images", "seeds"}
# Packages that only some rooms name.
FOREIGN = {
    "lightning": {"cdmem.training", "cdmem.tracking", "cdmem.models", "cdmem.study", "cdmem.cli", "callbacks"},
    "wandb": {"cdmem.tracking"},
    "diffusers": {"cdmem.networks", "cdmem.models"},
    "callbacks": {"cdmem.study"},
}


def room(module: str) -> str:
    """``cdmem.metrics.quality.prdc`` -> ``cdmem.metrics``; ``callbacks.onset`` -> ``callbacks``."""
    return ".".join(module.split(".")[: 2 if module.startswith("cdmem") else 1])


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_room_imports_lower_rooms_only(name):
    for module in (m for m in MODULES if room(m) == name):
        for other in {room(i) for i in imported(MODULES[module]) if i in MODULES} - {"cdmem", name}:
            below = ROOMS[other] < ROOMS[name] or (name, other) in BESIDE
            assert below, f"{module} (floor {ROOMS[name]}) imports {other} (floor {ROOMS[other]})"


def test_no_two_files_import_each_other():
    """Re-exports of packages aside, which name their own files."""
    files = {name: path for name, path in MODULES.items() if path.name != "__init__.py"}
    graph = {name: imported(path) & set(files) - {name} for name, path in files.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_top_level_is_the_ground():
    assert {p.stem for p in (ROOT / "cdmem").glob("*.py")} == TOP_LEVEL


def test_the_page_draws_every_room():
    assert set(ROOMS) == {room(m) for m in MODULES} - {"cdmem", "cdmem.__main__"}


@pytest.mark.parametrize("package", sorted(FOREIGN))
def test_foreign_packages_stay_in_their_rooms(package):
    users = {room(m) for m, p in MODULES.items() if package in {i.split(".")[0] for i in imported(p)}}
    assert users - {package} <= FOREIGN[package]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_stay_small_and_documented(name):
    text = MODULES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{name} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or "Protocol" in ast.unparse(node), f"{name}.{node.name} has no docstring"


def test_only_one_place_knows_the_pixel_range():
    holders = [n for n, p in MODULES.items() if "127.5" in p.read_text(encoding="utf-8")]
    assert holders == ["cdmem.images"]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("cdmem.cli.main", ("torch", "lightning", "numpy")), ("cdmem.report.build", ("torch", "lightning"))],
)
def test_importing_it_is_light(module, heavy):
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
