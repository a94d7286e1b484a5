"""Two thousand broken inputs: one line and exit 2, or a valid run; nothing changes. Settings and texts here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cdmem.errors import InputError
from support.cases import KINDS
from support.fuzz import FILE_KINDS, attempt_all

pytestmark = pytest.mark.slow
CASES = 2000


def test_the_kinds_add_up():
    assert sum(count for _, count in KINDS.values()) == CASES


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FILE_KINDS])
def test_broken_settings(sandbox, kind):
    attempt_all(sandbox, *KINDS[kind])


# ---- the sandbox itself ---------------------------------------------------------------------------------------------


def no_line(args):
    raise ValueError("no line")


def two_lines(args):
    print("first", file=sys.stderr)
    raise SystemExit(2)


def leave(args):
    Path("left").write_bytes(b"half")
    raise InputError("runs", "run", "is bad", "give another")


def overwriting(name):
    return lambda args: Path(name).write_bytes(b"lost") * 0


CARELESS = [(no_line, ValueError, "no line"), (two_lines, AssertionError, "first"), (leave, AssertionError, "left")]
CARELESS += [(overwriting(name), AssertionError, "changed") for name in ("images.npy", "../mine.txt")]


@pytest.mark.parametrize(("careless", "error", "said"), CARELESS)
def test_carelessness_would_be_seen(sandbox, monkeypatch, careless, error, said):
    """A traceback, a line too many, a file left after a refusal, a changed file."""
    monkeypatch.setattr("cdmem.cli.report.run_report", careless)
    with pytest.raises(error, match=said):
        sandbox.attempt(["report", "run"], {name: Path(name).read_bytes() for name in ("images.npy", "../mine.txt")})
    assert not Path("left").exists()
