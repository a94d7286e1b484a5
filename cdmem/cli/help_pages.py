"""The ``--help`` of our own commands as files, so that it needs no torch: ``python -m cdmem.cli.help_pages``.

Run it after a setting has changed; a test compares the files with what the parsers say.
"""

from __future__ import annotations

import contextlib
import io
import os

from cdmem.cli.main import COMMANDS, HELP_PAGES, command_function

COLUMNS = "100"


def page(command: str) -> str:
    """What the command's own parser says."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            command_function(command)(["--help"])
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({} if before is None else {"COLUMNS": before})
    return text.getvalue()


def of_its_own(command: str) -> bool:
    """Whether the command is no subcommand of Lightning's parser, nor has commands of its own."""
    return command not in ("fit", "validate", "test", "predict", "theory")


if __name__ == "__main__":
    for name in filter(of_its_own, COMMANDS):
        (HELP_PAGES / f"{name}.txt").write_text(page(name), encoding="utf-8")
