"""Untrusted arrays and pictures: pickles, small files that claim to be huge, links, names that lead elsewhere."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdmem.data.cifar10 import MD5, PYTHON_MD5
from cdmem.errors import InputError
from cdmem.io.arrays import read_arrays
from cdmem.metrics.quality.efficientnet import EfficientNetLite0Features
from cdmem.report.run_data import read_run
from support.hostile import bare, object_array
from support.report import make_study_folder
from support.untrusted import exits, memory, tree

FIT = "fit --config own.yaml --run_dir n"
COMMANDS = {
    "generator": "audit --training_set images.npz --generator {}",
    "training_set": "audit --generator images.npz --training_set {}",
    "held_out": "audit --generator images.npz --training_set images.npz --held_out {}",
    "data.path": f"{FIT} --data.source array --data.path {{}}",
    "data.duplication": f"{FIT} --data.duplication {{}}",
    "cifar10": f"{FIT} --data.source cifar10 --data.path {{}}",
    "evaluations": "audit --generator run/student --training_set run/teacher --quiet",
    "features": "audit --generator images.npz --training_set images.npz --features inception",
}


def header(shape, kind="|u1") -> bytes:
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def bomb(file, names, megabytes):
    """An archive of arrays of zeros."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(header((megabytes, 1024, 1024)))
                for _ in range(megabytes):
                    member.write(bytes(2**20))


def content(data):
    return lambda file, song: file.write_bytes(data)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows=b"", more=b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def squeezed(block, times, start=b""):
    squeeze = zlib.compressobj(9)
    return start + b"".join(squeeze.compress(block) for _ in range(times)) + squeeze.flush()


def pictures(data, count=2):
    def make(folder, song):
        folder.mkdir()
        for k in range(count):
            (folder / f"{k}.png").write_bytes(data)

    return make


def linked(target):
    def make(folder, song):
        for part in (folder, folder.parent / "aside"):
            part.mkdir()
            Image.new("L", (8, 8)).save(part / "a.png")
        (folder / "self").symlink_to(target)

    return make


def batches(*names):
    """Pickles under the names of CIFAR-10's batches."""

    def make(folder, song):
        folder.mkdir()
        for name in names:
            bare(folder / name, song, {})

    return make


