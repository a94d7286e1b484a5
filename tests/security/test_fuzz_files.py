"""The files among the broken inputs of ``test_fuzz``: apart from the settings, so that two workers share them."""

from __future__ import annotations

import pytest

from support.cases import KINDS, READERS
from support.fuzz import FILE_KINDS, attempt_all

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_broken_files(sandbox, kind):
    attempt_all(sandbox, *KINDS[kind], FILE_KINDS[kind])


@pytest.mark.parametrize("command", [c for c, _ in READERS], ids=" ".join)
def test_what_the_sandbox_holds_is_valid(sandbox, command):
    """Otherwise every refusal would prove nothing."""
    sandbox.attempt(command, {})
    assert "2" not in sandbox.ends, sandbox.said
