"""jsonargparse's complaints, told in one line: the key, the value, the mend."""

from __future__ import annotations

import re

from jsonargparse import ArgumentError
from omegaconf.errors import OmegaConfBaseException

from cdmem.errors import InputError

PARSING = (ArgumentError, OmegaConfBaseException, ValueError, TypeError)  # what parsing of settings can raise

MEND = "correct the key or its value; --help lists all settings"
SPELLING = "check the spelling; --help lists all settings"
NOISE = ("Given value", "Problem with given class_path", "Subclass types", "Subtypes:", "Errors:", "tip:")


def one_line(message: str) -> str:
    """The informative lines of a long message, joined."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(NOISE) and "NoneType" not in line] or lines
    return " ".join(kept)[:400]


def original(error: BaseException) -> InputError | None:
    """An :class:`InputError` of ours that a library wrapped."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, InputError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def explain(error: Exception) -> InputError:
    """Turn a parsing failure into one line."""
    ours = original(error)
    if ours is not None:
        return ours
    text = str(error)
    unknown = re.search(r"unrecognized arguments?: --?([\w.+]+)(?:[ =](\S+))?", text, re.IGNORECASE)
    if unknown:
        return InputError(unknown[1], unknown[2] or "", "no such setting", SPELLING)
    option = re.search(r"Option '([\w.]+)' is not accepted", text)
    given = re.search(r"NestedArg\(key='([\w.]+)', val='?([^')]*)", text)
    outer = re.search(r'Parser key "([\w.]+)"', text)
    prefix = outer[1] if outer else "config"
    if option:
        key = f"{prefix}.{given[1]}" if given else f"{prefix}....{option[1]}"
        return InputError(key, given[2] if given else "", f"'{option[1]}' is no setting there", MEND)
    if given:
        return InputError(f"{prefix}.{given[1]}", given[2], one_line(text), MEND)
    value = re.search(r"Got value: (\S+)", text)
    expected = re.search(r"Expected an? <class '(\w+)'>", text)
    if value and expected and "Union" not in text:
        return InputError(prefix, value[1], f"expected {expected[1]}", "give a value of that type")
    nested = re.search(r"nested key '([\w.]+)'", text)
    if nested:
        return InputError(nested[1], "", "no such setting", SPELLING)
    return InputError(prefix, value[1] if value else "?", one_line(text), MEND)
