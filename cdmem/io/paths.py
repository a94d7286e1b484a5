"""Paths as the user gives them, before anything looks for what lies there."""

from __future__ import annotations

import os
from pathlib import Path

from cdmem.errors import InputError


def usable_path(key: str, value: str | Path) -> Path:
    """A path with ``~`` replaced. Names that no file system takes are refused here, once for all readers.

    Raises:
        InputError: empty, with a NUL, too long, or the home folder of nobody.
    """
    text = str(value)
    if not text or "\0" in text:
        raise InputError(key, repr(text), "is no path", "give a file or folder")
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(key, text[:80], f"is no usable path ({reason})", "give another path") from None
    return path


def possible_path(key: str, value: str | Path) -> Path:
    """A path where a file or folder could be made: what takes minutes must not fail when it is written.

    Raises:
        InputError: as :func:`usable_path`; a part of the way is a file, or the nearest folder cannot be written.
    """
    path = usable_path(key, value)
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
    if nearest != path.absolute() and not nearest.is_dir():
        raise InputError(key, path, f"{nearest} is no folder", "give another path")
    if nearest.is_dir() and not os.access(nearest, os.W_OK):
        raise InputError(key, path, f"{nearest} cannot be written", "give another path")
    return path
