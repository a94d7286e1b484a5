"""Where a run comes from: versions, git state, platform and command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "torchmetrics", "numpy", "scipy", "scikit-learn")


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

    versions: dict[str, str | None] = {}
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
