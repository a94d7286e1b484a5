"""Broken input for the command line: a sandbox with one of everything, and strategies that break it."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import strategies as st
from PIL import Image

import cdmem.cli
import cdmem.training.module

NETWORK = {"class_path": "cdmem.networks.UNet", "init_args": {"channels": [4], "layers": 1, "norm_groups": 2}}
MODEL = {"network": NETWORK, "ema_half_lives": [2], "sampler_points": 3}
DATA = {
    "source": "digits",
    "n": 8,
    "held_out": 12,
    "batch_size": 4,
    "subset_seed": 0,
    "classes": [0, 1, 2],
    "duplication": [{"fraction": 0.25, "copies": 2}],
}
CALLBACKS = [
    {"class_path": "callbacks.memorization.MemorizationCallback", "init_args": {"samples": 4, "points": 2}},
    {"class_path": "callbacks.onset.OnsetCallback"},
    {"class_path": "cdmem.training.keeper.RunCheckpoint", "init_args": {"every_n_steps": 1}},
]
TRAINER = {"accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False, "enable_model_summary": False}
TEACHER = {
    "threads": 1,
    "wandb": False,
    "data": DATA,
    "model": {"class_path": "cdmem.training.teacher.DiffusionTeacher", "init_args": MODEL},
    "trainer": {**TRAINER, "callbacks": CALLBACKS},
}
STUDENT = {
    "class_path": "cdmem.training.student.ConsistencyStudent",
    "init_args": {"teacher": "run/teacher", "preset": "small", "points": 4, "ema_half_lives": [2]},
}
STUDY = {"seed": 0, "threads": 1, "teacher": "teacher.yaml", "students": {"student": "student.yaml"}}
STUDY |= {"audit": {"samples": 8, "metrics": ["memorization"]}, "wandb": False}


class Reached(Exception):
    """Every check was passed, and training would begin."""


def main(*args: str) -> int:
    """``python -m cdmem`` in process; its exit code. What training would raise comes out as Reached."""
    with pytest.raises(SystemExit) as stop:
        cdmem.cli.main(list(args))
    return stop.value.code if isinstance(stop.value.code, int) else int(stop.value.code is not None)


def furnish(folder: Path) -> None:
    """Configs, a finished study, images and an audit, in ``folder``, which is the working directory."""
    (folder / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
    (folder / "student.yaml").write_text(yaml.safe_dump({**TEACHER, "model": STUDENT}))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    assert main("study", "--config", "study.yaml", "--run_dir", "run") == 0
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images)
    np.save(folder / "images.npy", images)
    (folder / "pictures").mkdir()
    for k, image in enumerate(images[:4]):
        Image.fromarray(image).save(folder / "pictures" / f"{k}.png")
    (folder / "edge.yaml").write_text(yaml.safe_dump({"n": [4], "widths": [4], "steps_per_point": 3, "points": 3}))


def state(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder; where every link leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@contextlib.contextmanager
def untrained() -> Iterator[None]:
    """Training steps and evaluations are replaced by Reached."""

    def reached(*args: object, **kwargs: object) -> None:
        raise Reached

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdmem.training.teacher.DiffusionTeacher.training_step", reached)
        patch.setattr("cdmem.training.student.ConsistencyStudent.training_step", reached)
        patch.setattr("cdmem.theory.two_gaussians.laboratory.train", reached)
        yield


class Sandbox:
    """A furnished folder; :meth:`attempt` runs one command on a broken copy of some of its files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before = folder, state(folder)
        self.ends: dict[str, int] = {}
        self.said = ""

    def attempt(self, args: list[str], broken: dict[str, bytes | None]) -> None:
        """Run ``args`` with the contents of some files replaced (None: the file is gone) and demand one of two ends.

        A valid run, or exit 2 with one line on stderr that names a key, the value and the mend. Nothing that was there
        is changed, whatever the end, and after a refusal nothing new is there either.
        """
        kept = {name: (self.folder / name).read_bytes() for name in broken}
        for name, content in broken.items():
            (self.folder / name).unlink()
            if content is not None:
                (self.folder / name).write_bytes(content)
        aside = self.folder.with_name("aside")
        if args[0] == "study":
            shutil.copytree(self.folder / "run", aside, symlinks=True)
        start = state(self.folder)
        out, err = io.StringIO(), io.StringIO()
        try:
            with (
                untrained(),
                warnings.catch_warnings(),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                warnings.simplefilter("ignore")
                try:
                    code: int | str = main(*args)
                except Reached:
                    code = "reached"
            self._judge(args, code, err.getvalue(), start)
        finally:
            if aside.exists():
                shutil.rmtree(self.folder / "run")
                aside.rename(self.folder / "run")
            self._restore(kept)

    def _judge(self, args: list[str], code: int | str, said: str, start: dict[str, str]) -> None:
        self.said, now = said, state(self.folder)
        changed = {name for name, digest in start.items() if now.get(name) != digest}
        if code == 0 and args[0] == "report":  # the page is what it writes
            changed = {name for name in changed if not name.startswith(("run/report.html", "run/report/"))}
        if code in (0, "reached") and args[0] == "study":  # it goes on, from an older checkpoint if the last is torn
            changed = {name for name in changed if not name.startswith("run/")}
        assert not changed, f"{args} changed {sorted(changed)}"
        self.ends[str(code)] = self.ends.get(str(code), 0) + 1
        if code == 2:
            lines = [line for line in said.splitlines() if line.startswith("cdmem: error: ")]
            assert len(lines) == 1 and said.rstrip("\n").splitlines()[-1] == lines[0], f"{args}: {said[-2000:]}"
            assert "Traceback" not in said and len(lines[0]) < 1200, said[-2000:]
            made = set(now) - set(start)
            assert not {name for name in made if not name.endswith(".lock")}, f"{args} left {sorted(made)}"
        else:
            assert code in (0, "reached") or (code == 1 and args[0] == "audit"), (
                f"{args} ended with {code}: {said[-2000:]}"
            )

    def _restore(self, kept: dict[str, bytes]) -> None:
        for name, content in kept.items():
            (self.folder / name).write_bytes(content)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = str(path.relative_to(self.folder))
            if name not in self.before and (path.is_symlink() or path.is_file()):
                path.unlink()
        for path in self.folder.iterdir():
            if path.name.startswith("out") and path.is_dir():
                shutil.rmtree(path)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


# ---- what is broken -------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
PLACES = [
    "",
    ".",
    "..",
    "/",
    "/dev/null",
    "missing",
    "missing.yaml",
    "run",
    "run/teacher",
    "images.npz",
    "pictures",
    "~x",
]
WORDS = [
    *PLACES,
    "nan",
    "-inf",
    "1e999",
    "0x10",
    "null",
    "true",
    "\0",
    "a\nb",
    "\x1b[31m",
    "[",
    "{",
    "*x",
    "&x",
    "!!python",
]
WORDS += ["os.system", "torch.optim.Adam", "cdmem.networks.UNet", "callbacks.nothing.Here", "cdmem.networks", "../../x"]
SCALARS = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, -1, 2, 3, 10**6, 2**63, -(2**63), 10**30, 0.0, -0.5, 0.5, 1.5, 1e-30, 1e30]
    ),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
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


