"""Reading checkpoints back as generators, and the callback that writes them.

Nothing from disk is unpickled: files are read with ``weights_only=True`` and rebuilt from plain types.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from cdmem.errors import InputError
from cdmem.networks import from_record

if TYPE_CHECKING:
    from cdmem.training.module import CdmemModule

LAST = "last.ckpt"
MAX_SIDE = 4096  # px; a damaged record must not ask for images that fill the memory


def find_checkpoint(path: str | Path, key: str = "checkpoint") -> Path:
    """The checkpoint file meant by ``path``: the file itself, or the newest state of a run folder.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
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
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, KeyError, ValueError) as error:
        reason = str(error).split("\n")[0][:120]
        raise InputError(
            key, file, f"cannot be read ({reason})", "the file is torn or no checkpoint; use another"
        ) from None
    if not isinstance(checkpoint, dict) or "cdmem" not in checkpoint or "state_dict" not in checkpoint:
        raise InputError(key, file, "was not written by cdmem", "give a checkpoint of cdmem fit or study")
    if not isinstance(checkpoint["cdmem"], dict) or not isinstance(checkpoint["state_dict"], dict):
        raise InputError(key, file, "was not written by cdmem", "give a checkpoint of cdmem fit or study")
    return checkpoint


def weights_digest(network: nn.Module) -> str:
    """sha256 of a network's parameters and buffers: which weights these are, wherever the file lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_module(path: str | Path, key: str = "checkpoint") -> CdmemModule:
    """A teacher or student ready to sample, on the CPU, in eval mode, from a checkpoint or run folder.

    Raises:
        InputError: as :func:`read_checkpoint`, and a record or weights that do not fit together.
    """
    checkpoint = read_checkpoint(path, key)
    try:
        return _assemble(checkpoint, path, key)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        raise InputError(key, path, f"its record makes no sense ({reason})", "use another file") from None


def _assemble(checkpoint: dict[str, Any], path: str | Path, key: str) -> CdmemModule:
    from cdmem.training.student import ConsistencyStudent
    from cdmem.training.teacher import DiffusionTeacher

    record = checkpoint["cdmem"]
    sides = record["shape"]
    if len(sides) != 3 or not all(isinstance(s, int) and 1 <= s <= MAX_SIDE for s in sides):
        raise ValueError(f"shape {sides}")
    if record["role"] not in ("teacher", "student") or not record["sigma_min"] > 0 or not record["sigma_data"] > 0:
        raise ValueError("role, sigma_min or sigma_data")
    network = from_record(record["network"])
    common = {
        "network": network,
        "ema_half_lives": record["ema_half_lives"],
        "weights": record["weights"],
        "sampling_seed": record["sampling_seed"],
    }
    names = ("shape", "num_classes", "sigma_data", "sigma_min", "parameterization", "training_set")
    about = {name: record[name] for name in names}
    built = network.build(about["shape"], about["num_classes"], 0)
    if record["role"] == "teacher":
        module: CdmemModule = DiffusionTeacher(
            parameterization=record["parameterization"],
            sampler_points=record["sampler_points"],
            solver=record["solver"],
            **common,
        )
        module.assemble_teacher(about)
    else:
        mu = 0.5 if record["has_target"] else 0.0
        module = ConsistencyStudent(
            objective="training", initialize="scratch", mid_sigmas=record["mid_sigmas"], mu=mu, **common
        )
        module.assemble_student(about, built)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = str(error).split("\n")[-1].strip()[:120]
        raise InputError(key, path, f"weights do not fit the stored network ({reason})", "use another file") from None
    module.step = int(record["step"])
    return module.eval()


class RunCheckpoint(ModelCheckpoint):
    """``checkpoints/last.ckpt`` every so many steps, at the end, and when something fails; optional numbered snapshots.

    Args:
        every_n_steps: cadence in optimizer steps.
        keep_all: keep a numbered file each time (memorisation is studied along training), not only the last.
        dirpath: set by the command line to ``<run folder>/checkpoints``.
    """

    def __init__(self, every_n_steps: int = 500, keep_all: bool = False, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="{step:08d}",
            save_last=True,
            save_top_k=-1 if keep_all else 1,
            every_n_train_steps=every_n_steps,
            save_on_exception=True,
            enable_version_counter=False,
        )

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Never over a good state with a broken one: after a loss of nan the last finite checkpoint stays."""
        if all(bool(torch.isfinite(p).all()) for p in trainer.lightning_module.parameters()):
            super()._save_checkpoint(trainer, filepath)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The final state is always the last file, whatever the cadence."""
        super().on_train_end(trainer, pl_module)
        if not trainer.fast_dev_run and self.dirpath:
            self._save_checkpoint(trainer, str(Path(self.dirpath) / LAST))
