"""Reading checkpoints back: as generators, and to go on from.

Nothing from disk is unpickled: files pass :mod:`cdmem.io.torch_archive`, are read with ``weights_only=True`` and are
rebuilt from plain types.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cdmem.diffusion.solvers import SOLVERS
from cdmem.errors import InputError
from cdmem.io.paths import usable_path
from cdmem.io.torch_archive import check_archive, check_tensors
from cdmem.networks import from_record
from cdmem.networks.config import NetworkConfig, label_rows
from cdmem.networks.diffusers import DiffusersUNet
from cdmem.networks.unet import UNetNetwork

if TYPE_CHECKING:
    from cdmem.training.module import CdmemModule

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
MAX_SIDE = 4096  # px; a damaged record must not ask for images that fill the memory
MAX_NUMBER, MAX_POINTS, MAX_LEVELS = 2**16, 10_000, 1000  # of a network's settings, sampler points, mid_sigmas


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
        mend = "the file is torn or no checkpoint; use another"
        if file.with_name(PREVIOUS).is_file():
            mend = f"fit with --ckpt_path last goes on from {PREVIOUS}"
        raise InputError(key, file, f"cannot be read ({reason})", mend) from None
    if not isinstance(checkpoint, dict) or "cdmem" not in checkpoint or "state_dict" not in checkpoint:
        raise InputError(key, file, "was not written by cdmem", "give a checkpoint of cdmem fit or study")
    if not isinstance(checkpoint["cdmem"], dict) or not isinstance(checkpoint["state_dict"], dict):
        raise InputError(key, file, "was not written by cdmem", "give a checkpoint of cdmem fit or study")
    return checkpoint


def resumable_checkpoint(folder: str | Path) -> Path | None:
    """Where a run goes on: ``last.ckpt``, or the one before it when that is torn; None where there is neither.

    Raises:
        InputError: every checkpoint of the folder is torn.
    """
    found = [file for name in (LAST, PREVIOUS) if (file := Path(folder) / "checkpoints" / name).is_file()]
    for file in found:
        try:
            checkpoint = read_checkpoint(file, "ckpt_path")
        except InputError as error:
            if file == found[-1]:
                mend = "move the folder checkpoints away to start anew"
                raise InputError("ckpt_path", file, error.problem, mend) from None
            warnings.warn(f"{file} {error.problem}: the checkpoint before it is used", stacklevel=2)
            continue
        if file.name != LAST:
            warnings.warn(f"going on from {file.name}, step {checkpoint['global_step']}", stacklevel=2)
        return file
    return None


def weights_digest(network: nn.Module) -> str:
    """sha256 of a network's parameters and buffers: which weights these are, wherever the file lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_module(path: str | Path, key: str = "checkpoint") -> CdmemModule:
    """A teacher or student ready to sample, on the CPU, in eval mode.

    From a checkpoint, a run folder, or what :mod:`cdmem.models.load` reads: exported and diffusers folders.

    Raises:
        InputError: as :func:`read_checkpoint`, and a record or weights that do not fit together.
    """
    from cdmem.models.load import is_model_folder, load_folder

    checkpoint = None if is_model_folder(path) else read_checkpoint(path, key)
    try:
        return load_folder(path, key) if checkpoint is None else _assemble(checkpoint, path, key)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
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
    about |= {name: record[name] for name in ("scaling", "training_set_status", "null_label") if name in record}
    sigma_max = float(record["sigma_max"])
    if not record["sigma_min"] < sigma_max < float("inf"):
        raise ValueError(f"sigma_max {sigma_max}")
    _check_sizes(network, record, checkpoint["state_dict"])
    if record["role"] == "teacher":
        if record["solver"] not in SOLVERS:
            raise ValueError(f"solver {record['solver']}")
        module: CdmemModule = DiffusionTeacher(
            parameterization=record["parameterization"],
            sampler_points=record["sampler_points"],
            solver=record["solver"],
            **common,
        )
        module.sigma_max = sigma_max
        module.assemble_teacher(about)
    else:
        mu = 0.5 if record["has_target"] else 0.0
        module = ConsistencyStudent(
            objective="training", initialize="scratch", mid_sigmas=record["mid_sigmas"], mu=mu, **common
        )
        module.sigma_max = sigma_max
        module.assemble_student(about, network.build(about["shape"], label_rows(about), 0))
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = str(error).split("\n")[-1].strip()[:120]
        raise InputError(key, path, f"weights do not fit the stored network ({reason})", "use another file") from None
    module.step = int(record["step"])
    return module.eval()


def _check_sizes(network: NetworkConfig, record: dict[str, Any], state: dict[str, Any]) -> None:
    """Refuse a record that describes more than the file holds, before memory is taken for it.

    Raises:
        ValueError: numbers beyond any model, or weights of other shapes than the network's.
    """
    settings = record["network"]["init_args"]
    if not isinstance(network, DiffusersUNet):  # which has limits of its own
        # One layer has one tensor at least.
        limits = {"depth": len(state), "layers": len(state)}
        for name, value in settings.items():
            items, limit = value if isinstance(value, list) else [value], limits.get(name, MAX_NUMBER)
            if len(items) > 16 or not all(isinstance(v, int | float) and 0 <= v <= limit for v in items):
                raise ValueError(f"network setting {name}")
    classes, levels = record["num_classes"], record.get("mid_sigmas", [])
    if type(classes) is not int or not 0 <= classes <= MAX_NUMBER or len(levels) > MAX_LEVELS:
        raise ValueError("num_classes or mid_sigmas")
    if record.get("null_label", False) not in (False, True) or (record.get("null_label") and not classes):
        raise ValueError("null_label")
    if not 2 <= record.get("sampler_points", 2) <= MAX_POINTS:
        raise ValueError("sampler_points")
    averages = {name.split(".")[2] for name in state if name.startswith("ema.copies.")}
    if len(record["ema_half_lives"]) > len(averages):
        raise ValueError("ema_half_lives")
    if isinstance(network, DiffusersUNet):
        parts = UNetNetwork(network.make("meta")).state_dict()
    else:
        with torch.device("meta"):
            parts = network.build(record["shape"], label_rows(record), 0).state_dict()
    for name, wanted in parts.items():
        given = state.get(f"raw.network.{name}")
        if not isinstance(given, torch.Tensor) or given.shape != wanted.shape:
            raise ValueError(f"weights {name} do not fit the stored network")
