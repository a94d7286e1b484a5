"""Strategies that break configs, records, arrays, pictures and checkpoints."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

# ---- values ---------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
PLACES = ["", ".", "..", "/proc", "/dev/null", "/dev/zero", "missing", "missing.yaml", "run", "run/teacher", "pipe"]
PLACES += ["images.npz", "images.npy", "pictures", "exported", "~x", "../../x", "a" * 300, "teacher.yaml", "loop"]
WORDS = [*PLACES, "nan", "-inf", "1e999", "0x10", "null", "true", "\0", "a\nb", "\x1b[31m", "[", "{", "*x", "&x"]
WORDS += ["!!python", "os.system", "torch.optim.Adam", "cdmem.networks.UNet", "callbacks.nothing.Here", "analytic:"]
WORDS += ["${data.n}", "${oc.env:HOME}", "${nothing}", "${", "cdmem.networks", "ema_2", "raw", "auto", "cuda", "meta"]
HUGE = [2**31, 2**63, -(2**63), 10**30, 10**400, -(10**400)]
NUMBERS = [0, 1, -1, 2, 3, 7, 10**6, *HUGE, 0.0, -0.5, 0.5, 1.5, 1e-30, 1e30, 1e308, float("nan"), float("inf")]
SCALARS = st.one_of(
    st.sampled_from([None, True, False, *NUMBERS, float("-inf")]),
    st.sampled_from(WORDS),
    st.integers(-100, 100),
    st.floats(allow_nan=True, allow_infinity=True),
    TEXT,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(TEXT, st.integers()), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def nudged(draw: st.DrawFn, value: Any) -> Any:
    """A value of much the same form as another, so that the parser lets it through to the checks behind it."""
    if isinstance(value, bool):
        return draw(st.sampled_from([not value, None, "yes", 1]))
    if isinstance(value, int):
        return draw(st.one_of(st.integers(-5, 20), st.sampled_from([*HUGE, value + 1, -value, 10**6, 2**32, 0.5])))
    if isinstance(value, float):
        return draw(st.one_of(st.sampled_from(NUMBERS), st.floats(-2, 2)))
    if isinstance(value, str):
        return draw(st.one_of(st.sampled_from(WORDS), st.sampled_from([value.upper(), value + "x", value[:-1]])))
    if isinstance(value, list) and value:
        kept = draw(st.lists(st.sampled_from(value), max_size=4))
        return draw(st.sampled_from([kept, [value], value[0], [], [*value, None], {"0": value}]))
    if isinstance(value, dict) and value:
        return draw(st.sampled_from([[value], {}, list(value), None, str(value), {**value, "x": 1}]))
    return draw(VALUES)


def leaves(config: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all values in a config, inner ones too."""
    found = [path] if path else []
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else []
    for key, value in items:
        found += leaves(value, (*path, key))
    return found


def at(config: Any, path: tuple) -> Any:
    """What lies at a path, None where an earlier change took the place away."""
    for key in path:
        try:
            config = config[key]
        except (KeyError, IndexError, TypeError):
            return None
    return config


def _set(config: Any, path: tuple, value: Any, drop: bool) -> None:
    config = at(config, path[:-1])
    if isinstance(config, dict | list):
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change took the place away
            if drop:
                del config[path[-1]]
            else:
                config[path[-1]] = value


@st.composite
def changed(draw: st.DrawFn, config: dict) -> dict:
    """A config with one to three values dropped, replaced, nudged, or added; mostly one."""
    config = copy.deepcopy(config)
    places = leaves(config)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        path = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["drop", "replace", "replace", "nudge", "nudge", "nudge", "add"]))
        if how == "add":
            path = (*path[:-1], draw(st.one_of(TEXT, st.sampled_from(["class_path", "init_args", "n", "seed"]))))
            if isinstance(at(config, path[:-1]), list):
                continue
        value = draw(nudged(at(config, path))) if how == "nudge" else draw(VALUES)
        _set(config, path, value, how == "drop")
    return config


# ---- text files -----------------------------------------------------------------------------------------------------


def dumped(config: Any) -> bytes:
    """YAML where it can be written, else what cannot."""
    try:
        return yaml.safe_dump(config, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, UnicodeError):
        return repr(config).encode()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
