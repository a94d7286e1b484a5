"""Unconditional diffusers pipelines as generators: the network and scheduler of a folder, sampled seed by seed.

Only safetensors weights and the schedulers listed here are loaded: a folder must not choose code. The pipeline's own
loop is replaced by one that scales noise and inputs as the scheduler asks (diffusers' ``DDPMPipeline`` does not, so an
EDM scheduler in it would be sampled wrongly) and that draws every seed's noise from its own generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdmem.diffusion.ddpm import MAX_STEPS
from cdmem.diffusion.sampling import NoiseSource
from cdmem.errors import InputError, brief
from cdmem.io.text import read_json
from cdmem.networks.diffusers import DiffusersUNet, load_diffusers, read_config, weights_file
from cdmem.networks.unet import UNetNetwork

PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "ConsistencyModelPipeline")
CONSISTENCY = "CMStochasticIterativeScheduler"
# Sampled as they are.
SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    CONSISTENCY,
)
# Faster samplers of DDPM networks: their betas and prediction type are read, their steps are not taken.
DDPM_SAMPLERS = (
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
)
# What a network without a scheduler may be said to be.
SAID = {"vp": "DDPMScheduler", "edm": "EDMEulerScheduler"}
SCHEDULER = "scheduler_config.json"
DEFAULT_STEPS = {"DDPMScheduler": 1000, "DDIMScheduler": 50, CONSISTENCY: 1}
OTHER_STEPS = 18
INDEX = "model_index.json"


@dataclass
class PipelineSampler:
    """Seed -> image through a diffusers network and scheduler.

    Args:
        unet: ``UNet2DModel``.
        scheduler: one of :data:`SCHEDULERS`.
        nfe: number of inference steps; each costs one network evaluation with these schedulers.
        shape: (C, H, W).
        num_classes: 0 for an unconditional network.
        notes: what was read otherwise than it lies there.
    """

    unet: nn.Module
    scheduler: Any
    nfe: int
    shape: tuple[int, int, int]
    num_classes: int = 0
    notes: tuple[str, ...] = ()

    @torch.no_grad()
    def __call__(self, seeds: Sequence[int], device: torch.device | str = "cpu", steps: int | None = None) -> Tensor:
        """float32 images (B, C, H, W) in [-1, 1], not clamped beyond what the scheduler does.

        ``steps`` stops after the first so many, to try whether network and scheduler fit.
        """
        noise = NoiseSource(seeds, self.shape, device)
        labels = noise.labels(self.num_classes)
        self.unet.to(device)
        self.scheduler.set_timesteps(self.nfe, device=device)
        x = noise.next() * float(self.scheduler.init_noise_sigma)
        for t in self.scheduler.timesteps[:steps]:
            scaled = self.scheduler.scale_model_input(x, t)
            out = self.unet(scaled, t.to(torch.float32) if t.is_floating_point() else t, class_labels=labels).sample
            extra = {} if type(self.scheduler).__name__ == "DDIMScheduler" else {"generator": noise.generators}
            x = self.scheduler.step(out, t, x, **extra).prev_sample
        return x.float()

    @property
    def mid_sigmas(self) -> tuple[float, ...]:
        """Noise levels of the second, third, ... step of a consistency model's scheduler."""
        self.scheduler.set_timesteps(self.nfe)
        return tuple(self.scheduler.sigmas[1 : self.nfe].tolist())


def is_pipeline(path: str | Path) -> bool:
    """Whether a folder holds a diffusers pipeline."""
    return (Path(path) / INDEX).is_file()


@dataclass(frozen=True)
class PipelineParts:
    """What a folder holds.

    Attributes:
        network: ``UNet2DModel`` behind our signature, in eval mode.
        config: its record.
        scheduler: one of :data:`SCHEDULERS`.
        name: of the scheduler's class.
        digest: SHA-256 of the weights file.
        notes: what was read otherwise than it lies there.
    """

    network: UNetNetwork
    config: DiffusersUNet
    scheduler: Any
    name: str
    digest: str
    notes: tuple[str, ...] = ()


