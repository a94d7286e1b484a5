"""NumPy files of somebody else: nothing unpickled, and nothing allocated for what a header merely claims."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

# Deflate packs zeros 1000:1; images and rows of numbers do not come near. Small members may be as empty as they like.
MAX_RATIO, FREE = 200, 64 * 2**20
# What reading a torn or altered file can raise.
UNREADABLE = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    KeyError,
    IndexError,
    RuntimeError,  # an encrypted member; NotImplementedError, an unknown compression; RecursionError
    SyntaxError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz``, or the one of an ``.npy`` file as ``arr_0``.

    Args:
        path: of the file; its content decides which of the two it is.
        names: members to read where they are there; None reads all.

    Raises:
        ValueError: Python objects, a shape that the file does not hold, or a member packed beyond any real data.
        OSError, zipfile.BadZipFile, zlib.error, ...: torn; see :data:`UNREADABLE`.
    """
    if not path.is_file():
        raise ValueError("is no regular file")  # a pipe would be waited for
    with path.open("rb") as stream:
        if stream.read(2) != b"PK":
            stream.seek(0)
            return {"arr_0": _read(stream, path.stat().st_size)}
    with zipfile.ZipFile(path) as archive:
        members = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if info.filename.endswith(".npy") and (names is None or name in names):
                members[name] = info
        # Together: a thousand small members are as large as one, and some may share their bytes.
        packed, total = path.stat().st_size, sum(info.file_size for info in members.values())
        if total > FREE and total > MAX_RATIO * packed:
            raise ValueError(f"would unpack {packed:,} bytes to {total:,}")
        arrays = {}
        for name, info in members.items():
            if info.file_size > FREE and info.file_size > MAX_RATIO * info.compress_size:
                raise ValueError(f"{name} would unpack {info.compress_size:,} bytes to {info.file_size:,}")
            with archive.open(info) as member:
                arrays[name] = _read(member, info.file_size)
        return arrays


def array_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of the arrays that :func:`read_arrays` would give, from their headers alone; raises as that."""
    if not path.is_file():
        raise ValueError("is no regular file")
    with path.open("rb") as stream:
        if stream.read(2) != b"PK":
            stream.seek(0)
            shape, _, dtype = _header(stream)
            return {"arr_0": (shape, dtype)}
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                with archive.open(info) as member:
                    shape, _, dtype = _header(member)
                shapes[info.filename.removesuffix(".npy")] = shape, dtype
    return shapes


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return header(stream)


def _read(stream: IO[bytes], size: int) -> np.ndarray:
    """One array from a stream of ``size`` bytes."""
    shape, fortran, dtype = _header(stream)
    if dtype.hasobject:
        raise ValueError("holds Python objects, which are not unpickled")
    if not all(type(side) is int and side >= 0 for side in shape) or dtype.itemsize == 0:
        raise ValueError(f"shape {shape} of {dtype}")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > size:
        raise ValueError(f"shape {shape} of {dtype} needs {wanted:,} bytes, the file holds {size:,}")
    content = bytearray(stream.read(wanted))
    if len(content) != wanted:
        raise EOFError("ends early")
    if stream.read(1):
        raise ValueError("holds more than its array")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