LINES = ["!!python/object/apply:os.system ['true']", "!!binary aGVsbG8=", "!nothing x", "&a [*a]", "{<<: 3}"]
LINES += ["<<: [*x]", "? [1, 2]\n: 3", "data: {n: 5}", "data:\n\t n: 5", "%YAML 9.9\n---", "---\nx: 1\n---", "..."]
LINES += ["\ufeff", "\x00", "x: ${data.n}", "data: ${model}", "data: ${data}", "seed: ${oc.env:HOME}"]
LINES += ["seed: ${oc.decode:'1'}", "seed: ???", "seed: " + "1" * 5000, "seed: 1_000", "seed: 2001-01-01"]
LINES += ["seed: .nan", "[" * 5000, "- " * 300 + "x", "x" * 2_000_000, BOMB]


@st.composite
def spoilt(draw: st.DrawFn, content: bytes) -> bytes:
    """YAML with lines that a parser may stumble over, or with a value replaced in its text."""
    lines = content.decode().splitlines()
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        line, where = draw(st.sampled_from(LINES)), draw(st.integers(0, len(lines)))
        if draw(st.booleans()) and where < len(lines) and ": " in lines[where] and "\n" not in line:
            lines[where] = lines[where].split(": ")[0] + ": " + line.split(": ", 1)[-1]
        else:
            lines.insert(where, line)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


OTHER = [b"null", b"[]", b"{}", b"[1, 2]", b'"x"', b"[" * 5000, b"a: &a [*a]", b"\xff\xfe\x00", b"NaN", b"PK\x03\x04"]
OTHER += [b"\x93NUMPY", b"\x89PNG\r\n\x1a\n", b"1" * 5000, b"\n" * 100, b'{"step": 1e999}\n{"step": null}\n[]\n7']


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes | None:
    """Bytes cut, flipped, doubled, replaced, or gone."""
    how = draw(st.sampled_from(["cut", "flip", "flip", "double", "noise", "empty", "gone", "other", "other"]))
    if how == "cut":
        return content[: draw(st.integers(0, max(len(content) - 1, 0)))]
    if how == "flip" and content:
        broken = bytearray(content)
        for _ in range(draw(st.integers(1, 8))):
            broken[draw(st.integers(0, len(broken) - 1))] ^= draw(st.integers(1, 255))
        return bytes(broken)
    if how == "double":
        return content * 2
    if how == "noise":
        return draw(st.binary(max_size=64))
    if how == "other":
        return draw(st.sampled_from(OTHER))
    return b"" if how in ("empty", "flip") else None


@st.composite
def changed_record(draw: st.DrawFn, name: str, content: bytes) -> bytes:
    """A record with changed values that is still JSON, JSON lines or YAML."""
    if name.endswith(".jsonl"):
        rows = content.splitlines() or [b"{}"]
        where = draw(st.integers(0, len(rows) - 1))
        rows[where] = json.dumps(draw(changed(json.loads(rows[where]))), default=str).encode()
        return b"\n".join(rows) + b"\n"
    if name.endswith(".yaml"):
        return dumped(draw(changed(yaml.safe_load(content))))
    record = json.loads(content)
    return json.dumps(draw(changed(record)) if isinstance(record, dict) else draw(VALUES), default=str).encode()


# ---- arrays, pictures, checkpoints ----------------------------------------------------------------------------------

