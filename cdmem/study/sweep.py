"""A grid of studies in one folder: ``python -m cdmem study --config FILE --sweep data.n=32,64,128 seed=0,1,2``.

Every cell is a study of its own, in ``<run_dir>/data.n=32/seed=0/``; run again, finished cells are skipped and the
others go on where they stopped. ``sweep.json`` says what was asked for and how far it is; the comparison page shows the
answer.
"""

from __future__ import annotations

import gc
import itertools
import math
import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cdmem.errors import InputError, RunFailure
from cdmem.io.atomic import NO_SPACE, owned
from cdmem.run.folder import RunFolder
from cdmem.study.jobs import Done, Job, run_jobs
from cdmem.study.parsing import one_value, options, words

RECORD = "sweep.json"
SCHEMA = 1
MAX_CELLS = 10_000
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,120}")
VALUE = re.compile(r"[A-Za-z0-9_.+\-\[\]{}: ]{1,80}")


@dataclass
class Cell:
    """One study of the grid.

    Attributes:
        settings: swept key -> value, as written.
        folder: below the sweep's.
        status: ``waiting``, ``finished`` or ``failed``.
        seconds: of the last run, None before it.
        error: one line, None without.
        digest: of all settings that it was last run with.
    """

    settings: dict[str, str]
    folder: str
    status: str = "waiting"
    seconds: float | None = None
    error: str | None = None
    digest: str | None = None


@dataclass
class Sweep:
    """What ``sweep.json`` holds.

    Attributes:
        grid: swept key -> values.
        base: the study's other arguments.
        cells: in the order in which they run.
    """

    grid: dict[str, list[str]]
    base: list[str]
    cells: list[Cell] = field(default_factory=list)
    schema: int = SCHEMA


def split_arguments(args: Sequence[str], *keys: str) -> tuple[list[str], dict[str, list[str]]]:
    """Separate options such as ``--sweep K=V,V ...`` from the other arguments: key -> values, of those given."""
    given = options(args)
    taken: dict[str, list[str]] = {}
    for key, values in given:
        if key in keys:
            taken.setdefault(key, []).extend(values)
    return (words([pair for pair in given if pair[0] not in keys]), taken) if taken else (list(args), {})


def _values(text: str) -> list[str]:
    """Split at commas outside brackets: ``[0.2,0.8],[0.4]`` are two values."""
    parts, depth, current = [], 0, ""
    for c in text:
        depth += (c in "[{") - (c in "]}")
        if c == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += c
    return [*parts, current]


def parse_grid(items: Sequence[str]) -> dict[str, list[str]]:
    """``data.n=32,64`` ... to key -> values.

    Raises:
        InputError: no values, a key twice, a value twice, characters that no folder name should have, too many cells.
    """
    grid: dict[str, list[str]] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not KEY.fullmatch(key):
            raise InputError("sweep", item, "is not KEY=VALUE,VALUE,...", "e.g. --sweep data.n=32,64 seed=0,1,2")
        values = _values(text)
        for value in values:
            if not VALUE.fullmatch(value.replace(",", "")) or ".." in value:
                problem = "is no value that can name a folder"
                raise InputError(f"sweep.{key}", value, problem, "use plain numbers or words")
        if key in grid or len(set(values)) < len(values):
            raise InputError(f"sweep.{key}", text, "is there twice", "name every key and value once")
        grid[key] = values
    cells = math.prod(map(len, grid.values()))
    if not grid or cells > MAX_CELLS:
        raise InputError("sweep", f"{cells} cells", f"needs 1 to {MAX_CELLS}", "name at least one KEY=VALUE,VALUE")
    return grid


def cells_of(grid: dict[str, list[str]]) -> list[Cell]:
    """All combinations, the last key running fastest."""
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    return [Cell(c, "/".join(f"{key}={value}".replace(" ", "") for key, value in c.items())) for c in combinations]


def read_sweep(folder: str | Path) -> Sweep:
    """Read ``sweep.json`` of a sweep's folder.

    Raises:
        InputError: there is none, or it is torn.
    """
    record = RunFolder(folder).read_json(RECORD)
    try:
        cells = [Cell(**cell) for cell in record["cells"]]
        return Sweep(dict(record["grid"]), list(record["base"]), cells)
    except (KeyError, TypeError) as error:
        raise InputError("run_dir", folder, f"{RECORD} is torn ({error})", "remove it and run again") from None


