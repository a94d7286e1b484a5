"""What a run wrote, as plain types: the only place where the report touches files of a run.

Nothing is unpickled; a file that is missing or torn leaves its section out and says so in ``notes``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cdmem.errors import InputError
from cdmem.io.arrays import UNREADABLE, read_arrays
from cdmem.io.text import LIMIT, parse_json, parse_yaml, read_text
from cdmem.report.rows import distance_keys
from cdmem.run.ending import read_ending

SUMMARY = "audit/summary.json"
MAX_TEXT = 64 * 2**20


@dataclass
class Stage:
    """One training run inside a study; what its folder lacks is empty.

    Attributes:
        name: folder name, ``teacher`` or a student's.
        config, onset, finished: content of the files of these names.
        records: lines of ``metrics.jsonl``, merged by step, ascending.
        changes: settings that changed on the way: ``step``, ``key``, ``old``, ``new``.
    """

    name: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    onset: dict[str, Any]
    finished: dict[str, Any]
    changes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ending(self) -> str:
        """How training ended, in words; empty where that is not recorded."""
        try:
            return str(read_ending(self.finished))
        except (KeyError, TypeError, ValueError):
            return ""

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values at which a key was logged."""
        rows = [(r["step"], r[key]) for r in self.records if isinstance(r.get(key), int | float)]
        return [float(s) for s, _ in rows], [float(v) for _, v in rows]

    def mark(self, name: str) -> float | None:
        """Step of ``tau_gen`` or ``tau_mem``, or None."""
        time = self.onset.get(name)
        step = time.get("step") if isinstance(time, dict) else None
        return float(step) if isinstance(step, int | float) else None


@dataclass
class RunData:
    """A study's folder ``path``.

    Attributes:
        summary: ``audit/summary.json``.
        stages: teacher first.
        config: the study's own settings.
        environment: versions, git state, command.
        notes: what could not be read.
    """

    path: Path
    summary: dict[str, Any]
    stages: list[Stage]
    config: dict[str, Any]
    environment: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[dict[str, Any]]:
        return self.summary.get("models") or []

    @property
    def teacher(self) -> dict[str, Any] | None:
        """The teacher at full cost."""
        return next((m for m in self.models if m["role"] == "teacher"), None)

    @property
    def students(self) -> list[dict[str, Any]]:
        return [m for m in self.models if m["role"] == "student"]

    @property
    def main_models(self) -> list[dict[str, Any]]:
        """The teacher at full cost and every student."""
        return [m for m in (self.teacher, *self.students) if m]

    @property
    def threshold(self) -> float:
        """Memorised means d1 / d2 below it."""
        return float(self.summary["settings"]["threshold"])

    @property
    def distance(self) -> str:
        """Key of the Frechet distance that is shown."""
        return distance_keys(self.summary)[0]

    def arrays(self, kind: str, model: dict[str, Any]) -> dict[str, np.ndarray]:
        """Arrays of ``audit`` (rows by seed) or ``samples`` (images) of one model; empty without the file."""
        return self.load(f"{kind}/{model['name']}_{model['method']}_nfe={model['nfe']}.npz")

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Arrays of an ``.npz`` in the folder, without pickles; empty, with a note, where it cannot be read."""
        file = self.path / name
        try:
            if not file.is_file():
                return {}
            if not file.resolve().is_relative_to(self.path.resolve()):
                raise ValueError("lies outside")
            return read_arrays(file)
        except UNREADABLE as error:
            self.notes.append(f"{name} could not be read ({type(error).__name__})")
            return {}


def _text(file: Path, limit: int = MAX_TEXT) -> str:
    try:
        return read_text(file, limit)
    except (OSError, ValueError):
        return ""


def _mapping(file: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON or YAML mapping; empty where there is none, with a note where there is something else."""
    is_yaml = file.suffix == ".yaml"
    text = _text(file, LIMIT if is_yaml else MAX_TEXT)
    try:
        value = parse_yaml(text) if is_yaml else parse_json(text or "{}")
    except ValueError as error:
        notes.append(f"{file.name} could not be read ({type(error).__name__})")
        return {}
    return value if isinstance(value, dict) else {}


def _changes(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Entries of ``changes.json`` that are what a run writes."""
    text = _text(file)
    try:
        entries = parse_json(text) if text else []
        return [e for e in entries if isinstance(e["step"], int) and isinstance(e["key"], str)]
    except (ValueError, TypeError, KeyError) as error:
        notes.append(f"{file.name} could not be read ({type(error).__name__})")
        return []


def _records(file: Path) -> list[dict[str, Any]]:
    """Lines of a metrics record merged by step; torn lines are skipped."""
    merged: dict[int, dict[str, Any]] = {}
    for line in _text(file).splitlines():
        try:
            row = parse_json(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
        keep = {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}
        merged.setdefault(step, {}).update(keep)
    return [merged[s] | {"step": s} for s in sorted(merged)]


def _stage(folder: Path, notes: list[str]) -> Stage:
    return Stage(
        name=folder.name,
        config=_mapping(folder / "config.yaml", notes),
        records=_records(folder / "metrics.jsonl"),
        onset=_mapping(folder / "onset.json", notes),
        finished=_mapping(folder / "finished.json", notes),
        changes=_changes(folder / "changes.json", notes),
    )


@contextmanager
def as_recorded(*folders: Path) -> Iterator[None]:
    """A record that is valid JSON but not what an audit writes (edited, or of another program) is one line, too.

    Raises:
        InputError: in place of what a missing or odd value would raise.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        where = ", ".join(str(folder / SUMMARY) for folder in folders)
        what = f"{type(error).__name__}: {str(error)[:80]}"
        raise InputError("run", where, f"is not what an audit writes ({what})", "run the study again") from error


def read_run(path: str | Path) -> RunData:
    """Read a study's folder.

    Raises:
        InputError: no folder, or no audit in it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError("run", path, "no such folder", "give the folder of a study")
    if not (folder / SUMMARY).is_file():
        raise InputError("run", path, f"holds no {SUMMARY}", "run the study to its end first")
    notes: list[str] = []
    summary = _mapping(folder / SUMMARY, notes)
    if not isinstance(summary.get("models"), list) or not summary["models"]:
        raise InputError("run", path, f"{SUMMARY} is torn or empty", "run the study again to make it anew")
    names = (p.parent.name for p in folder.glob("*/config.yaml"))
    names = sorted(names, key=lambda name: (name != "teacher", name))
    return RunData(
        path=folder,
        summary=summary,
        stages=[_stage(folder / name, notes) for name in names],
        config=_mapping(folder / "config.yaml", notes),
        environment=_mapping(folder / "environment.json", notes),
        notes=notes,
    )
