"""How a planted bug is described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cdmem.diffusion import preconditioning

EDM, VP = preconditioning.EDMScaling, preconditioning.VPScaling


@dataclass(frozen=True)
class Fault:
    """A bug.

    Attributes:
        inject: puts it in place, given pytest's monkeypatch.
        check: what notices.
        arguments: of the check.
    """

    inject: Callable[[pytest.MonkeyPatch], None]
    check: Callable[..., None]
    arguments: tuple = field(default=())


FAULTS: dict[str, Fault] = {}


def fault(check, *arguments):
    def register(inject):
        assert inject.__name__ not in FAULTS
        FAULTS[inject.__name__] = Fault(inject, check, arguments)
        return inject

    return register
