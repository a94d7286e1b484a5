"""Pickles of plain data (CIFAR's Python batches), read without unpickling: no name in them is ever looked up.

The instructions are followed here, one by one, and can make numbers, strings, lists, tuples, dicts and arrays of plain
numbers; every other instruction or name ends the reading.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 2**30  # CIFAR-100's training part has 155 MB
KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
VALUES |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
STRINGS = {"BINSTRING", "SHORT_BINSTRING"}  # of Python 2: bytes
NOTHING = {"PROTO", "FRAME", "STOP"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# What arrays are pickled by, in every version of NumPy.
ROLES = {f"{module}.multiarray _reconstruct": "array" for module in ("numpy.core", "numpy._core")}
ROLES |= {f"{module}.numeric _frombuffer": "buffer" for module in ("numpy.core", "numpy._core")}
ROLES |= {"numpy ndarray": "ndarray", "numpy dtype": "dtype", "_codecs encode": "encode"}
ROLES |= {"__builtin__ bytes": "bytes", "builtins bytes": "bytes"}  # of nothing, in protocol 2


class _Name:
    """A known name; nothing stands behind it."""

    def __init__(self, role: str) -> None:
        self.role = role


class _Type:
    """The type of an array's numbers."""

    def __init__(self, kind: Any) -> None:
        kind = kind.decode("latin-1") if isinstance(kind, bytes) else kind
        if kind not in KINDS:
            raise ValueError(f"holds an array of {str(kind)[:20]!r}")
        self.kind, self.order = kind, "="

    def build(self, state: Any) -> None:
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order not in ("|", "<", ">", "=") or any(part is not None for part in state[2:5]):
            raise ValueError("holds an array of no plain numbers")
        self.order = order

    def array(self, content: bytes | bytearray, shape: Any, fortran: bool) -> np.ndarray:
        dtype = np.dtype(("=" if self.order == "|" else self.order) + self.kind)
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("holds an array of no shape")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


class _Array:
    """An array, empty until its content comes."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Type) or not isinstance(content, bytes | bytearray):
            raise ValueError("holds an array of no plain numbers")
        self.value = kind.array(content, shape, bool(fortran))


def read_plain(file: Path) -> dict[str, Any]:
    """The dict that a pickle holds; keys as text, arrays as arrays.

    Raises:
        ValueError: it is torn, holds anything but plain data, or is no dict.
        OSError: it cannot be read.
    """
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        raise ValueError(f"is no regular file of at most {MAX_BYTES:,} bytes")
    try:
        made = _followed(file.read_bytes())
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError(f"is no whole pickle ({type(error).__name__})") from None
    if not isinstance(made, dict):
        raise ValueError("is no pickle of a dict")
    text = {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in made.items()}
    return {key: value.value if isinstance(value, _Array) else value for key, value in text.items()}


def _followed(content: bytes) -> Any:
    argument: Any
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in VALUES:
            stack.append(argument)
        elif name in STRINGS:
            stack.append(argument.encode("latin-1"))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            list.extend(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            if name == "SETITEM":
                marks.append(len(stack) - 2)
            items = since_mark()
            dict.update(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            where = argument if name == "GLOBAL" else " ".join((stack.pop(-2), stack.pop()))
            if where not in ROLES:
                raise ValueError(f"names {str(where).replace(' ', '.')[:80]}, which is no plain data")
            stack.append(_Name(ROLES[where]))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_made(stack.pop().role, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Array | _Type):
                raise ValueError("holds an object")
            stack[-1].build(state)
        elif name not in NOTHING:
            raise ValueError(f"is pickled with {name}, as plain data is not")
    return stack[-1]


def _made(role: str, arguments: Any) -> Any:
    """What one of the known names gives."""
    if role == "array":
        return _Array()
    if role == "dtype":
        return _Type(arguments[0])
    if role == "bytes" and arguments == ():
        return b""
    if role == "encode" and isinstance(arguments[0], str) and arguments[1] == "latin1":
        return arguments[0].encode("latin-1")
    if role == "buffer" and isinstance(arguments[1], _Type):
        made = _Array()
        made.value = arguments[1].array(arguments[0], arguments[2], arguments[3] == "F")
        return made
    raise ValueError("holds an object")