def leaves(config: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all values in a config, inner ones too."""
    found = [path] if path else []
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else []
    for key, value in items:
        found += leaves(value, (*path, key))
    return found


def _set(config: Any, path: tuple, value: Any, drop: bool) -> None:
    for key in path[:-1]:
        try:
            config = config[key]
        except (KeyError, IndexError, TypeError):
            return  # an earlier change took the place away
    if drop and isinstance(config, dict | list):
        with contextlib.suppress(KeyError, IndexError, TypeError):
            del config[path[-1]]
    elif isinstance(config, dict) or (isinstance(config, list) and path[-1] < len(config)):
        config[path[-1]] = value


@st.composite
def changed(draw: st.DrawFn, config: dict) -> dict:
    """A config with one to three values dropped, replaced, or added."""
    config = copy.deepcopy(config)
    places = leaves(config)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["drop", "replace", "replace", "replace", "add"]))
        if how == "add":
            path = (*path[:-1], draw(st.one_of(TEXT, st.sampled_from(["class_path", "init_args", "n", "seed"]))))
            if isinstance(_parent(config, path), list):
                continue
        _set(config, path, draw(VALUES), how == "drop")
    return config


def _parent(config: Any, path: tuple) -> Any:
    for key in path[:-1]:
        try:
            config = config[key]
        except (KeyError, IndexError, TypeError):
            return []
    return config


def dumped(config: Any) -> bytes:
    """YAML where it can be written, else what cannot."""
    try:
        return yaml.safe_dump(config, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, UnicodeError):
        return repr(config).encode()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes | None:
    """Bytes cut, flipped, doubled, replaced, or gone."""
    how = draw(st.sampled_from(["cut", "flip", "flip", "double", "noise", "empty", "gone", "other"]))
    if how == "cut":
        return content[: draw(st.integers(0, max(len(content) - 1, 0)))]
    if how == "flip" and content:
        spoilt = bytearray(content)
        for _ in range(draw(st.integers(1, 8))):
            spoilt[draw(st.integers(0, len(spoilt) - 1))] ^= draw(st.integers(1, 255))
        return bytes(spoilt)
    if how == "double":
        return content * 2
    if how == "noise":
        return draw(st.binary(max_size=64))
    if how == "other":
        other = [
            b"null",
            b"[]",
            b"{}",
            b"[1, 2]",
            b'"x"',
            b"[" * 5000,
            b"a: &a [*a]",
            b"\xff\xfe\x00",
            b"NaN",
            b"PK\x03\x04",
        ]
        return draw(st.sampled_from(other))
    return b"" if how in ("empty", "flip") else None


@st.composite
def changed_json(draw: st.DrawFn, content: bytes) -> bytes:
    """A JSON record with changed values, still JSON."""
    record = json.loads(content)
    return json.dumps(draw(changed(record)) if isinstance(record, dict) else draw(VALUES), default=str).encode()
