"""Models back from disk: checkpoints, run folders, exported folders, and diffusers folders of others.

Nothing in a file chooses code: networks are those of :mod:`cdmem.networks`, or ones of the user's own as far as
:mod:`cdmem.io.own_code` admits them, and no path is read from a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError, brief
from cdmem.io import own_code
from cdmem.io.text import read_json
from cdmem.models.foreign import foreign_record
from cdmem.models.other_projects import refuse_other_project
from cdmem.models.pipelines import INDEX, find_unet, is_pipeline, read_parts
from cdmem.networks import from_record
from cdmem.networks.config import NetworkConfig
from cdmem.networks.diffusers import DiffusersUNet, load_diffusers, read_config
from cdmem.networks.unet import UNetNetwork
from cdmem.training.checkpoint import read_checkpoint, weights_digest
from cdmem.training.frozen_teacher import ANALYTIC, FrozenTeacher, analytic_teacher
from cdmem.training.module import DiffusionModule
from cdmem.training.record import ModelRecord, read_record
from cdmem.training.settings import RAW
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher

METADATA = "cdmem.json"
SAVE_AGAIN = "save the folder again"
MAX_NUMBER = 2**16  # of a network's settings
INVALID = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)  # what odd records raise


def is_model_folder(path: str | Path) -> bool:
    """Whether a folder holds a model by itself: exported, or of diffusers (a run folder does not)."""
    path = Path(path)
    return path.is_dir() and (any((path / f).is_file() for f in (METADATA, INDEX)) or find_unet(path) is not None)


def is_pipeline_of_others(path: str | Path) -> bool:
    """Whether a folder holds a diffusers pipeline that cdmem did not write: it is sampled by its own scheduler."""
    return is_pipeline(path) and not (Path(path) / METADATA).is_file()


def is_foreign(path: str | Path) -> bool:
    """Whether a folder holds a model of diffusers, not one that was exported here."""
    return is_model_folder(path) and not (Path(path) / METADATA).is_file()


def load_record(path: str | Path, key: str = "checkpoint", parameterization: str | None = None) -> ModelRecord:
    """What a checkpoint, run folder, exported or diffusers folder says of itself.

    Raises:
        InputError: unreadable.
    """
    try:
        if not is_model_folder(path):
            return read_record(read_checkpoint(path, key)["cdmem"])
        if (Path(path) / METADATA).is_file():
            return read_record(read_json(Path(path) / METADATA, key))
        return foreign_record(read_parts(Path(path), key, parameterization), Path(path), key)
    except INVALID as error:
        raise _invalid(key, path, error) from None


def load_model(
    path: str | Path, key: str = "checkpoint", parameterization: str | None = None
) -> DiffusionTeacher | Student:
    """A teacher or student ready to sample, on the CPU, in eval mode.

    Args:
        path: a checkpoint, a run folder, an exported folder, or one with a ``UNet2DModel`` and a scheduler of
            diffusers; the only weights of a folder are called ``raw``.
        key: the setting that named it.
        parameterization: what a network of diffusers without a scheduler is, ``vp`` or ``edm``.

    Raises:
        InputError: unreadable, or a record and weights that do not fit together.
    """
    path = Path(path)
    # Read before the guard: a checkpoint that cannot be read has a message of its own.
    refuse_other_project(path, key)
    checkpoint = None if is_model_folder(path) else read_checkpoint(path, key)
    if parameterization is not None and (checkpoint or (path / METADATA).is_file()):
        raise InputError("parameterization", parameterization, f"{path} says what it is", "leave it out")
    try:
        model = _from_checkpoint(checkpoint, path, key) if checkpoint else _from_folder(path, key, parameterization)
    except INVALID as error:
        raise _invalid(key, path, error) from None
    return model.eval()


def load_trained(name: str, key: str = "model.teacher", parameterization: str | None = None) -> DiffusionTeacher:
    """A teacher from disk.

    Raises:
        InputError: as :func:`load_model`; not a teacher.
    """
    model = load_model(name, key, parameterization)
    if not isinstance(model, DiffusionTeacher):
        raise InputError(key, name, f"is a {model.role}", "give a teacher's checkpoint")
    return model


def load_teacher(
    name: str,
    training_set: TrainingSet,
    weights: str | None = None,
    key: str = "model.teacher",
    parameterization: str | None = None,
) -> FrozenTeacher:
    """What a student is handed: a teacher from disk, or an analytic one of the training set.

    Raises:
        InputError: as :func:`load_trained`; no such weights or analytic teacher.
    """
    if name.startswith(ANALYTIC):
        return analytic_teacher(name, training_set)
    return load_trained(name, key, parameterization).frozen(name, weights)


def _invalid(key: str, path: str | Path, error: Exception) -> InputError:
    reason = f"{type(error).__name__}: {error}".split("\n")[0][:120]
    return InputError(key, path, f"its record is invalid ({reason})", "use another file")


def _assemble(record: ModelRecord, config: NetworkConfig, network: nn.Module) -> DiffusionTeacher | Student:
    if record.role == "teacher":
        teacher = DiffusionTeacher.of(record, config)
        teacher.assemble(record, network)
        return teacher
    student = Student.of(record, config)
    student.assemble_student(record, network)
    return student


def _from_checkpoint(checkpoint: Mapping[str, Any], path: Path, key: str) -> DiffusionTeacher | Student:
    record = read_record(checkpoint["cdmem"])
    config = from_record(record.network)
    # A student's target serves its training only.
    state = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("target.")}
    _check_sizes(config, record, state)
    model = _assemble(record, config, _build(config, record, path, key))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).split("\n")[-1].strip()[:120]
        raise InputError(key, path, f"weights do not fit the stored network ({reason})", "use another file") from None
    return model


def _build(config: NetworkConfig, record: ModelRecord, path: Path, key: str) -> nn.Module:
    try:
        return config.build(record.shape, record.label_rows, 0)
    except Exception as error:
        if not own_code.is_own(config):
            raise
        problem = f"its network {own_code.class_path(config)} cannot be built ({own_code.reason(error)})"
        hint = "use the module as it was when the model was trained"
        raise InputError(key, path, problem, hint) from None


def _from_folder(path: Path, key: str, parameterization: str | None = None) -> DiffusionTeacher | Student:
    if (path / METADATA).is_file():
        metadata = read_json(path / METADATA, key)
        network, config = load_diffusers(path / "unet", key), read_config(path / "unet", key)
        if weights_digest(network) != metadata["digest"]:
            raise InputError(key, path, f"its weights are not those that {METADATA} describes", "export it again")
        record = read_record(metadata)
        # The network's own file says what it is.
        record = replace(record, shape=config.shape, num_classes=config.num_classes - record.null_label)
    else:
        parts = read_parts(path, key, parameterization)
        for note in parts.notes:
            print(f"      {path}: {note}", flush=True)
        network, config, record = parts.network, parts.config, foreign_record(parts, path, key)
    record = replace(record, network=config.record(), weights=RAW, half_lives=[])
    record.check()
    model = _assemble(record, config, network)
    _try(model, path, key)
    return model


def _check_sizes(config: NetworkConfig, record: ModelRecord, state: Mapping[str, Any]) -> None:
    """Refuse a record that describes more than the file holds, before memory is taken for it.

    Raises:
        ValueError: numbers beyond any model, or weights of other shapes than the network's.
    """
    averages = {name.split(".")[2] for name in state if name.startswith("ema.copies.")}
    if len(record.half_lives) > len(averages):
        raise ValueError("half_lives")
    if own_code.is_own(config):  # of any plain settings; the user's own word admits it
        return
    if not isinstance(config, DiffusersUNet):  # which has limits of its own
        # One layer has one tensor at least.
        limits = {"depth": len(state), "layers": len(state)}
        for name, value in record.network["init_args"].items():
            items, limit = value if isinstance(value, list) else [value], limits.get(name, MAX_NUMBER)
            if len(items) > 16 or not all(isinstance(v, int | float) and 0 <= v <= limit for v in items):
                raise ValueError(f"network setting {name}")
    if isinstance(config, DiffusersUNet):
        parts = UNetNetwork(config.make("meta")).state_dict()
    else:
        with torch.device("meta"):
            parts = config.build(record.shape, record.label_rows, 0).state_dict()
    for name, wanted in parts.items():
        given = state.get(f"raw.network.{name}")
        if not isinstance(given, Tensor) or given.shape != wanted.shape:
            raise ValueError(f"weights {name} do not fit the stored network")


@torch.no_grad()
def _try(module: DiffusionModule, path: Path, key: str) -> None:
    """One call at both ends of the noise range: a network that cannot be used is better found before training."""
    x = torch.randn(2, *module.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([module.sigma_max, module.sigma_min])
    labels = torch.zeros(2, dtype=torch.int64) if module.num_classes else None
    try:
        out = module.function()(x * sigma.reshape(-1, 1, 1, 1), sigma, labels)
        problem = None if out.shape == x.shape and bool(out.isfinite().all()) else "gives no finite images"
    except Exception as error:
        problem = f"cannot be run ({brief(error)})"
    if problem:
        raise InputError(key, path, problem, SAVE_AGAIN)
