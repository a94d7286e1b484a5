"""Whole numbers that no array, seed or counter holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from cdmem.errors import InputError

LIMIT = 2**63


def check_numbers(settings: Any, key: str = "") -> None:
    """Look through nested settings for whole numbers beyond 64 bits.

    Raises:
        InputError: one was found; the key is dotted.
    """
    if isinstance(settings, int) and not -LIMIT <= settings < LIMIT:
        about = f"about {'-' * (settings < 0)}2^{settings.bit_length()}"  # Python refuses to print the longest ones
        raise InputError(key, about, "is beyond the 64 bits of a whole number", "give a smaller one")
    if isinstance(settings, Namespace | Mapping):
        inner = list((vars(settings) if isinstance(settings, Namespace) else settings).items())
    elif isinstance(settings, list | tuple):
        inner = list(enumerate(settings))
    else:
        return
    for name, value in inner:
        check_numbers(value, f"{key}.{name}" if key else str(name))
