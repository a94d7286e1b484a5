"""Unconditional diffusers pipelines as generators: the network and scheduler of a folder, sampled seed by seed.

Only safetensors weights and the schedulers listed here are loaded: a folder must not choose code. The pipeline's own
loop is replaced by one that scales noise and inputs as the scheduler asks (diffusers' ``DDPMPipeline`` does not, so an
EDM scheduler in it would be sampled wrongly) and that draws every seed's noise from its own generator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdmem.diffusion.sampling import NoiseSource
from cdmem.errors import InputError

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
MAX_JSON = 2**20
MAX_SIDE = 4096  # px
LOCAL = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False}


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


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    try:
        if file.stat().st_size > MAX_JSON:
            raise ValueError("too large")
        index = json.loads(file.read_text(encoding="utf-8"))
        return dict(index)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError("generator", file, f"unreadable ({error})", "give a diffusers pipeline folder") from None


def load_pipeline(path: str | Path, nfe: Sequence[int] | None) -> tuple[list[PipelineSampler], str, str]:
    """Read a pipeline folder.

    Args:
        path: folder with ``model_index.json``, ``unet/`` and ``scheduler/``.
        nfe: inference steps, one sampler each; None is the scheduler's customary number.

    Returns:
        samplers, the scheduler's name, and the SHA-256 of the weights file.

    Raises:
        InputError: another kind of pipeline or scheduler, missing safetensors, or a network that is not a UNet2DModel.
    """
    import diffusers
    from diffusers import UNet2DModel

    folder = Path(path)
    index = _read_index(folder)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        mend = f"audited are unconditional pipelines: {', '.join(PIPELINES)}"
        raise InputError("generator", kind, "is no pipeline that can be audited", mend)
    entries = {key: index.get(key) for key in ("unet", "scheduler")}
    for key, entry in entries.items():
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] != "diffusers":
            raise InputError(f"generator.{key}", entry, "is not a class of diffusers", "give a plain pipeline folder")
    name = entries["scheduler"][1]
    if name not in SCHEDULERS:
        raise InputError("generator.scheduler", name, "is not supported", f"use one of {', '.join(SCHEDULERS)}")
    if entries["unet"][1] != "UNet2DModel":
        raise InputError("generator.unet", entries["unet"][1], "is not a UNet2DModel", "audit its images instead")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if not weights.is_file() or (weights.is_symlink() and not weights.resolve().is_file()):
        mend = "save the pipeline with safe_serialization=True; pickles are not read"
        raise InputError("generator", weights, "no such file", mend)
    try:
        unet, report = UNet2DModel.from_pretrained(str(folder / "unet"), output_loading_info=True, **LOCAL)
        lost = [key for kind in ("missing_keys", "mismatched_keys", "unexpected_keys") for key in report.get(kind, ())]
        if lost:  # diffusers would draw what is missing at random, and the audit would be of noise
            raise ValueError(f"weights and config.json differ in {len(lost)} tensors, such as {lost[0]}")
        unet.eval()
        scheduler = getattr(diffusers, name).from_pretrained(str(folder / "scheduler"), local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError("generator", folder, f"cannot be loaded ({reason})", "save the pipeline again") from None
    size = unet.config.sample_size
    sides = [size, size] if isinstance(size, int) else size
    plain = isinstance(sides, list | tuple) and len(sides) == 2
    if not plain or not all(type(s) is int and 0 < s <= MAX_SIDE for s in sides):
        raise InputError("generator.unet.sample_size", size, "is no size of an image", "set it in unet/config.json")
    shape = (int(unet.config.in_channels), sides[0], sides[1])
    classes = int(unet.config.num_class_embeds or 0)
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    steps = list(nfe or [DEFAULT_STEPS.get(name, OTHER_STEPS)])
    samplers = [PipelineSampler(unet, _copy(scheduler), k, shape, classes) for k in steps]
    for sampler in samplers:
        try:
            sampler([0], steps=1)
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            mend = "give another --nfe" if "num_inference_steps" in reason else "save the pipeline again"
            raise InputError("generator", folder, f"cannot spend {sampler.nfe} steps ({reason})", mend) from None
    return samplers, name, digest


def _copy(scheduler: Any) -> Any:
    """A scheduler of its own for each sampler: schedulers remember the step they are at."""
    return type(scheduler).from_config(scheduler.config)
