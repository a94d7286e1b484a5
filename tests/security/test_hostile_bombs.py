"""Small files that claim to be huge: refused in one line, within 1 GiB of memory more than the tests have already."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from cdmem.io.arrays import read_arrays
from support.hostile import make_pipeline, memory, write_settings
from support.strangers import refused


@pytest.fixture
def place(tmp_path):
    write_settings(tmp_path)
    np.savez(tmp_path / "images.npz", images=np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8))
    return tmp_path


def bombed(args, capsys, folder):
    with memory(1024):
        return refused(args, capsys, folder)


AUDIT = ["audit", "--training_set", "images.npz", "--generator"]

# ---- arrays ---------------------------------------------------------------------------------------------------------


def header(shape, kind="|u1") -> bytes:
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zeros(member, megabytes):
    for _ in range(megabytes):
        member.write(bytes(2**20))


def bomb(file, names, megabytes):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(header((megabytes, 1024, 1024)))
                zeros(member, megabytes)


ARRAYS = {
    "shape": lambda f: f.write_bytes(header((10**6, 1024, 1024)) + b"x"),
    "negative": lambda f: f.write_bytes(header((-1, 1024)) + b"x"),
    "overflow": lambda f: f.write_bytes(header((2**40, 2**40, 2**40)) + b"x"),
    "text": lambda f: f.write_bytes(header((2, 2**30), "<U1000000") + b"x"),
    "header": lambda f: f.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"x"),
    "header of code": lambda f: f.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 40) + b"__import__('os')" * 4),
    "deep header": lambda f: f.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 9000) + b"(" * 9000),
    "gzip": lambda f: f.write_bytes(gzip.compress(header((4, 8, 8)) + bytes(256))),
    "zip": lambda f: bomb(f, ["images.npy"], 100),
    "zip of another name": lambda f: bomb(f, ["../../images.npy"], 1),
    "no images": lambda f: zipfile.ZipFile(f, "w").close(),
}


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_claim_too_much(name, suffix, place, capsys):
    file = place / f"x{suffix}"
    ARRAYS[name](file)
    bombed([*AUDIT, file.name], capsys, place)
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


# ---- images ---------------------------------------------------------------------------------------------------------


def png(width, height, rows=b"") -> bytes:
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = (
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        chunk(b"IDAT", rows),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def text_bomb() -> bytes:
    """A zTXt chunk that unpacks to 100 MB."""
    squeeze = zlib.compressobj()
    data = b"k\0\0" + b"".join(squeeze.compress(bytes(2**20)) for _ in range(100)) + squeeze.flush()
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    good = png(8, 8, zlib.compress(bytes(72)))
    return good[:33] + chunk + good[33:]


IMAGES = {
    "huge": png(65_000, 65_000),
    "wide": png(2**31 - 1, 1),
    "just below Pillow's own limit": png(9000, 9000, zlib.compress(b"")),
    "text": text_bomb(),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
    "webp": b"RIFF\xff\xff\xff\xffWEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6,
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_claim_too_much(name, place, capsys):
    (place / "pictures").mkdir()
    for k in range(2):
        (place / f"pictures/{k}.png").write_bytes(IMAGES[name])
    error = bombed([*AUDIT, "pictures"], capsys, place)
    assert "too large" in error or name in ("text", "bmp", "webp")


def test_many_images_of_one_colour_count_together(place, capsys):
    (place / "pictures").mkdir()
    squeeze = zlib.compressobj(9)
    content = png(7000, 7000, b"".join(squeeze.compress(bytes(7001)) for _ in range(7000)) + squeeze.flush())
    for k in range(20):
        (place / f"pictures/{k}.png").write_bytes(content)
    assert "would unpack" in bombed([*AUDIT, "pictures"], capsys, place)


# ---- weights --------------------------------------------------------------------------------------------------------


def safetensors(file: Path, length: int, text: bytes = b"{}") -> None:
    file.write_bytes(struct.pack("<Q", length) + text)


def tensor(shape, end):
    return json.dumps({"conv_in.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


WEIGHTS = {
    "length": lambda f: safetensors(f, 2**63),
    "long": lambda f: safetensors(f, 2**33),
    "deep": lambda f: safetensors(f, 50_000, b"[" * 50_000),
    "offsets": lambda f: safetensors(f, len(tensor([2**20], 2**62)), tensor([2**20], 2**62)),
    "overflow": lambda f: safetensors(f, len(tensor([2**62, 8], 16)), tensor([2**62, 8], 16)),
    "gzip": lambda f: f.write_bytes(gzip.compress(f.read_bytes())),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_claim_too_much(name, place, capsys):
    WEIGHTS[name](make_pipeline(place / "p") / "unet/diffusion_pytorch_model.safetensors")
    bombed([*AUDIT, "p"], capsys, place)


class Over:
    """Four numbers that claim to be more."""

    def __init__(self, *size, stride=0):
        self.size, self.stride = size, (stride,) * len(size)

    def __reduce__(self):
        four = torch.storage.TypedStorage(
            wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True
        )
        return torch._utils._rebuild_tensor_v2, (four, 0, self.size, self.stride, False, {})


class Bytes:
    def __reduce__(self):
        return bytearray, (10**12,)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    write_settings(folder)
    from cdmem.study.stage import build

    args = ["--config", str(folder / "own.yaml"), "--run_dir", str(folder / "run"), "--threads", "1"]
    build("fit", args).execute()
    return torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)


def network(**init):
    return {"network": {"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1} | init}}


def unet(**init):
    return {
        "network": {"class_path": "cdmem.networks.UNet", "init_args": {"channels": [8]} | init},
        "shape": [1, 8, 8],
    }


FIRST = "raw.network.inputs.weight"
RECORDS = {
    "width": network(width=60_000),
    "wider": network(width=10**9),
    "depth": network(depth=10**9),
    "channels": unet(channels=[60_000] * 3),
    "levels": unet(channels=[8] * 10**5),
    "layers": unet(layers=10**9),
    "side": {"shape": [3, 4096, 4096]},
    "classes": {"num_classes": 10**9},
    "averages": {"half_lives": [1] * 10**5},
    "points": {"sampler": {"solver": "heun", "points": 10**9}},
    "steps": {"role": "student", "sampler": {"solver": "consistency", "points": 18, "mid_sigmas": [1.0] * 10**5}},
}
PARTS = {
    "bytearray": {"callbacks": Bytes()},
    "stride 0": {"state_dict": Over(10**6, 10**6)},
    "beyond": {"callbacks": Over(10**10, stride=1)},
    "optimizer": {"optimizer_states": [{"state": {0: {"exp_avg": Over(10**6, 10**6)}}}]},
}


@pytest.mark.parametrize("name", [*RECORDS, *PARTS])
def test_checkpoints_that_claim_too_much(name, good, place, capsys):
    changes = PARTS.get(name) or {"cdmem": good["cdmem"] | RECORDS[name]}
    if name == "stride 0":
        changes = {"state_dict": good["state_dict"] | {FIRST: changes["state_dict"]}}
    torch.save(good | changes, place / "x.ckpt")
    bombed(["sample", "--checkpoint", "x.ckpt", "--out", "o.npz"], capsys, place)


@pytest.mark.parametrize("part", ["data/0", "data.pkl", "extra"])
def test_compressed_checkpoints(part, good, place, capsys):
    torch.save(good, stream := io.BytesIO())
    with zipfile.ZipFile(stream) as parts, zipfile.ZipFile(place / "x.ckpt", "w") as made:
        top = parts.namelist()[0].split("/")[0]
        for name in [*parts.namelist(), *([f"{top}/extra"] if part == "extra" else [])]:
            if name.split("/", 1)[1] == part:
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                with made.open(info, "w", force_zip64=True) as member:
                    zeros(member, 50)
            else:
                made.writestr(name, parts.read(name))
    assert "compressed" in bombed(["sample", "--checkpoint", "x.ckpt", "--out", "o.npz"], capsys, place)
