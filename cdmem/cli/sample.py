"""``python -m cdmem sample``: images from any checkpoint, run folder, exported folder or diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from cdmem.audit.settings import usable_device
from cdmem.cli.arguments import new_file, parse
from cdmem.diffusion.sampling import Sampler, in_batches
from cdmem.errors import InputError
from cdmem.images import grid, to_uint8, write_png
from cdmem.io.atomic import replacing
from cdmem.io.paths import usable_path
from cdmem.io.progress import progress
from cdmem.models.load import is_pipeline_of_others, load_model
from cdmem.models.pipelines import PipelineSampler, load_pipeline, only_a_teacher
from cdmem.seeds import first_sample


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Images from any checkpoint or run folder.

    Attributes:
        checkpoint: .ckpt file, run folder or exported folder of a teacher or student, or a diffusers pipeline folder.
        samples: number of images.
        nfe: network evaluations per image; the model's default if null.
        weights: raw or ema_<half-life>; the model's choice if null.
        parameterization: vp or edm, of a diffusers network without a scheduler.
        seed: sampling seed; the checkpoint's if null (of a pipeline: 0).
        batch_size: images made at once; does not change them.
        device: auto is the GPU if there is one.
        out: .npz with images (uint8 NHWC) and seeds; a .png grid beside it.
        allow_code: files may name code to run: networks and data sources of one's own.
    """

    checkpoint: str
    samples: int = 64
    nfe: int | None = None
    weights: str | None = None
    parameterization: Literal["vp", "edm"] | None = None
    seed: int | None = None
    batch_size: int = 256
    device: str = "auto"
    out: str = "samples.npz"
    allow_code: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "needs at least one", "give a positive number")


def open_sampler(options: SampleCommand, device: torch.device) -> tuple[Sampler | PipelineSampler, str, int]:
    """The sampler that an audit of the same path has, what it is called, and its own sampling seed.

    Raises:
        InputError: nothing usable there, or evaluations that it cannot spend.
    """
    path = usable_path("checkpoint", options.checkpoint)
    if is_pipeline_of_others(path) and not only_a_teacher(path):
        if options.parameterization is not None:
            problem = "a pipeline's scheduler says what it is"
            raise InputError("parameterization", options.parameterization, problem, "leave --parameterization out")
        if options.weights is not None:
            raise InputError("weights", options.weights, "a pipeline has one set of weights", "leave --weights out")
        (sampler,), _, _ = load_pipeline(path, None if options.nfe is None else [options.nfe], "checkpoint")
        return sampler, "pipeline", 0
    module = load_model(path, parameterization=options.parameterization)
    module.to(device)
    return module.sampler(options.nfe, options.weights), module.role, module.sampling_seed


def run_sample(args: Sequence[str]) -> int:
    """Write images as ``.npz`` and a grid as ``.png``; never over existing files."""
    options = parse(SampleCommand, args, "sample")
    out = new_file("out", options.out, ".npz")
    picture = new_file("out", str(out.with_suffix(".png")), ".png")
    device = usable_device(options.device)
    sampler, name, own_seed = open_sampler(options, device)
    start = first_sample(own_seed if options.seed is None else options.seed)
    seeds = range(start, start + options.samples)
    parts = []
    with progress(options.samples, f"{name} {sampler.nfe} NFE") as bar:
        for chunk, images in in_batches(sampler, seeds, options.batch_size, device):
            parts.append(to_uint8(images))
            bar.update(len(chunk))
    images = torch.cat(parts)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        np.savez_compressed(temporary, images=images.permute(0, 2, 3, 1).numpy(), seeds=np.array(seeds))
    write_png(picture, grid(images[:256], columns=16, scale=max(1, 32 // images.shape[-1])))
    print(f"images: {out}\ngrid:   {picture}")
    return 0
