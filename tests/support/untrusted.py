"""Small configs, the command line in process, and what a refusal is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import cdmem.cli.main

STAGE = {
    "threads": 1,
    "wandb": False,
    "data": {"source": "digits", "n": 8, "held_out": 16, "batch_size": 4},
    "model": {
        "class_path": "cdmem.training.DiffusionTeacher",
        "init_args": {
            "network": {"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1}},
            "averaging": {"half_lives": [2]},
        },
    },
    "trainer": {"accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False, "enable_model_summary": False},
}
STUDY = {"teacher": "own.yaml", "students": {"student": "student.yaml"}, "audit": {"samples": 8}}


def tree(folder: Path) -> dict[str, str]:
    """Every file but the lock with its hash, every link with its target."""
    return {
        str(p.relative_to(folder)): str(p.readlink()) if p.is_symlink() else hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if (p.is_file() or p.is_symlink()) and "__pycache__" not in p.parts and p.name != ".lock"
    }


def main(*args: str) -> int:
    """``python -m cdmem`` in process; its exit code."""
    with pytest.raises(SystemExit) as stop:
        cdmem.cli.main.main(list(args))
    return stop.value.code if isinstance(stop.value.code, int) else int(stop.value.code is not None)


def exits(args: list[object], capsys) -> tuple[int, str]:
    """The exit code and what is said on stderr."""
    return main(*map(str, args)), capsys.readouterr().err.strip()


def refused(args: list[object], capsys, folder: Path) -> str:
    """Exit code 2, one line, and not a byte below ``folder`` has changed."""
    before = tree(folder)
    code, error = exits(args, capsys)
    assert code == 2 and error.startswith("cdmem: error: ") and "\n" not in error, error
    after = tree(folder)
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert not changed, f"{error}: changed {changed}"
    return error


def stage(**parts) -> dict:
    config = json.loads(json.dumps(STAGE))
    for key, value in parts.items():
        *outer, last = key.split("__")
        inner = config
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return config


def watching(text: str) -> list[dict]:
    """``trainer.callbacks`` with a text that nothing reads, a folder for checkpoints of crashes."""
    return [{"class_path": "lightning.pytorch.callbacks.OnExceptionCheckpoint", "init_args": {"dirpath": text}}]


def write(file: Path, config: dict | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return file


def student() -> dict:
    """Settings of a student for the teacher that STAGE describes."""
    init = {"averaging": {"half_lives": [2]}}
    return stage(model={"class_path": "cdmem.training.Student", "init_args": init})


def write_settings(folder: Path) -> None:
    """own.yaml, student.yaml and study.yaml: the user's own configs."""
    write(folder / "own.yaml", STAGE)
    write(folder / "student.yaml", student())
    write(folder / "study.yaml", STUDY)


@contextlib.contextmanager
def memory(megabytes: int) -> Iterator[None]:
    """No more than so much memory on top of what the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
