"""Code of the user's own, by its dotted name: on whose word it is imported (docs/security.md).

A command line, and a config outside run folders, are the user's own words: what they name is imported. A file (the
record in a checkpoint, a training set's source) only gets what they have named in this very command; ``--allow_code``
lets it name what it likes.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdmem.errors import InputError, brief

FLAG = "--allow_code"
PACKAGE = str(Path(__file__).parents[1])


@dataclass
class Words:
    """What the user said in one command.

    Attributes:
        allowed: files may name code.
        named: dotted name -> what it is.
    """

    allowed: bool = False
    named: dict[str, Any] = field(default_factory=dict)


_words: ContextVar[Words] = ContextVar("words", default=Words())  # noqa: B039  (of Python programs, all in one)


def split_consent(args: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without ``--allow_code`` (alone, or with true or false), and whether it allows."""
    rest: list[str] = []
    allowed = False
    words = list(args)
    while words:
        word = words.pop(0)
        flag, _, value = word.partition("=")
        if flag != FLAG:
            rest.append(word)
            continue
        if not value and words and words[0].lower() in ("true", "false"):
            value = words.pop(0)
        if value.lower() not in ("", "true", "false"):
            raise InputError("allow_code", value, "is neither true nor false", f"write {FLAG}")
        allowed = value.lower() != "false"
    return rest, allowed


@contextmanager
def consent(allowed: bool) -> Iterator[None]:
    """One command's words: nothing is named yet, and files may name code if ``allowed``."""
    token = _words.set(Words(allowed))
    try:
        yield
    finally:
        _words.reset(token)


def allows() -> bool:
    """Whether files may name code."""
    return _words.get().allowed


def named(path: str) -> Any:
    """Import what the user's own words name as ``module.name``, and remember it for the files of this command.

    Raises:
        Exception: whatever the module raises; ValueError for a name without a module.
    """
    module, _, last = path.rpartition(".")
    if not module:
        raise ValueError("it is no module.name")
    found = getattr(importlib.import_module(module), last)
    _words.get().named[path] = found
    return found


def recalled(path: str, key: str) -> Any:
    """What a file names as ``module.name``.

    Args:
        path: the name.
        key: what the file is for, for messages.

    Raises:
        InputError: nobody named it and no file may name code; or it cannot be imported.
    """
    words = _words.get()
    if path in words.named:
        return words.named[path]
    if not words.allowed:
        problem = "is code of one's own, and a file must not choose code"
        raise InputError(key, path, problem, f"add {FLAG} if you made that file or trust who did")
    try:
        return named(path)
    except Exception as error:  # whatever the module raises
        hint = "start the command where its module lies"
        raise InputError(key, path, f"cannot be imported ({reason(error)})", hint) from None


def is_own(part: object) -> bool:
    """Whether an object's class lies outside the package."""
    return not type(part).__module__.startswith(("cdmem.", "callbacks."))


def class_path(part: object) -> str:
    """Where an object's class is defined, ``module.name``."""
    return f"{type(part).__module__}.{type(part).__qualname__}"


def reason(error: BaseException) -> str:
    """An exception of the user's own code in short: kind, text, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (PACKAGE, str(Path(traceback.__file__).parent), "<")
    own = [f for f in frames if not f.filename.startswith(libraries) and "site-packages" not in f.filename]
    where = f", {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {brief(error)}{where}"
