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
    """Sorted; reasons that repeat names from untrusted files are short and move no cursor."""
    whole: Counter[str] = Counter()
    for name, count in counts.items():
        whole["".join(c if c.isprintable() else "?" for c in name)[:60]] += count
    return dict(sorted(whole.items()))


def told(provenance: Any) -> str:
    """``500 images read (250 PNG, 250 TIFF); 3 skipped (2 .txt, 1 hidden)``; empty where nothing was counted."""
    about = provenance.get(KEY) if isinstance(provenance, Mapping) else None
    if not isinstance(about, Mapping) or type(about.get("read")) is not int:
        return ""
    text = f"{about['read']} images read ({_list(about.get('formats'))})"
    if about.get("skipped"):
        text += f"; {_list(about['skipped'])} skipped"
    return text + (f"; {_list(about['notes'])}" if about.get("notes") else "")


def report(provenance: Mapping[str, Any], images: str, held_out: str) -> list[str]:
    """Lines on the images of a training set and on held-out images from elsewhere, under these names."""
    parts = {images: told(provenance), held_out: told(provenance.get("held_out"))}
    return [f"{name}: {text}" for name, text in parts.items() if text]


def _list(counts: Any) -> str:
    """``2 .txt, 1 hidden``; a record may have been edited by hand."""
    if not isinstance(counts, Mapping):
        return "?"
    numbers = {str(name): count for name, count in counts.items() if type(count) is int}
    shown = [f"{count} {name}" for name, count in list(_clean(numbers).items())[:SHOWN]]
    return ", ".join([*shown, "..."] if len(numbers) > SHOWN else shown)
