"""Each known bug, switched on, makes the check named beside it fail; switched off, it passes.

The list is that of mistakes found in public implementations of consistency training and of memorisation metrics, and in
their issue trackers.
"""

from __future__ import annotations

import pytest

import support
from support.faults import FAULTS

CASES = pytest.mark.parametrize("name", list(FAULTS))


@CASES
def test_the_check_notices_the_bug(name, monkeypatch):
    bug = FAULTS[name]
    bug.inject(monkeypatch)
    with pytest.raises(AssertionError):
        bug.check(*bug.arguments)


# One pass without a bug for every check and arguments that stand in the table.
SOUND = {
    f"{b.check.__name__}({', '.join(str(getattr(a, '__name__', a)) for a in b.arguments)})": b for b in FAULTS.values()
}


@pytest.mark.parametrize("name", list(SOUND))
def test_the_check_passes_without_a_bug(name):
    SOUND[name].check(*SOUND[name].arguments)


def test_every_check_catches_something():
    """A statement of ``support`` that no bug can break would say nothing."""
    every = {name for name in vars(support) if name.startswith("check_")}
    assert every == {b.check.__name__ for b in FAULTS.values()}
