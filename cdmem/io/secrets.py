"""The user's W&B key: in no file of a run, whatever a config or a command line holds."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any

from cdmem.errors import InputError

HIDDEN = "***"
LEAST = 12  # characters; W&B's keys have 40 and more, and a shorter one would hide ordinary words


def secrets() -> list[str]:
    """The key of ``WANDB_API_KEY`` and those of W&B hosts in the netrc file, the longest first."""
    keys = {os.environ.get("WANDB_API_KEY") or ""}
    own = os.environ.get("WANDB_BASE_URL", "").rpartition("://")[2].split("/")[0]
    try:
        files = (
            [Path(os.environ["NETRC"])] if os.environ.get("NETRC") else [Path.home() / n for n in (".netrc", "_netrc")]
        )
    except RuntimeError:  # no home
        files = []
    for file in files:
        try:
            hosts = netrc.netrc(file).hosts
        except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
            continue
        keys |= {password or "" for host, (_, _, password) in hosts.items() if "wandb" in host or host == own}
    return sorted((s for s in keys if len(s) >= LEAST), key=len, reverse=True)


def redact(value: Any, hidden: list[str] | None = None) -> Any:
    """The same plain value, mappings and lists included, with every secret replaced by :data:`HIDDEN`."""
    hidden = secrets() if hidden is None else hidden
    if not hidden:
        return value
    if isinstance(value, str):
        for secret in hidden:
            value = value.replace(secret, HIDDEN)
        return value
    if isinstance(value, dict):
        return {redact(k, hidden): redact(v, hidden) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact(v, hidden) for v in value)
    return value


def refuse_secrets(args: list[str]) -> None:
    """W&B itself records the command line, so a key must not be on it.

    Raises:
        InputError: an argument holds the key; the message does not.
    """
    hidden = secrets()
    for arg in args:
        if redact(arg, hidden) != arg:
            problem = "holds your W&B key, which would be recorded with the command"
            raise InputError("arguments", redact(arg, hidden), problem, "give it by WANDB_API_KEY or wandb login alone")
