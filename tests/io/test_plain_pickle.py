"""Pickles of plain data are read to the last number, those of anything else are not, and none is unpickled."""

import collections
import os
import pickle
import struct

import numpy as np
import pytest

from cdmem.io.plain_pickle import read_plain
from support.untrusted import memory

ARRAYS = [
    np.arange(12, dtype=np.uint8).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4)),
    np.arange(5, dtype=">i4"),
    np.linspace(0, 1, 7),
    np.zeros((0, 3), np.int64),
    np.array([True, False]),
]


def read(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    return read_plain(tmp_path / "x")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_plain_data_comes_back(tmp_path, protocol, array):
    shared = [1, 2]
    plain = {"a": [0, -1, 300, 70000, 2**40], b"b": b"\xff", "c": (1.5, None, True), "d": shared, "e": shared, "f": {}}
    found = read(tmp_path, pickle.dumps({**plain, "data": array}, protocol))
    data = found.pop("data")
    assert data.dtype == array.dtype and np.array_equal(data, array)
    assert found == {k.decode() if isinstance(k, bytes) else k: v for k, v in plain.items()}


def test_pickles_of_python_2_come_back(tmp_path):
    """The bytes that cPickle wrote for {'data': uint8 [[7, 8]], 'labels': [3]}, as in the official batches."""
    content = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
        b"U\x01b\x87q\x06Rq\x07(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87Rq\t(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x07\x08tbU\x06labelsq\n]q\x0bK\x03au."
    )
    found = read(tmp_path, content)
    assert found["data"].tolist() == [[7, 8]] and found["labels"] == [3]
    assert pickle.loads(content)["labels"] == [3]


class Call:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


HOSTILE = {
    "a call": lambda mark: {"data": Call(mark)},
    "a call within a list": lambda mark: {"labels": [1, Call(mark)]},
    "objects in an array": lambda mark: {"data": np.array([1, "a", None], dtype=object)},
    "an object": lambda mark: {"data": collections.Counter("a")},
    "a set": lambda mark: {"data": {1, 2}},
    "a class": lambda mark: {"data": dict},
    "text in an array": lambda mark: {"data": np.array(["a"])},
    "a structured array": lambda mark: {"data": np.zeros(2, "u1,u1")},
    "no dict": lambda mark: [1, 2],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", HOSTILE)
def test_anything_else_is_refused_and_nothing_runs(tmp_path, kind, protocol):
    with pytest.raises(ValueError):
        read(tmp_path, pickle.dumps(HOSTILE[kind](tmp_path / "mark"), protocol))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02.",
        b"\x80\x02}q\x01(U\x04data",
        b"\x80\x04\x96" + struct.pack("<Q", 2**40) + b".",  # a bytearray of a terabyte
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x02}r\xff\xff\xff\xff.",  # a memo of four thousand million entries: harmless here
        b"\x80\x02}q\x01(U\x01ah\x07u.",
        b"\x80\x02]q\x01h\x01a}b.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02cos\nsystem\n(U\x04true\x85R.",
        b"\x80\x02cnumpy\nndarray\n}b.",  # a state for a name
        b"\x80\x02c__builtin__\neval\nU\x011\x85R.",
        b"\x80\x02\x82\x01.",  # an extension's number
        b"\x80\x02P0\n.",
    ],
)
def test_torn_and_hostile_pickles(tmp_path, content):
    with memory(256):
        try:
            found = read(tmp_path, content)
        except ValueError:
            return
    assert found == {}


def test_a_shape_that_the_content_does_not_have_is_refused(tmp_path):
    content = pickle.dumps({"data": np.zeros((2, 3), np.uint8)}, 4).replace(b"K\x02K\x03", b"K\x7fK\x7f")
    with pytest.raises(ValueError):
        read(tmp_path, content)
