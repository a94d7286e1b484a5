"""``metrics.jsonl``: one line per logging event."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from cdmem.io.atomic import sync
from cdmem.io.text import parse_json
from cdmem.run.folder import RunFolder


class MetricsRecord:
    """``metrics.jsonl``: appended, never rewritten except to drop what came after a resumed checkpoint."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._rewind: tuple[int | None, int] | None = None

    @property
    def path(self) -> Path:
        return self.folder.path / "metrics.jsonl"

    def append(self, step: int, values: dict[str, float]) -> None:
        """Add one line: ``{"step": ..., "time": unix seconds, key: value, ...}``."""
        self._apply_rewind()
        line = json.dumps({"step": int(step), "time": round(time.time(), 3), **values})
        with self.folder.file("metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All complete lines; a torn last line is left out."""
        if not self.path.is_file():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(parse_json(line))
            except ValueError:
                continue
        return rows

    def sync(self) -> int:
        """Force all lines to the disk; their size in bytes."""
        self._apply_rewind()
        if not self.path.is_file():
            return 0
        sync(self.path)
        return self.path.stat().st_size

    def rewind_before_next_line(self, size: int | None, step: int) -> None:
        """:meth:`rewind` once there is something to write: a run that cannot be restored changes nothing."""
        self._rewind = (size, step)

    def _apply_rewind(self) -> None:
        rewind, self._rewind = self._rewind, None
        if rewind is not None:
            self.rewind(*rewind)

    def rewind(self, size: int | None, step: int) -> None:
        """Forget what was written after a checkpoint: a resumed run does that work again.

        Args:
            size: bytes of the record when the checkpoint was written; None if it does not say.
            step: of the checkpoint. Without ``size``, or when the file has lost its end, lines up to it are kept.
        """
        if not self.path.is_file():
            return
        if size is not None and self.path.stat().st_size >= size:
            os.truncate(self.path, size)
            return
        kept = [row for row in self.rows() if row["step"] <= step]
        self.folder.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
