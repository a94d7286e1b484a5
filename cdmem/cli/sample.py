"""``python -m cdmem sample``: images from any checkpoint, run folder, exported folder or diffusers pipeline."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdmem.audit.settings import usable_device
from cdmem.cli.arguments import new_file, parse
from cdmem.diffusion.sampling import NoiseSource, Sampler, in_batches
from cdmem.errors import InputError
from cdmem.images import grid, to_uint8, write_png
from cdmem.io.atomic import replacing
from cdmem.io.paths import possible_path, usable_path
from cdmem.io.progress import progress
from cdmem.models.load import is_pipeline_of_others, load_model
from cdmem.models.pipelines import PipelineSampler, load_pipeline, only_a_teacher
from cdmem.seeds import first_sample
from cdmem.training.module import DiffusionModule

SHOWN = 256  # images of the grid beside an .npz


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Images from any checkpoint or run folder.

    Attributes:
        checkpoint: .ckpt file, run folder or exported folder of a teacher or student, or a diffusers pipeline folder.
        samples: number of images.
        classes: of a class-conditional model, given to the samples in turn; drawn from their seeds if null.
        nfe: network evaluations per image; the model's default if null.
        weights: raw or ema_<half-life>; the model's choice if null.
        parameterization: vp or edm, of a diffusers network without a scheduler.
        seed: sampling seed; the checkpoint's if null (of a pipeline: 0).
        batch_size: images made at once; does not change them.
        device: auto is the GPU if there is one.
        out: .npz with images (uint8 NHWC), seeds and labels (of a class-conditional model), and a grid of the first 256
            beside it; a .png with a grid of all; or a folder that gets a PNG a sample, named by its seed.
        allow_code: files may name code to run: networks and data sources of one's own.
    """

    checkpoint: str
    samples: int = 64
    classes: list[int] | None = None
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
        if options.classes is not None:
            problem = "a pipeline of others draws its classes from the seeds"
            raise InputError("classes", options.classes, problem, "leave --classes out")
        if options.weights is not None:
            raise InputError("weights", options.weights, "a pipeline has one set of weights", "leave --weights out")
        (sampler,), _, _ = load_pipeline(path, None if options.nfe is None else [options.nfe], "checkpoint")
        return sampler, "pipeline", 0
    module = load_model(path, parameterization=options.parameterization)
    module.to(device)
    sampler = replace(module.sampler(options.nfe, options.weights), classes=check_classes(options.classes, module))
    return sampler, module.role, module.sampling_seed


def target(out: str) -> tuple[Path, str]:
    """Where the images go, and as what: ``.npz``, ``.png`` or a folder, which is ``/``.

    Raises:
        InputError: another suffix, something lies there, or it cannot be written.
    """
    path = possible_path("out", out)
    kind = "/" if out.endswith("/") or not path.suffix else path.suffix
    if kind == "/":
        if path.is_symlink() or (path.exists() and (path.is_file() or any(path.iterdir()))):
            raise InputError("out", path, "exists already", "give another --out")
    elif kind in (".npz", ".png"):
        for suffix in {kind, ".png"}:
            new_file("out", str(path.with_suffix(suffix)), suffix)
    else:
        hint = "end it in .npz, in .png for a grid, or in / for a folder"
        raise InputError("out", path, f"{kind} is no format that is written", hint)
    return path, kind


def check_classes(classes: list[int] | None, module: DiffusionModule) -> tuple[int, ...]:
    """The classes that were asked for; empty if none were.

    Raises:
        InputError: an empty list, a model without classes, or a class that it does not have.
    """
    if classes is None:
        return ()
    if not classes:
        raise InputError("classes", classes, "is empty", "give one class or more, or leave --classes out")
    if not module.num_classes:
        raise InputError("classes", classes, f"this {module.role} is unconditional", "leave --classes out")
    for number in classes:
        if not 0 <= number < module.num_classes:
            raise InputError("classes", number, "is no class of the model", f"use 0 to {module.num_classes - 1}")
    return tuple(classes)


def write_folder(folder: Path, images: Tensor, seeds: Sequence[int]) -> None:
    """A PNG for each of uint8 (N, C, H, W), C = 1 or 3, named by its seed; the folder appears when all are written."""
    part = folder.with_name(f".{folder.name}.part-{uuid.uuid4().hex[:8]}")
    try:
        part.mkdir(parents=True)
        for seed, image in zip(seeds, images.permute(0, 2, 3, 1).numpy()):
            # Nine digits hold every seed, so that names sort as seeds do.
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(part / f"{seed:09d}.png")
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def run_sample(args: Sequence[str]) -> int:
    """Write images as ``.npz`` with a grid, as a grid or as a folder of PNGs; never over existing files."""
    options = parse(SampleCommand, args, "sample")
    out, kind = target(options.out)
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
    if kind == "/":
        write_folder(out, images, seeds)
        print(f"images: {out}/{seeds[0]:09d}.png and so on, named by their seeds")
        return 0
    if kind == ".npz":
        labels = NoiseSource(seeds, sampler.shape).labels(sampler.num_classes, getattr(sampler, "classes", ()))
        more = {} if labels is None else {"labels": labels.numpy()}
        with replacing(out) as temporary:
            rows = images.permute(0, 2, 3, 1).numpy()
            np.savez_compressed(temporary, images=rows, seeds=np.array(seeds), **more)
        print(f"images: {out}")
        images = images[:SHOWN]
    picture = out.with_suffix(".png")
    with replacing(picture) as temporary:
        write_png(temporary, grid(images, columns=16, scale=max(1, 32 // images.shape[-1])))
    print(f"grid:   {picture}{f', the first {SHOWN}' if options.samples > len(images) else ''}")
    return 0
