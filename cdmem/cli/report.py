"""``python -m cdmem report RUN [RUN ...]``: the page of a study; for several studies or a sweep, also a comparison.

Everything is read from files; nothing is trained or sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdmem.cli.arguments import parse
from cdmem.errors import InputError
from cdmem.io.paths import possible_path
from cdmem.report.build import write_report
from cdmem.report.compare import prepare_comparison, studies_below


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Options of report.

    Attributes:
        runs: folders of studies, or one folder of a sweep; --runs may be left out.
        out: comparison page; comparison.html in the sweep's folder or here if null.
    """

    runs: list[str]
    out: str | None = None


def run_report(args: Sequence[str]) -> int:
    """Write the pages and name them."""
    options = parse(ReportCommand, args, "report", positional="runs", about=__doc__ or "")
    folders = [f for path in options.runs for f in studies_below(path)]
    if not folders:
        raise InputError("runs", " ".join(options.runs), "no finished study there", "run the study to its end first")
    root = Path(options.runs[0]) if len(options.runs) == 1 else Path()
    out = possible_path("out", root / "comparison.html" if options.out is None else options.out)
    if out.suffix != ".html" or out.is_dir():
        raise InputError("out", out, "must end in .html and be no folder", "e.g. --out comparison.html")
    # What cannot be compared is told before any page is written.
    keep = prepare_comparison(folders, out) if len(folders) > 1 else None
    for folder in folders:
        print(f"report: {write_report(folder)}")
    if keep is not None:
        print(f"comparison: {keep()}")
    return 0
