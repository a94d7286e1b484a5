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


def plant(check, *arguments, **bugs):
    """Register bugs by name, and what notices them."""
    assert not FAULTS.keys() & bugs.keys()
    FAULTS.update({name: Fault(inject, check, arguments) for name, inject in bugs.items()})


def fault(check, *arguments):
    """The same for a bug that is a function of monkeypatch."""
    return lambda inject: plant(check, *arguments, **{inject.__name__: inject})


def patch(owner, name, make):
    """Replace an attribute by what ``make`` returns for the right one."""
    return lambda m: m.setattr(owner, name, make(getattr(owner, name)))


def scalings(owner, method, **wrong):
    """Replace some of c_skip, c_out, c_in and c_noise by functions of (scaling, sigma)."""
    values = lambda self, s: {name: value(self, s) for name, value in wrong.items()}  # noqa: E731
    return patch(owner, method, lambda real: lambda self, s: real(self, s)._replace(**values(self, s)))


def slip(function, right, wrong):
    """Replace a piece of a function's own source, which must be there exactly once, wherever it was imported to.

    For what no attribute reaches.
    """
    function = inspect.unwrap(function)

    def inject(m):
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

    return inject
