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
from cdmem.networks.diffusers import WEIGHTS_FILE, DiffusersUNet, load_diffusers, read_config
from cdmem.networks.unet import UNetNetwork

PIPELINES = ("DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline")
SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "CMStochasticIterativeScheduler",
)
DEFAULT_STEPS = {"DDPMScheduler": 1000, "DDIMScheduler": 50, "CMStochasticIterativeScheduler": 1}
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
    """

    unet: nn.Module
    scheduler: Any
    nfe: int
    shape: tuple[int, int, int]
    num_classes: int = 0

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
    """

    network: UNetNetwork
    config: DiffusersUNet
    scheduler: Any
    name: str
    digest: str


def read_parts(path: str | Path, key: str = "generator") -> PipelineParts:
    """Read network and scheduler of a folder with ``unet/``, ``scheduler/`` and usually ``model_index.json``.

    Raises:
        InputError: another kind of pipeline or scheduler, missing safetensors, or a network that is not a UNet2DModel.
    """
    import diffusers

    folder = Path(path)
    settings = read_json(folder / "scheduler" / "scheduler_config.json", key)
    name = _scheduler_name(folder, settings, key)
    if name not in SCHEDULERS:
        raise InputError(f"{key}.scheduler", name, "is not supported", f"use one of {', '.join(SCHEDULERS)}")
    steps = settings.get("num_train_timesteps", 1)
    if type(steps) is not int or not 0 < steps <= MAX_STEPS:
        raise InputError(f"{key}.scheduler", steps, f"num_train_timesteps is not 1 to {MAX_STEPS}", "save it again")
    network = load_diffusers(folder / "unet", key)
    config = read_config(folder / "unet", key)
    try:
        scheduler = getattr(diffusers, name).from_pretrained(str(folder / "scheduler"), local_files_only=True)
    except Exception as error:
        reason = brief(error)
        raise InputError(key, folder, f"cannot be loaded ({reason})", "save the pipeline again") from None
    with (folder / "unet" / WEIGHTS_FILE).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return PipelineParts(network, config, scheduler, name, digest)


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
    return entries["scheduler"][1]


def load_pipeline(path: str | Path, nfe: Sequence[int] | None) -> tuple[list[PipelineSampler], str, str]:
    """Samplers of a pipeline folder.

    Args:
        path: folder with ``model_index.json``, ``unet/`` and ``scheduler/``.
        nfe: inference steps, one sampler each; None is the scheduler's customary number.

    Returns:
        samplers, the scheduler's name, and the SHA-256 of the weights file.

    Raises:
        InputError: see :func:`read_parts`; or a network and scheduler that do not fit each other.
    """
    folder = Path(path)
    if not is_pipeline(folder):
        raise InputError("generator", folder / INDEX, "no such file", "give a diffusers pipeline folder")
    parts = read_parts(folder)
    unet, shape, classes = parts.network.unet, parts.config.shape, parts.config.num_classes
    steps = list(nfe or [DEFAULT_STEPS.get(parts.name, OTHER_STEPS)])
    of = type(parts.scheduler)  # each sampler gets its own: a scheduler remembers the step it is at
    samplers = [PipelineSampler(unet, of.from_config(parts.scheduler.config), k, shape, classes) for k in steps]
    for sampler in samplers:
        try:
            sampler([0], steps=1)
        except Exception as error:
            reason = brief(error)
            hint = "give another --nfe" if "num_inference_steps" in reason else "save the pipeline again"
            raise InputError("generator", folder, f"cannot spend {sampler.nfe} steps ({reason})", hint) from None
    return samplers, parts.name, parts.digest
