"""One parser for every command whose settings are a dataclass: ``--key value``, ``--key=value``, ``--key a b``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from cdmem.errors import InputError
from cdmem.io.paths import possible_path
from cdmem.study.parsing import field_type, help_text, is_list, one_value, options, read_settings

Kind = TypeVar("Kind")


def parse(
    kind: type[Kind],
    args: Sequence[str],
    command: str,
    positional: str = "",
    about: str = "",
    beneath: Mapping[str, Any] | None = None,
) -> Kind:
    """The settings of a command.

    Lists are written ``--key a b``, ``--key [a,b]`` or ``--key a``; a flag without a value is true. ``--help`` prints
    every setting with its meaning, from the docstring, and its default, and ends the program.

    Args:
        kind: a dataclass; fields that are dataclasses are groups, ``--group.key value``.
        args: what stands after the command.
        command: for messages, such as ``audit``.
        positional: the field that words without an option belong to.
        about: shown by ``--help``; the dataclass's docstring if empty.
        beneath: values that the options go over.

    Raises:
        InputError: an unknown key, a value of another type, a required one that is missing, or whatever
            ``__post_init__`` refuses.
    """
    if {"-h", "--help"} & set(args):
        print(help_text(kind, command, about), end="")
        raise SystemExit(0)
    values: dict[str, Any] = dict(beneath or {})
    loose: list[str] = []
    for key, words in options(args):
        own, rest = _split(words, field_type(kind, key)) if key else ([], words)
        loose += rest
        if key:
            values[key] = own if len(own) > 1 and is_list(field_type(kind, key)) else one_value(key, own)
    if loose and not positional:
        missing = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING and f.name not in values]
        key, hint = ("arguments", f"write settings of {command} as --key value")
        if missing:
            key, hint = missing[0], f"write --{missing[0]} {loose[0]}"
        raise InputError(key, loose[0], "belongs to no option", hint)
    if loose:
        values[positional] = loose if is_list(field_type(kind, positional)) else one_value(positional, loose)
    return read_settings(kind, values)


def _split(words: list[str], hint: Any) -> tuple[list[str], list[str]]:
    """The words after an option that are its value, and those that belong to no option."""
    if hint is bool:
        return (words[:1], words[1:]) if words and words[0].lower() in ("true", "false") else (["true"], words)
    return (words, []) if hint is None or is_list(hint) else (words[:1], words[1:])


def new_file(key: str, value: str, suffix: str) -> Path:
    """The path of a file to be written after minutes of work: that it cannot be is said before.

    Raises:
        InputError: another suffix, something lies there, or the folder cannot be written.
    """
    file = possible_path(key, value)
    if file.suffix != suffix:
        raise InputError(key, file, f"must end in {suffix}", f"e.g. --{key} {key}{suffix}")
    if file.exists() or file.is_symlink():
        raise InputError(key, file, "exists already", f"give another --{key}")
    nearest = next(p for p in file.absolute().parents if p.exists())
    try:
        # While it is written its name is longer.
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=f".{file.name}."):
            return file
    except OSError as error:
        raise InputError(key, file, f"cannot be written ({error.strerror})", f"give another --{key}") from None