READ = [(key, "x.npz") for key in ("generator", "training_set", "held_out", "data.path")]
READ += [("generator", "x.npy"), ("data.path", "x.npy"), ("data.duplication", "x.npy")]
PICKLED = {"objects": object_array, "pickle": lambda file, song: bare(file, song, {})}
ARRAYS = {
    "shape": content(header((10**6, 1024, 1024)) + b"x"),
    "negative": content(header((-1, 1024)) + b"x"),
    "overflow": content(header((2**40, 2**40, 2**40)) + b"x"),
    "text": content(header((2, 2**30), "<U1000000") + b"x"),
    "header": content(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"x"),
    "header of code": content(b"\x93NUMPY\x01\x00" + struct.pack("<H", 40) + b"__import__('os')" * 4),
    "deep header": content(b"\x93NUMPY\x02\x00" + struct.pack("<I", 9000) + b"(" * 9000),
    "gzip": content(gzip.compress(header((4, 8, 8)) + bytes(256))),
    "zip": lambda file, song: bomb(file, ["images.npy"], 100),
    "zip of another name": lambda file, song: bomb(file, ["../../images.npy"], 1),
    "no images": lambda file, song: zipfile.ZipFile(file, "w").close(),
}
TEXT = png(8, 8, zlib.compress(bytes(72)), chunk(b"zTXt", squeezed(bytes(2**20), 100, b"k\0\0")))
BMP = b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)
ONE_COLOUR = png(7000, 7000, squeezed(bytes(7001), 7000))
LINK = "is a link out of the folder"
EVALUATION = "run/student/evaluations/step=00000001_nfe=1.npz"
# What the file is: how it is made, its name, the command, the key, a word of the error.
ROWS = {
    **{f"{form} as {name} of {key}": (make, name, key, key, "")
       for form, make in PICKLED.items() for key, name in READ},
    **{f"{form} as {suffix}": (make, f"x{suffix}", "generator", "generator", "")
       for form, make in ARRAYS.items() for suffix in (".npz", ".npy")},
    "rows of an evaluation": (lambda file, song: object_array(file, song, "seeds", "squared1", "squared2"),
                              EVALUATION, "evaluations", "evaluations", ""),
    "Inception's weights": (PICKLED["pickle"], "inception.pt", "features", "", "SHA-256"),
    "CIFAR-10 for Python": (batches(*PYTHON_MD5, "test_batch", "batches.meta"), "cifar", "cifar10", "data.path",
                            "MD5"),
    "a pickled batch": (PICKLED["pickle"], "data_batch_1", "generator", "generator", "no plain data"),
    "a folder of pickled batches": (batches("data_batch_1", "batches.meta"), "cifar", "generator", "generator",
                                    "no plain data"),
    "an idx file that claims too much": (content(b"\0\0\x08\3" + b"\x7f\xff\xff\xff" * 3), "idx3-ubyte", "generator",
                                         "generator", "more than the file can hold"),
    "an idx bomb": (content(gzip.compress(b"\0\0\x08\3" + struct.pack(">III", 100, 1024, 1024) + bytes(100 * 2**20))),
                    "idx3-ubyte.gz", "generator", "generator", "more than the file can hold"),
    "a zip of a bomb": (lambda file, song: bomb(file, ["a.png"], 100), "x.zip", "generator", "generator",
                        "would unpack"),
    "a zip that leads out": (lambda file, song: bomb(file, ["a/../../b.png"], 1), "x.zip", "generator", "generator",
                             "outside"),
    "a zip of an absolute name": (lambda file, song: bomb(file, ["/tmp/b.png"], 1), "x.zip", "generator", "generator",
                                  "outside"),
    "a zip of no pictures": (lambda file, song: bomb(file, ["a.png"], 1), "x.zip", "generator", "generator",
                             "not a readable image"),
    "a torn zip": (content(b"PK\x03\x04junk"), "x.zip", "generator", "generator", "zip"),
    "a torn Parquet file": (content(b"PAR1" + bytes(64) + b"PAR1"), "x.parquet", "generator", "generator", "Parquet"),
    "pickles for CIFAR-10": (batches(*MD5), "cifar", "cifar10", "data.path",
                            "MD5"),
    "huge picture": (pictures(png(65_000, 65_000)), "pictures", "generator", "generator", "too large"),
    "wide picture": (pictures(png(2**31 - 1, 1)), "pictures", "generator", "generator", "too large"),
    "picture just below Pillow's own limit": (pictures(png(9000, 9000, zlib.compress(b""))), "pictures", "generator",
                                              "generator", "too large"),
    "picture with 100 MB of text": (pictures(TEXT), "pictures", "generator", "generator", ""),
    "bmp": (pictures(BMP), "pictures", "generator", "generator", ""),
    "webp": (pictures(b"RIFF\xff\xff\xff\xffWEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6), "pictures", "generator",
             "generator", ""),
    "many pictures of one colour": (pictures(ONE_COLOUR, 20), "pictures", "generator", "generator", "would unpack"),
    **{f"link to {target}": (linked(target), "pictures", "generator", "generator", LINK)
       for target in ("../aside", "../aside/a.png", "/etc/hostname", "nowhere", "self")},
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_untrusted_arrays(row, place, song, refuse, monkeypatch):
    make, name, command, key, said = ROWS[row]
    (place / EVALUATION).parent.mkdir(exist_ok=True)
    make(place / name, song)
    monkeypatch.setenv("CDMEM_INCEPTION", "inception.pt")
    refuse(COMMANDS[command].format(name), key, said)
    assert not (place.parent.parent / "images.npy").exists()


def test_many_small_bombs_count_together(tmp_path):
    """Each stays below the size up to which a member may be as empty as it likes."""
    bomb(tmp_path / "x.npz", [f"a{k}.npy" for k in range(5)], 40)
    with memory(256), pytest.raises(ValueError, match="would unpack"):
        read_arrays(tmp_path / "x.npz")
    assert read_arrays(tmp_path / "x.npz", ["a0"])["a0"].nbytes == 40 * 2**20


def test_members_that_share_their_bytes(tmp_path):
    """The same bytes listed a thousand times."""
    bomb(tmp_path / "x.npz", ["a.npy"], 1)
    raw = (tmp_path / "x.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        start, entry = archive.start_dir, raw[archive.start_dir : raw.rindex(b"PK\x05\x06")]
    entries = b"".join(entry.replace(b"a.npy", b"%c.npy" % c) for c in range(98, 123))
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 25, 25, len(entries), start, 0)
    (tmp_path / "x.npz").write_bytes(raw[:start] + entries + end)
    with memory(1024), pytest.raises((ValueError, zipfile.BadZipFile, KeyError, OSError)):
        read_arrays(tmp_path / "x.npz")


def test_names_in_archives_place_no_files(place, capsys):
    """Members are read by name into memory; nothing is ever unpacked onto the disk."""
    with zipfile.ZipFile(place / "x.npz", "w") as archive:
        for name in ("../../up.npy", "/tmp/absolute_of_cdmem.npy", "images.npy"):
            with archive.open(name, "w") as member:
                np.save(member, np.zeros((4, 8, 8), np.uint8))
    before = tree(place)
    assert set(read_arrays(place / "x.npz")) == {"../../up", "/tmp/absolute_of_cdmem", "images"}
    code, error = exits([*COMMANDS["generator"].format("x.npz").split(), "--quiet"], capsys)
    assert code == 2 and "../../up" in error and tree(place) == before
    assert not Path("/tmp/absolute_of_cdmem.npy").exists() and not (place.parent.parent / "up.npy").exists()


def test_pickled_arrays_of_a_report_are_left_out(tmp_path, song):
    run = make_study_folder(tmp_path / "run")
    for file in [*run.glob("audit/*.npz"), *run.glob("samples/*.npz")]:
        object_array(file, song, "seeds", "squared1", "squared2", "images", "ids")
    data = read_run(run)
    assert all(data.arrays(kind, m) == {} for kind in ("audit", "samples") for m in data.models)
    assert data.load("audit/pictures.npz") == {} and len(data.notes) == 9


def test_pickled_weights_of_efficientnet(tmp_path, song):
    torch.save({"a": song}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="SHA-256"):
        EfficientNetLite0Features(weights=str(tmp_path / "x.pth"))
