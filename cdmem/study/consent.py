"""A config may name any class, so one that lies in a run folder is read only with ``--allow_code`` (docs/security.md).

Whoever made the folder wrote that config; all others, and the command line, are the user's own words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonargparse

from cdmem.errors import InputError
from cdmem.io.own_code import FLAG, allows
from cdmem.io.text import parse_settings

# What cdmem writes into a run folder, a sweep's folder or an exported one.
RECORDS = ("environment.json", "training_set.json", "finished.json", "sweep.json", "audit/summary.json")
MARKS = (*RECORDS, "last.ckpt", "cdmem.json", "model_index.json", "checkpoints/*.ckpt")


def run_folder_of(file: str | Path) -> Path | None:
    """The nearest run folder that a file lies in, by its name or by where a link leads."""
    literal = Path(os.path.abspath(file))
    parents = dict.fromkeys([*literal.parents, *literal.resolve().parents])
    return next((p for p in parents if any(next(p.glob(mark), None) for mark in MARKS)), None)


def check_consent(file: str | Path) -> None:
    """Raises InputError for a config of a run folder, unless ``--allow_code`` was given."""
    folder = None if allows() else run_folder_of(file)
    if folder is not None:
        problem = f"lies in the run folder {folder}, and a config may name code to run"
        raise InputError("config", file, problem, f"add {FLAG} if you made that folder or trust who did")


@contextmanager
def checked_configs(first: str | None) -> Iterator[None]:
    """Every config that the parser opens in this context, also by an include, is held to :func:`check_consent`.

    One that is no mapping in YAML, or says a thing twice, is refused with the line; a file that another one includes
    may be a list, of callbacks for example.

    Args:
        first: the config that the command line names.
    """
    read, refusals = jsonargparse.Path.read_text, []

    def checked(path: jsonargparse.Path) -> str:
        try:
            check_consent(path.absolute)
            text = read(path)
            try:
                parse_settings(text, lists=first is None or path.absolute != os.path.abspath(first))
            except ValueError as error:
                hint = "see configs/quickstart/teacher.yaml"
                raise InputError("config", path.relative, str(error), hint) from None
        except InputError as error:
            refusals.append(error)  # the parser may go on and try the text as another type
            raise
        return text

    jsonargparse.Path.read_text = checked
    try:
        yield
    finally:
        jsonargparse.Path.read_text = read
        if refusals:
            raise refusals[0] from None
