"""Arrays in .npy and .npz files: every layout is read, nothing else is, and nothing is ever unpickled."""

import hashlib
import os

import numpy as np
import pytest

from cdmem.data.sources import load_source
from support.pools import check, grey_levels, key_of


def test_array_layouts(tmp_path):
    path = tmp_path / "x.npy"
    colour = grey_levels(4, 6, 5, 3)
    for stored in (colour, colour.transpose(0, 3, 1, 2)):
        np.save(path, stored)
        pool = load_source("array", str(path))
        check(pool, 4, (3, 6, 5))
        assert np.array_equal(pool.images.numpy(), colour.transpose(0, 3, 1, 2))
        assert pool.class_names == ()
    grey = grey_levels(4, 6, 5)
    for stored in (grey, grey[..., None], grey[:, None]):
        np.save(path, stored)
        assert np.array_equal(load_source("array", str(path)).images[:, 0].numpy(), grey)
    np.save(path, grey_levels(4, 3, 5, 1))  # both ends could be channels
    check(load_source("array", str(path)), 4, (1, 3, 5))


def test_array_archives_carry_labels(tmp_path):
    path = tmp_path / "x.npz"
    images = grey_levels(4, 6, 6)
    np.savez(path, images=images, labels=np.array([2, 0, 2, 1], np.int32))
    pool = load_source("array", str(path))
    assert pool.labels.tolist() == [2, 0, 2, 1]
    assert pool.class_names == ("0", "1", "2")
    assert pool.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_source("array", str(path), classes=[2]).indices.tolist() == [0, 2]
    np.savez_compressed(path, images)
    assert np.array_equal(load_source("array", str(path)).images[:, 0].numpy(), images)


@pytest.mark.parametrize(
    "arrays",
    [
        {"pictures": grey_levels(4, 6, 6)},
        {"images": grey_levels(4, 6, 6), "arr_0": grey_levels(4, 6, 6)},
        {"arr_0": grey_levels(4, 6, 6), "arr_1": grey_levels(4, 6, 6)},
        {"arr_0": grey_levels(4, 6, 6), "arr_1": np.array([0, 1])},
        {"images": grey_levels(4, 6, 6), "y": np.array([0, 1, 1, 0]), "labels": np.array([0, 1, 1, 1])},
        {"images": grey_levels(4, 6, 6).astype(np.float32)},
        {"images": grey_levels(4, 6, 6).astype(np.int64)},
        {"images": grey_levels(4, 6, 6, 2)},
        {"images": grey_levels(4, 6)},
        {"images": grey_levels(0, 6, 6)},
        {"images": np.array([1, "a"], dtype=object)},
        {"images": grey_levels(4, 6, 6), "labels": np.array([0, 1])},
        {"images": grey_levels(4, 6, 6), "labels": np.array([0, 1, -1, 2])},
        {"images": grey_levels(4, 6, 6), "labels": np.array([0, 1, 10**9, 2])},
        {"images": grey_levels(4, 6, 6), "labels": np.array([0.0, 1.0, 1.0, 2.0])},
        {"images": grey_levels(4, 6, 6), "labels": np.array([0, 1, 2, None], dtype=object)},
    ],
)
def test_array_refuses_other_content(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    assert key_of("array", str(tmp_path / "x.npz")) == "data.path"


class Bomb:
    """Leaves a file behind when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_array_never_unpickles(tmp_path):
    trace = tmp_path / "executed"
    np.save(tmp_path / "x.npy", np.array([Bomb(trace)], dtype=object), allow_pickle=True)
    assert key_of("array", str(tmp_path / "x.npy")) == "data.path"
    assert not trace.exists()


def test_array_refuses_broken_files_and_other_names(tmp_path):
    for name, content in (
        ("x.npy", b""),
        ("x.npy", b"junk"),
        ("x.npz", b"junk"),
        ("x.npz", b"PK\x03\x04junk"),
    ):
        (tmp_path / name).write_bytes(content)
        assert key_of("array", str(tmp_path / name)) == "data.path"
    np.save(tmp_path / "x.npy", grey_levels(4, 6, 6))
    (tmp_path / "x.npy").rename(tmp_path / "x.pt")
    assert key_of("array", str(tmp_path / "x.pt")) == "data.path"
