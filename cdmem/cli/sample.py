"""``python -m cdmem sample``: images from any checkpoint or run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cdmem.audit.settings import usable_device
from cdmem.cli.arguments import new_file, parse
from cdmem.diffusion.sampling import in_batches
from cdmem.errors import InputError
from cdmem.images import grid, to_uint8, write_png
from cdmem.io.atomic import replacing
from cdmem.io.paths import usable_path
from cdmem.io.progress import progress
from cdmem.models.load import load_model
from cdmem.seeds import first_sample


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Images from any checkpoint or run folder.

    Attributes:
        checkpoint: .ckpt file or run folder of a teacher or student.
        samples: number of images.
        nfe: network evaluations per image; the model's default if null.
        weights: raw or ema_<half-life>; the model's choice if null.
        seed: sampling seed; the checkpoint's if null.
        batch_size: images made at once; does not change them.
        device: auto is the GPU if there is one.
        out: .npz with images (uint8 NHWC) and seeds; a .png grid beside it.
        allow_code: files may name code to run: networks and data sources of one's own.
    """

    checkpoint: str
    samples: int = 64
    nfe: int | None = None
    weights: str | None = None
    seed: int | None = None
    batch_size: int = 256
    device: str = "auto"
    out: str = "samples.npz"
    allow_code: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "needs at least one", "give a positive number")


def run_sample(args: Sequence[str]) -> int:
    """Write images as ``.npz`` and a grid as ``.png``; never over existing files."""
    options = parse(SampleCommand, args, "sample")
    out = new_file("out", options.out, ".npz")
    picture = new_file("out", str(out.with_suffix(".png")), ".png")
    module = load_model(usable_path("checkpoint", options.checkpoint))
    device = usable_device(options.device)
    module.to(device)
    sampler = module.sampler(options.nfe, options.weights)
    start = first_sample(module.sampling_seed if options.seed is None else options.seed)
    seeds = range(start, start + options.samples)
    parts = []
    with progress(options.samples, f"{module.role} {sampler.nfe} NFE") as bar:
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
