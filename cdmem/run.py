"""The run folder: where a run's settings, provenance, metrics and results live. Nobody else creates folders.

::

    runs/<name>/
      config.yaml            every setting, resolved; usable as --config
      environment.json       versions, git state, threads, command
      training_set.json      which images, how often, content hash
      metrics.jsonl          one line per logging event
      checkpoints/           last.ckpt and snapshots
      evaluations/           per-seed rows of every evaluation (.npz)
      panels/                sample grids (.png)
      audit/  samples/       results of an audit; generated images
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from cdmem.durable import keep_inside, replacing, sync
from cdmem.errors import InputError
from cdmem.redact import redact
from cdmem.texts import LIMIT, parse_json, parse_yaml, read_text

CONFIG = "config.yaml"
MAX_RECORD = 2**26  # bytes; training_set.json with its lists is the largest
WANDB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # W&B makes a folder of that name
FINISHED = "finished.json"
PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "torchmetrics", "numpy", "scipy", "scikit-learn")
# Settings that change where or how a run executes, not what it computes.
FREE_KEYS = (
    "run_dir",
    "ckpt_path",
    "weights_only",
    "threads",
    "wandb",
    "model.init_args.teacher",  # a path; the teacher itself is compared by the digest of its weights
    "trainer.default_root_dir",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.accelerator",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
)
# Settings that folders of earlier versions lack, with the value that leaves everything as it was there.
LATER_KEYS = {"model.init_args.compile": False, "model.init_args.label_dropout": 0.0}


class RunFolder:
    """One run's folder; created by the first write.

    Args:
        path: for example ``runs/quickstart``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def file(self, name: str) -> Path:
        """Path of a file inside the folder, with its parents made; not through a link that leaves it."""
        target = self.path / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("run_dir", self.path, f"cannot be created ({error.strerror})", "choose another") from None
        return keep_inside(self.path, target)

    def write_text(self, name: str, text: str) -> Path:
        """Write a file that a crash leaves old or new, never torn; the user's W&B key is in none."""
        target = self.file(name)
        with replacing(target) as temporary:
            temporary.write_text(redact(text), encoding="utf-8")
        return target

    def write_json(self, name: str, value: Any) -> Path:
        """Write plain types as indented JSON."""
        return self.write_text(name, json.dumps(value, indent=2, sort_keys=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the folder."""
        file = self.path / name
        try:
            return parse_json(read_text(file, MAX_RECORD))
        except FileNotFoundError:
            raise InputError("run_dir", self.path, f"has no {name}", "give the folder of a run") from None
        except (OSError, ValueError):
            raise InputError("run_dir", self.path, f"{name} is torn", "remove the file and run again") from None

    def read_config(self) -> dict[str, Any]:
        """The settings that the run was made with.

        Raises:
            InputError: :data:`CONFIG` is missing, torn, or no mapping of usual size.
        """
        try:
            found = parse_yaml(read_text(self.path / CONFIG))
            if not isinstance(found, dict):
                raise ValueError("is no mapping")
        except (OSError, ValueError) as error:
            problem = f"cannot be read ({error.strerror if isinstance(error, OSError) else error})"
            raise InputError("run_dir", self.path / CONFIG, problem, "give another --run_dir") from None
        return found

    def write_arrays(self, name: str, **arrays: np.ndarray) -> Path:
        """Write an ``.npz``, old or new after a crash."""
        target = self.file(name)
        with replacing(target) as temporary:
            np.savez_compressed(temporary, **arrays)
        return target

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    def finished(self) -> dict[str, Any] | None:
        """What :data:`FINISHED` says, or None while the run is not complete."""
        found = self.read_json(FINISHED) if (self.path / FINISHED).is_file() else None
        if found is not None and (not isinstance(found, dict) or type(found.get("step")) is not int):
            raise InputError("run_dir", self.path, f"{FINISHED} names no step", "remove the file and run again")
        return found

    def wandb_id(self) -> str:
        """The W&B run id that belongs to this folder; made once, so that a resumed run continues the same W&B run."""
        known = read_wandb_id(self.path)
        if known is None:
            known = uuid.uuid4().hex[:12]
            self.write_text("wandb_id", known + "\n")
        return known


def read_wandb_id(folder: Path) -> str | None:
    """The W&B run id that a run folder names; None without one, or where it could not be one."""
    try:
        text = read_text(folder / "wandb_id", LIMIT).strip()
    except (OSError, ValueError):
        return None
    return text if WANDB_ID.fullmatch(text) else None


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; lists stay whole."""
    if isinstance(value, dict) and value:
        flat: dict[str, Any] = {}
        for key, inner in value.items():
            flat.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    return {prefix: value}


def check_same_settings(folder: RunFolder, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to continue a folder that was made with other settings.

    Raises:
        InputError: naming the first key that differs and both values.
    """
    a, b = flatten(old), flatten(new)
    for key in sorted(set(a) | set(b)):
        if any(key == free or key.startswith(free + ".") for free in FREE_KEYS):
            continue
        if a.get(key, LATER_KEYS.get(key)) != b.get(key):
            raise InputError(
                key,
                b.get(key),
                f"the run folder {folder.path} was made with {key}={a.get(key)}",
                "use that value, or give another --run_dir",
            )


class MetricsRecord:
    """``metrics.jsonl``: appended, never rewritten except to drop what came after a resumed checkpoint."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        return self.folder.path / "metrics.jsonl"

    def append(self, step: int, values: dict[str, float]) -> None:
        """Add one line: ``{"step": ..., "time": unix seconds, key: value, ...}``."""
        line = json.dumps({"step": int(step), "time": round(time.time(), 3), **values})
        with self.folder.file("metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All complete lines; a torn last line is left out."""
        if not self.path.is_file():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(parse_json(line))
            except ValueError:
                continue
        return rows

    def sync(self) -> int:
        """Force all lines to the disk; their size in bytes."""
        if not self.path.is_file():
            return 0
        sync(self.path)
        return self.path.stat().st_size

    def rewind(self, size: int | None, step: int) -> None:
        """Forget what was written after a checkpoint: a resumed run does that work again.

        Args:
            size: bytes of the record when the checkpoint was written; None if it does not say.
            step: of the checkpoint. Without ``size``, or when the file has lost its end, lines up to it are kept.
        """
        if not self.path.is_file():
            return
        if size is not None and self.path.stat().st_size >= size:
            os.truncate(self.path, size)
            return
        kept = [row for row in self.rows() if row["step"] <= step]
        self.folder.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the code that runs, or of the image it was built from (``CDMEM_COMMIT``)."""
    root = Path(__file__).resolve().parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": os.environ.get("CDMEM_COMMIT"), "dirty": None}
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def environment(threads: int) -> dict[str, Any]:
    """Versions, git state, platform, kernels and command: what it takes to make the run again."""
    import torch  # loaded already wherever something was computed; this module alone stays light

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "packages": versions,
        "git": git_state(),
        "threads": threads,
        "command": ["python", "-m", "cdmem", *sys.argv[1:]],
    }
