"""Reading checkpoints back: as generators, and to go on from.

Nothing from disk is unpickled: files pass :mod:`cdmem.io.torch_archive`, are read with ``weights_only=True`` and are
rebuilt from plain types.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdmem.errors import InputError
from cdmem.io.paths import usable_path
from cdmem.io.torch_archive import check_archive, check_tensors

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def find_checkpoint(path: str | Path, key: str = "checkpoint") -> Path:
    """The checkpoint file meant by ``path``: the file itself, or the newest state of a run folder.

    Raises:
        InputError: there is none.
    """
    path = usable_path(key, path)
    if path.is_dir():
        for candidate in (path / "checkpoints" / LAST, path / LAST):
            if candidate.is_file():
                return candidate
        raise InputError(key, path, "holds no checkpoints/last.ckpt", "give a .ckpt file or a run folder of a stage")
    if not path.is_file():
        raise InputError(key, path, "no such file", "give a .ckpt file or a run folder")
    return path


def read_checkpoint(path: str | Path, key: str = "checkpoint") -> dict[str, Any]:
    """Load a cdmem checkpoint onto the CPU.

    Raises:
        InputError: missing, torn, not written by cdmem, or holding more than tensors and plain types.
    """
    file = find_checkpoint(path, key)
    try:
        check_archive(file)
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        check_tensors(checkpoint)
    except Exception as error:  # a hostile file chooses which one
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        hint = "the file is torn or no checkpoint; use another"
        if file.with_name(PREVIOUS).is_file():
            hint = f"fit with --ckpt_path last goes on from {PREVIOUS}"
        raise InputError(key, file, f"cannot be read ({reason})", hint) from None
    parts = [checkpoint.get(part) for part in ("cdmem", "state_dict")] if isinstance(checkpoint, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise InputError(key, file, "was not written by cdmem", "give a checkpoint of cdmem fit or study")
    return checkpoint


def resumable_checkpoint(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Where a run goes on: ``last.ckpt``, or the one before it when that is torn; None where there is neither.

    Returns:
        the file, and what it holds.

    Raises:
        InputError: every checkpoint of the folder is torn.
    """
    files = [file for name in (LAST, PREVIOUS) if (file := Path(folder) / "checkpoints" / name).is_file()]
    for file in files:
        try:
            checkpoint = read_checkpoint(file, "ckpt_path")
        except InputError as error:
            if file == files[-1]:
                hint = "move the folder checkpoints away to start anew"
                raise InputError("ckpt_path", file, error.problem, hint) from None
            warnings.warn(f"{file} {error.problem}: the checkpoint before it is used", stacklevel=2)
            continue
        if file.name != LAST:
            warnings.warn(f"going on from {file.name}, step {checkpoint['global_step']}", stacklevel=2)
        return file, checkpoint
    return None


def weights_digest(network: nn.Module) -> str:
    """sha256 of a network's parameters and buffers: which weights these are, wherever the file lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
