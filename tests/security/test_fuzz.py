"""Two thousand broken configs, subsets, overrides and files: one line and exit 2, or a valid run; nothing changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from cdmem.errors import InputError
from support.cases import KINDS, READERS
from support.fuzz import Sandbox, furnish, furnish_more

pytestmark = pytest.mark.slow
CASES = 2000
ASIDE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """The watched folder, and the working directory below it: ``../../x`` is watched too."""
    root = tmp_path_factory.mktemp("fuzz")
    place = root / "above" / "place"
    place.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        furnish(place)
        furnish_more(place)
    (place.parent / "mine.txt").write_text("mine")
    return root, place


@pytest.fixture
def sandbox(furnished, monkeypatch):
    monkeypatch.chdir(furnished[1])
    return Sandbox(*furnished)


def test_the_kinds_add_up():
    assert sum(count for _, count in KINDS.values()) == CASES


@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_broken_inputs(sandbox, kind):
    strategy, count = KINDS[kind]

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=ASIDE,
              phases=[Phase.generate])  # fmt: skip
    @given(strategy())
    def attempt(case):
        sandbox.attempt(*case)

    attempt()
    print(kind, count, sandbox.ends)
    # Half of what a record says is for readers and stops nothing.
    least = 0.1 if kind == "records" else 0.2
    assert sandbox.ends.get("2", 0) >= least * count, "much of what is broken must be refused"
    assert sum(sandbox.ends.values()) >= 0.9 * count


@pytest.mark.parametrize("command", [c for c, _ in READERS], ids=" ".join)
def test_what_the_sandbox_holds_is_valid(sandbox, command):
    """Otherwise every refusal would prove nothing."""
    sandbox.attempt(command, {})
    assert "2" not in sandbox.ends, sandbox.said


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
