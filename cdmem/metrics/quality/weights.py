"""Weight files of extractors: which file is meant, and that it is the known one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cdmem.errors import InputError
from cdmem.io.paths import usable_path


def named_file(key: str, weights: str | None, variable: str, hint: str) -> Path | None:
    """The given path, else that in an environment variable, else None.

    Raises:
        InputError: it names no file.
    """
    given = weights or os.environ.get(variable)
    if not given:
        return None
    if not usable_path(key, given).is_file():
        raise InputError(key, given, "no such file", hint)
    return Path(given)


def checked_bytes(key: str, path: Path, sha256: str, hint: str) -> bytes:
    """The file's content: what was checked is what is loaded, not the file again.

    Raises:
        InputError: its SHA-256 is another one; a TorchScript file is a program, so it must not be run.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        problem = f"SHA-256 is {digest[:12]}..., not {sha256[:12]}...; not loaded"
        raise InputError(key, path, problem, hint)
    return content
