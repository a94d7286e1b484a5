"""``python -m cdmem sample``: images from any checkpoint or run folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from cdmem.diffusion.sampling import first_seed, in_batches
from cdmem.errors import InputError
from cdmem.images import grid, to_uint8, write_png
from cdmem.io.atomic import replacing
from cdmem.io.paths import possible_path, usable_path


class OneLineParser(argparse.ArgumentParser):
    """argparse whose complaints are :class:`InputError`."""

    def error(self, message: str) -> None:
        raise InputError("arguments", self.prog, message, "see --help")


def parser() -> argparse.ArgumentParser:
    """The options of ``sample``."""
    p = OneLineParser(prog="python -m cdmem sample", description=__doc__)
    p.add_argument("--checkpoint", required=True, help=".ckpt file or run folder of a teacher or student")
    p.add_argument("--samples", type=int, default=64, help="number of images")
    p.add_argument("--nfe", type=int, default=None, help="network evaluations per image; the model's default if absent")
    p.add_argument("--weights", default=None, help="raw or ema_<half-life>; the model's choice if absent")
    p.add_argument("--seed", type=int, default=None, help="sampling seed; the checkpoint's if absent")
    p.add_argument("--batch_size", type=int, default=256, help="images made at once; does not change them")
    p.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    p.add_argument(
        "--out", default="samples.npz", help=".npz with images (uint8 NHWC) and seeds; a .png grid beside it"
    )
    return p


def run_sample(args: Sequence[str]) -> int:
    """Write images as ``.npz`` and a grid as ``.png``; never over existing files."""
    from cdmem.models.load import load_model

    options = parser().parse_args(args)
    out, checkpoint = possible_path("out", options.out), usable_path("checkpoint", options.checkpoint)
    picture = out.with_suffix(".png")
    for file in (out, picture):
        if file.exists() or file.is_symlink():
            raise InputError("out", file, "exists already", "give another --out")
    if out.suffix != ".npz":
        raise InputError("out", out, "must end in .npz", "e.g. --out samples.npz")
    if options.samples < 1 or options.batch_size < 1:
        raise InputError("samples", options.samples, "needs at least one", "give a positive number")
    module = load_model(checkpoint)
    try:
        module.to(options.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError("device", options.device, str(error).split("\n")[0], "use cpu") from None
    sampler = module.sampler(options.nfe, options.weights)
    start = first_seed(module.sampling_seed if options.seed is None else options.seed)
    seeds = range(start, start + options.samples)
    parts = []
    with tqdm(total=options.samples, desc=f"{module.role} {sampler.nfe} NFE") as bar:
        for chunk, images in in_batches(sampler, seeds, options.batch_size, options.device):
            parts.append(to_uint8(images))
            bar.update(len(chunk))
    images = torch.cat(parts)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        np.savez_compressed(temporary, images=images.permute(0, 2, 3, 1).numpy(), seeds=np.array(seeds))
    write_png(picture, grid(images[:256], columns=16, scale=max(1, 32 // images.shape[-1])))
    print(f"images: {out}\ngrid:   {picture}")
    return 0