def find_unet(path: str | Path) -> Path | None:
    """The folder of the network: ``unet/``, else ``unet_ema/``, else the folder itself if it holds a UNet2DModel."""
    folder = Path(path)
    for place in (folder / "unet", folder / "unet_ema"):
        if (place / "config.json").is_file():
            return place
    return folder if (folder / "config.json").is_file() and weights_file(folder)[0].is_file() else None


def find_scheduler(path: Path, unet: Path) -> Path | None:
    """The folder of the scheduler: beside the network, or up to two folders above it, as training scripts leave it."""
    above = [path] if is_pipeline(path) else [unet, unet.parent, unet.parent.parent]
    places = [place for folder in dict.fromkeys([path, *above]) for place in (folder / "scheduler", folder)]
    return next((place for place in places if (place / SCHEDULER).is_file()), None)


def read_parts(path: str | Path, key: str = "generator", parameterization: str | None = None) -> PipelineParts:
    """Read network and scheduler of a folder with ``unet/``, ``scheduler/`` and usually ``model_index.json``.

    The folder of the network alone is enough (:func:`find_unet`, :func:`find_scheduler`).

    Args:
        path: the folder.
        key: the setting that named it.
        parameterization: what a network without a scheduler is, a key of :data:`SAID`, with that scheduler's defaults.

    Raises:
        InputError: another kind of pipeline or scheduler, missing safetensors, or a network that is not a UNet2DModel.
    """
    import diffusers

    folder = Path(path)
    unet = find_unet(folder) or folder / "unet"
    place = find_scheduler(folder, unet)
    _check_said(folder, place, parameterization, key)
    settings = {} if place is None else read_json(place / SCHEDULER, key)
    name = SAID.get(parameterization or "") or _scheduler_name(folder, settings, key)
    if name not in (*SCHEDULERS, *DDPM_SAMPLERS):
        known = ", ".join((*SCHEDULERS, *DDPM_SAMPLERS))
        raise InputError(f"{key}.scheduler", name, "is not supported", f"use one of {known}")
    steps = settings.get("num_train_timesteps", 2)
    if type(steps) is not int or not 2 <= steps <= MAX_STEPS:
        raise InputError(f"{key}.scheduler", steps, f"num_train_timesteps is not 2 to {MAX_STEPS}", "save it again")
    network = load_diffusers(unet, key)
    config = read_config(unet, key)
    try:
        kind = getattr(diffusers, name)
        scheduler = kind() if place is None else kind.from_pretrained(str(place), local_files_only=True)
    except Exception as error:
        reason = brief(error)
        raise InputError(key, folder, f"cannot be loaded ({reason})", "save the pipeline again") from None
    weights, variant = weights_file(unet)
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return PipelineParts(network, config, scheduler, name, digest, _notes(folder, unet, place, name, variant))


def _check_said(folder: Path, scheduler: Path | None, parameterization: str | None, key: str) -> None:
    """Raises InputError unless either the folder or the user says what the network's output means."""
    option = "--model.teacher_parameterization" if key.startswith("model.") else "--parameterization"
    name = option.removeprefix("--")
    if parameterization is not None and parameterization not in SAID:
        raise InputError(name, parameterization, "is unknown", f"use {' or '.join(SAID)}")
    if scheduler is not None and parameterization is not None:
        raise InputError(name, parameterization, f"{scheduler / SCHEDULER} says what it is", f"leave {option} out")
    if scheduler is None and parameterization is None:
        hint = f"put scheduler/{SCHEDULER} beside it, or add {option} vp (DDPM, linear betas, epsilon) or edm"
        raise InputError(key, folder, "is a network without a scheduler, which says what its output means", hint)


