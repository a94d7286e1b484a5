"""Progress: a bar on a terminal; elsewhere (a log file, a pipe) one line for every tenth of the work."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

PARTS = 10


class ProgressLines:
    """What :class:`tqdm.tqdm` does, as far as it is used here, without carriage returns.

    Args:
        total: units of work; None writes nothing.
        desc: what is done.
        initial: units done before.
        disable: write nothing.
        file: standard error, unless given.
    """

    def __init__(
        self,
        total: float | None = None,
        desc: str = "",
        initial: int = 0,
        disable: bool = False,
        file: TextIO | None = None,
    ) -> None:
        self.total, self.desc, self.initial, self.disable, self.file = total, desc, initial, disable, file
        self.n, self.postfix = initial, ""
        self._shown, self._start = self._part(), time.monotonic()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _part(self) -> int:
        return int(PARTS * self.n / self.total) if self.total else 0

    def update(self, n: int = 1) -> None:
        """Count ``n`` more units."""
        self.n += n
        self._write()

    def refresh(self, *_: object) -> None:
        """A line is written once its values are known, by :meth:`set_postfix`."""

    def _write(self) -> None:
        part = self._part()
        if part <= self._shown or self.disable:
            return
        self._shown = part
        seconds = time.monotonic() - self._start
        what = f"{self.desc.strip(': ')}: {100 * part // PARTS:3d} % ({self.n}/{self.total:.0f}), {seconds:.0f} s"
        print(what + self.postfix, file=self.file or sys.stderr, flush=True)

    def set_description(self, desc: str = "", *_: object) -> None:
        """Another name from here on."""
        self.desc = desc

    def set_postfix(self, values: dict[str, Any] | None = None, *_: object, **more: Any) -> None:
        """Values that stand behind the line."""
        shown = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in {**(values or {}), **more}.items()}
        self.postfix = "".join(f", {key} {value}" for key, value in shown.items())
        self._write()

    def reset(self, total: float | None = None) -> None:
        """Begin again."""
        self.n, self.total = 0, total or self.total
        self._shown = 0

    def close(self) -> None:
        """Nothing is left open."""


def progress(total: int | None, desc: str, disable: bool = False) -> tqdm[Any] | ProgressLines:
    """A bar or lines on standard error."""
    kind = tqdm if sys.stderr.isatty() else ProgressLines
    return kind(total=total, desc=desc, disable=disable)
