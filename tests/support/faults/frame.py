"""How a planted bug is described."""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType

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


def slip(m, function, right, wrong):
    """Replace a piece of a function's own source, which must be there exactly once, wherever it was imported to."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(right) == 1, f"{function.__qualname__} has {source.count(right)} times: {right}"
    source = source.replace(right, wrong)
    if function.__code__.co_freevars:  # super() needs the class
        source = f"def _({', '.join(function.__code__.co_freevars)}):\n" + textwrap.indent(source, "    ")
    source = "\n" * (function.__code__.co_firstlineno - 1) + source  # for tracebacks
    flags = __future__.annotations.compiler_flag
    known = [compile(source, function.__code__.co_filename, "exec", flags=flags, dont_inherit=True)]
    for code in known:  # grows while it is read
        known += [part for part in code.co_consts if isinstance(part, CodeType)]
    m.setattr(function, "__code__", next(code for code in known if code.co_name == function.__name__))