def _notes(folder: Path, unet: Path, place: Path | None, name: str, variant: str | None) -> tuple[str, ...]:
    notes = []
    if unet.name == "unet" and not is_pipeline(folder) and (folder / "unet_ema").is_dir():
        notes.append(f"unet/ is read; give {folder}/unet_ema for the averaged weights")
    if unet.name == "unet_ema":
        notes.append("the averaged weights of unet_ema/ are read")
    if place is None:
        notes.append(f"no scheduler lies there; taken for a {name} with diffusers' defaults, as was said")
    elif place.parent not in (folder, unet) and place not in (folder, unet):
        notes.append(f"its scheduler is {place}")
    if variant is not None:
        notes.append(f"its {variant} weights are read as float32")
    if name in DDPM_SAMPLERS:
        notes.append(
            f"a DDPM by the betas of its {name}; cdmem samples it by its own ODE solver, not by that scheduler"
        )
    return tuple(notes)


def _scheduler_name(folder: Path, settings: dict[str, Any], key: str) -> Any:
    """The scheduler's class by the index, or by its own file where network and scheduler were saved side by side."""
    if not is_pipeline(folder):
        return settings.get("_class_name")
    index = read_json(folder / INDEX, key)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise InputError(key, kind, "is no pipeline that can be read", f"unconditional are: {', '.join(PIPELINES)}")
    entries = {part: index.get(part) for part in ("unet", "scheduler")}
    for part, entry in entries.items():
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] != "diffusers":
            raise InputError(f"{key}.{part}", entry, "is not a class of diffusers", "give a plain pipeline folder")
    if entries["unet"][1] != "UNet2DModel":
        raise InputError(f"{key}.unet", entries["unet"][1], "is not a UNet2DModel", "audit its images instead")
    name = entries["scheduler"][1]
    if name in DDPM_SAMPLERS and settings.get("_class_name") != name:  # its betas would be another class's
        raise InputError(f"{key}.scheduler", name, f"{SCHEDULER} is of another class", "save the pipeline again")
    return name


def only_a_teacher(path: str | Path) -> bool:
    """Whether a pipeline's scheduler is one of :data:`DDPM_SAMPLERS`, whose steps are not taken here."""
    entry = read_json(Path(path) / INDEX, "generator").get("scheduler")
    return isinstance(entry, list) and len(entry) == 2 and entry[1] in DDPM_SAMPLERS


def load_pipeline(
    path: str | Path, nfe: Sequence[int] | None, key: str = "generator"
) -> tuple[list[PipelineSampler], str, str]:
    """Samplers of a pipeline folder.

    Args:
        path: folder with ``model_index.json``, ``unet/`` and ``scheduler/``.
        nfe: inference steps, one sampler each; None is the scheduler's customary number.
        key: the setting that named it.

    Returns:
        samplers, the scheduler's name, and the SHA-256 of the weights file.

    Raises:
        InputError: see :func:`read_parts`; steps that cannot be spent; or a network and scheduler that do not fit.
    """
    folder = Path(path)
    if not is_pipeline(folder):
        raise InputError(key, folder / INDEX, "no such file", "give a diffusers pipeline folder")
    parts = read_parts(folder, key)
    if parts.name not in SCHEDULERS:
        raise InputError(f"{key}.scheduler", parts.name, "is not sampled as it is", "give it as a teacher")
    unet, shape, classes = parts.network.unet, parts.config.shape, parts.config.num_classes
    steps = list(nfe or [DEFAULT_STEPS.get(parts.name, OTHER_STEPS)])
    if min(steps) < 1:
        raise InputError("nfe", min(steps), f"{parts.name} needs at least one step", "use 1 or more")
    of = type(parts.scheduler)  # each sampler gets its own: a scheduler remembers the step it is at
    samplers = [
        PipelineSampler(unet, of.from_config(parts.scheduler.config), k, shape, classes, parts.notes) for k in steps
    ]
    for sampler in samplers:
        try:
            sampler([0], steps=1)
        except Exception as error:
            reason = brief(error)
            if "num_inference_steps" in reason:
                problem = f"{parts.name} cannot spend that many steps ({reason})"
                raise InputError("nfe", sampler.nfe, problem, "give another --nfe") from None
            problem = f"cannot spend {sampler.nfe} steps ({reason})"
            raise InputError(key, folder, problem, "save the pipeline again") from None
    return samplers, parts.name, parts.digest