DTYPES = ["uint8", "uint8", "int8", "uint16", "int64", "float32", "float64", "complex64", "bool", "U3", "M8[s]"]
SHAPES = [(), (0,), (0, 8, 8), (1, 8, 8), (4, 8, 8), (4, 8, 8, 1), (4, 1, 8, 8), (4, 8, 8, 3), (4, 3, 8, 8)]
SHAPES += [(4, 8, 8, 4), (4, 0, 8), (4, 8), (4,), (8,), (9, 8, 8), (4, 7, 8), (12, 16, 16), (12, 8, 8), (4, 1, 1)]
SHAPES += [(2, 2, 2, 2, 2)]
NAMES = ["images", "arr_0", "labels", "x", "seeds", "images.npy"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """An array of some type and shape, with extreme entries."""
    shape, kind = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
    fill = draw(st.sampled_from(["noise", "same", "extreme"]))
    noise = np.random.default_rng(0).integers(0, 256, shape) if fill == "noise" else np.full(shape, 1)
    found = noise.astype(kind)
    if fill == "extreme" and found.size and found.dtype.kind in "iuf":
        big = np.iinfo(kind).max if found.dtype.kind in "iu" else np.inf
        found = np.full(shape, draw(st.sampled_from([big, 0, -1 if found.dtype.kind != "u" else 0])), kind)
    return np.asfortranarray(found) if draw(st.booleans()) else found


def written(save: Callable[..., Any], *content: Any, **members: Any) -> bytes:
    """What ``save(file, ...)`` puts into a file."""
    out = io.BytesIO()
    save(out, *content, **members)
    return out.getvalue()


@st.composite
def array_files(draw: st.DrawFn) -> bytes:
    """``.npy`` or ``.npz`` content of odd arrays."""
    if draw(st.booleans()):
        return written(np.save, draw(arrays()))
    return written(np.savez, **{name: draw(arrays()) for name in draw(st.lists(st.sampled_from(NAMES), max_size=3))})


@st.composite
def changed_arrays(draw: st.DrawFn, content: bytes) -> bytes:
    """An ``.npz`` of a run with one member dropped, cut, of another type or shape, or not finite."""
    with np.load(io.BytesIO(content)) as archive:
        members = {name: archive[name] for name in archive.files}
    name = draw(st.sampled_from(sorted(members)))
    value = members[name]
    changes: dict[str, Callable[[], Any]] = {
        "cut": lambda: value[:-1] if value.ndim else value[None],
        "more": lambda: np.concatenate([value, value]) if value.ndim else value[None],
        "flat": lambda: value.reshape(-1)[:0],
        "nan": lambda: np.full(value.shape, np.nan),
        "negative": lambda: np.full(value.shape, -1),
        "huge": lambda: np.full(value.shape, 2**62),
        "text": lambda: np.full(value.shape, "x"),
        "other": lambda: draw(arrays()),
    }
    how = draw(st.sampled_from(["gone", *changes]))
    if how == "gone":
        del members[name]
    else:
        members[name] = changes[how]()
    return written(np.savez, **members)


MODES = ["L", "RGB", "RGBA", "P", "1", "I;16", "LA", "CMYK", "F"]


@st.composite
def pictures(draw: st.DrawFn, content: bytes) -> bytes | None:
    """An image file of another size, mode or format, several frames, or a broken one."""
    if draw(st.booleans()):
        return draw(damaged(content))
    size, mode = draw(st.sampled_from([(8, 8), (8, 7), (1, 1), (16, 16), (3000, 1)])), draw(st.sampled_from(MODES))
    form = draw(st.sampled_from(["PNG", "PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"]))
    try:
        return written(Image.new(mode, size).save, form)
    except (OSError, ValueError):  # the format has no such mode
        return b""


TENSORS = [torch.zeros(0), torch.tensor(1.0), torch.full((4,), float("nan")), torch.zeros(2, 2, dtype=torch.int64)]
TENSORS += [torch.zeros(1).expand(10**6), torch.zeros(3, dtype=torch.bool), torch.zeros(2).to_sparse()]


@st.composite
def checkpoints(draw: st.DrawFn, content: bytes) -> bytes:
    """A checkpoint with one to three entries dropped or replaced: other values, tensors of other shapes and types."""
    state = copy.deepcopy(torch.load(io.BytesIO(content), weights_only=True))
    parts = st.sampled_from([k for k in state if isinstance(state[k], dict) and state[k]] + [None])
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        part = draw(st.one_of(st.just("cdmem"), st.just("state_dict"), parts))
        inside = leaves(state.get(part), (part,)) if part in state else [(k,) for k in state]
        path = draw(st.sampled_from(inside or [("cdmem",)]))
        value = at(state, path)
        if isinstance(value, torch.Tensor) and not value.is_sparse:
            swaps = [value.double(), value[:0] if value.ndim else value[None], value * float("nan"), value.half()]
            swap = draw(st.one_of(st.sampled_from([*swaps, *TENSORS]), VALUES))
        else:
            swap = draw(st.one_of(nudged(value), VALUES, st.sampled_from(TENSORS)))
        _set(state, path, swap, draw(st.integers(0, 4)) == 0)
    try:
        return written(lambda file: torch.save(state, file))
    except (OverflowError, RuntimeError):  # numbers that no pickle holds
        return b"no archive"
