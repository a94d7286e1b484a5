"""What was read of an image set and what was not, by reason: for records and for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "images"


def counted(
    read: int,
    formats: Mapping[str, int],
    skipped: Mapping[str, int] | None = None,
    notes: Mapping[str, int] | None = None,
) -> dict[str, object]:
    """The entry ``images`` of a pool's provenance, JSON types.

    Args:
        read: images read.
        formats: how many of each format.
        skipped: files or arrays not read, by reason.
        notes: what else there is to know of those read.
    """
    about: dict[str, object] = {"read": read, "formats": dict(sorted(formats.items()))}
    about["skipped"] = dict(sorted((skipped or {}).items()))
    return {KEY: about | ({"notes": dict(sorted(notes.items()))} if notes else {})}


def told(provenance: Mapping[str, Any]) -> str:
    """``500 images read (250 PNG, 250 TIFF); 3 files skipped (2 .txt, 1 hidden)``; empty where nothing was counted."""
    about = provenance.get(KEY)
    if not isinstance(about, dict):
        return ""
    text = f"{about['read']} images read ({_list(about['formats'])})"
    if about["skipped"]:
        text += f"; {sum(about['skipped'].values())} skipped ({_list(about['skipped'])})"
    return text + (f"; {_list(about['notes'])}" if "notes" in about else "")


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
