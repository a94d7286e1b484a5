"""Mutation score of the pure rooms with cosmic-ray: the share of a drawn sample of faults that the tests notice.

  make mutants                                # 80 faults, seed 0
  make mutants FAULTS=200 SEED=1              # fewer faults of a seed are the first of more

Drawn are places in the code, evenly, and at each one of its mutants; not those of `|`, mostly in annotations, and `is`
for `==`, the same for small values. Each meets, in a copy of the tree, the tests of its room that import its module, or
where there are none the whole room's: a survivor may still be noticed by the rest of the suite.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, TestOutcome

ROOT = Path(__file__).resolve().parents[1]
# The pure rooms, and the tests of other rooms that hold them too.
ROOMS = {
    "diffusion": "training/test_training_math.py test_seeds.py models/test_import_teacher.py",
    "distillation": "training/test_training_math.py training/test_training_data.py test_seeds.py",
    "metrics": "callbacks/test_whitebox.py audit/test_claims_without_ground.py audit/test_references.py",
    "data": "security/test_arrays.py study/test_configs.py",
    "io": "security/test_arrays.py security/test_checkpoints.py security/test_folders.py security/test_run_folders.py",
    "run": "io/test_redact.py security/test_run_folders.py study/test_configs.py tracking/test_wandb.py",
}
LEFT_OUT = re.compile("BitOr_|Eq_Is|NotEq_IsNot|Is_Eq|IsNot_NotEq")
TIMEOUT = 600  # s


def draw(number: int, seed: int) -> list[MutationSpec]:
    """That many mutants of the pure rooms, each at another place."""
    session, places = WorkDB(":memory:", WorkDB.Mode.create), defaultdict(list)
    init(sorted(file for room in ROOMS for file in Path("cdmem", room).rglob("*.py")), session, {})
    for (mutant,) in (item.mutations for item in session.work_items):
        if not LEFT_OUT.search(mutant.operator_name):
            places[str(mutant.module_path), mutant.start_pos].append(mutant)
    print(f"{sum(map(len, places.values()))} mutants at {len(places)} places", flush=True)
    rng, order = random.Random(seed), sorted(places)
    rng.shuffle(order)
    return [rng.choice(sorted(places[place], key=str)) for place in order[:number]]


def tests(module: Path) -> str:
    """The command of a module's tests; paths are relative to the root."""
    package, name, room = ".".join(module.parent.parts), module.stem, module.parts[1]
    imports = re.compile(rf"from {package} import (\([^)]*|.*)\b{name}\b|{package}\.{name}\b")
    files = [*Path("tests", room).glob("test_*.py"), *(Path("tests", test) for test in ROOMS[room].split())]
    near = [file for file in files if imports.search(file.read_text(encoding="utf-8"))]
    names = " ".join(map(str, ["tests/test_defaults.py", *sorted(near or files)]))
    return f"{sys.executable} -m pytest -x -p no:cacheprovider --hypothesis-seed=0 {names}"


def copy_tree(folder: str) -> None:
    """Each worker breaks its own copy of the tree."""
    place = Path(tempfile.mkdtemp(dir=folder))
    for name in ("cdmem", "callbacks", "configs", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    os.chdir(place)
    os.environ.update(PYTHONPATH=str(place), OMP_NUM_THREADS="1")


def sound(command: str) -> bool:
    return run_tests(command, TIMEOUT)[0] == TestOutcome.SURVIVED


def difference(mutant: MutationSpec) -> str:
    """What the mutant changes, if no test notices, else nothing."""
    result = mutate_and_test([mutant], tests(Path(mutant.module_path)), TIMEOUT)
    return result.diff if result.test_outcome == TestOutcome.SURVIVED else ""


def main(number: int, seed: int) -> None:
    os.chdir(ROOT)
    mutants, survivors = draw(number, seed), 0
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, initializer=copy_tree, initargs=(folder,)) as workers,
    ):
        if not all(workers.map(sound, {tests(Path(mutant.module_path)) for mutant in mutants})):
            sys.exit("mutants: error: tests fail without any fault; run make test")
        for mutant, change in zip(mutants, workers.map(difference, mutants)):
            survivors += bool(change)
            print("survived" if change else "killed", mutant.module_path, mutant.operator_name, change, flush=True)
    print(f"{len(mutants)} mutants, {survivors} survived: score {1 - survivors / len(mutants):.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