def _merged(folder: RunFolder, sweep: Sweep) -> Sweep:
    """Take over what an earlier run of the sweep did; the grid may grow, and each cell says what else may change.

    Raises:
        InputError: the folder holds a sweep over other settings.
    """
    if not (folder / RECORD).is_file():
        return sweep
    old = read_sweep(folder.path)
    if list(old.grid) != list(sweep.grid):
        was = " ".join([*old.base, *(f"{k}={','.join(v)}" for k, v in old.grid.items())])
        raise InputError("run_dir", folder.path, f"holds another sweep ({was[:160]})", "give another --run_dir")
    known = {cell.folder: cell for cell in old.cells}
    asked = {cell.folder for cell in sweep.cells}
    sweep.cells = [known.get(cell.folder, cell) for cell in sweep.cells]
    sweep.cells += [cell for cell in old.cells if cell.folder not in asked]
    for key, values in sweep.grid.items():
        values += [v for v in old.grid[key] if v not in values]
    return sweep


def run_sweep(
    arguments: Sequence[str],
    items: Sequence[str],
    check: Callable[[list[str]], str],
    run: Callable[[list[str]], Any],
    at_once: int = 1,
) -> tuple[RunFolder, Sweep]:
    """Run the grid.

    Args:
        arguments: of the study, without ``--sweep``.
        items: ``KEY=VALUE,VALUE``.
        check: parses one cell's study, raises :class:`InputError` and returns a digest of its settings; called for
            every cell before the first runs. A finished cell with other settings runs again.
        run: runs one cell's study to its end.
        at_once: cells that run at the same time, each in a process of its own if there are several.

    Raises:
        InputError: before anything trains.
    """
    given = options(arguments)
    known = {key: one_value(key, values) for key, values in given if key in ("run_dir", "config")}
    run_dir = known.get("run_dir") or f"runs/{Path(known.get('config') or 'study').stem}_sweep"
    base = words([pair for pair in given if pair[0] != "run_dir"])
    grid = parse_grid(items)
    for key in grid:
        if key == "run_dir" or any(key == other for other, _ in given):
            raise InputError(f"sweep.{key}", key, "is set outside the sweep too", "set it once")
    folder = RunFolder(run_dir)
    sweep = _merged(folder, Sweep(grid, base, cells_of(grid)))

    def command(cell: Cell) -> list[str]:
        swept = [part for k, v in cell.settings.items() for part in (f"--{k}", v)]
        return [*base, *swept, "--run_dir", f"{run_dir}/{cell.folder}"]

    for cell in sweep.cells:
        digest = check(command(cell))
        cell.status = "waiting" if cell.digest not in (None, digest) else cell.status
        cell.digest = digest
        gc.collect()
    waiting = [cell for cell in sweep.cells if cell.status != "finished"]
    with owned(folder.path):
        if at_once == 1:
            _run_cells(folder, sweep, waiting, lambda cell: run(command(cell)))
        else:
            _run_beside(folder, sweep, waiting, command, at_once)
    return folder, sweep


def _run_beside(
    folder: RunFolder, sweep: Sweep, waiting: Sequence[Cell], command: Callable[[Cell], list[str]], at_once: int
) -> None:
    cells = {cell.folder: cell for cell in waiting}

    def ended(job: Job, done: Done) -> None:
        cell = cells[job.name]
        cell.status, cell.error, cell.seconds = "failed" if done.error else "finished", done.error, done.seconds
        folder.write_json(RECORD, asdict(sweep))

    folder.write_json(RECORD, asdict(sweep))
    logs = folder.path / "logs"
    jobs = [
        Job(name, ["study", *command(cell)], logs / f"{name.replace('/', ',')}.log") for name, cell in cells.items()
    ]
    run_jobs(jobs, at_once, ended)


def _run_cells(folder: RunFolder, sweep: Sweep, waiting: Sequence[Cell], run: Callable[[Cell], Any]) -> None:
    for number, cell in enumerate(waiting, 1):
        print(f"=== {number}/{len(waiting)}: {cell.folder}", flush=True)
        started = time.time()
        try:
            run(cell)
            cell.status, cell.error = "finished", None
        except (InputError, RunFailure):
            raise
        except Exception as error:
            if getattr(error, "errno", None) in NO_SPACE:
                raise
            # One bad cell must not cost the others; the sweep's exit code tells.
            cell.status, cell.error = "failed", " ".join(f"{type(error).__name__}: {error}".split())[:300]
            traceback.print_exc()
        cell.seconds = round(time.time() - started, 1)
        folder.write_json(RECORD, asdict(sweep))
        gc.collect()
    folder.write_json(RECORD, asdict(sweep))
