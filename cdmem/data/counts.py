"""What was read of an image set and what was not, by reason: for records and for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

KEY = "images"
SHOWN = 12  # reasons in a line


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
    about: dict[str, object] = {"read": read, "formats": _clean(formats), "skipped": _clean(skipped or {})}
    return {KEY: about | ({"notes": _clean(notes)} if notes else {})}


def _clean(counts: Mapping[str, int]) -> dict[str, int]:
    """Sorted; reasons that hold a stranger's names are short and move no cursor."""
    whole: Counter[str] = Counter()
    for name, count in counts.items():
        whole["".join(c if c.isprintable() else "?" for c in name)[:60]] += count
    return dict(sorted(whole.items()))


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
    shown = [f"{count} {name}" for name, count in list(counts.items())[:SHOWN]]
    return ", ".join([*shown, "..."] if len(counts) > SHOWN else shown)
