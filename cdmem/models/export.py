"""A checkpoint as a folder for others: a pipeline of diffusers where that is exact, else the network and our metadata.

=====================  ==============================================================================================
model                  folder
=====================  ==============================================================================================
EDM student            ``ConsistencyModelPipeline`` with ``CMStochasticIterativeScheduler``: the same c_skip, c_out,
                       c_in and c_noise = 1000 ln(sigma) / 4
EDM teacher            ``unet/`` and ``cdmem.json``: diffusers' EDM schedulers feed the network ln(sigma) / 4
DDPM teacher           ``DDPMPipeline``, if it has no classes (that pipeline gives none to the network)
any other student      ``unet/`` and ``cdmem.json``: the boundary form of a DDPM student, and the c_noise of an imported
                       EDM network, are not the consistency scheduler's
=====================  ==============================================================================================

Every folder also has ``cdmem.json`` and a model card, and :func:`cdmem.models.load.load_folder` reads it back.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers

from cdmem.diffusion.noise import RHO, karras_sigmas
from cdmem.diffusion.preconditioning import NOISE_FACTOR, EDMScaling, VPScaling
from cdmem.errors import InputError
from cdmem.models.load import METADATA
from cdmem.networks.diffusers import save_diffusers
from cdmem.networks.unet import UNetNetwork
from cdmem.training.checkpoint import weights_digest
from cdmem.training.module import DiffusionModule

Form = Literal["consistency", "ddpm", "network"]
PIPELINES = {  # with their schedulers
    "consistency": ("ConsistencyModelPipeline", "CMStochasticIterativeScheduler"),
    "ddpm": ("DDPMPipeline", "DDPMScheduler"),
}


@dataclass(frozen=True)
class Export:
    """What a folder will hold.

    Attributes:
        form: ``consistency`` and ``ddpm`` are pipelines of diffusers, ``network`` is read by cdmem.
        network: the bare F.
        metadata: the content of ``cdmem.json``.
        scheduler: settings of the pipeline's scheduler; empty for ``network``.
    """

    form: Form
    network: UNetNetwork
    metadata: dict[str, Any]
    scheduler: dict[str, Any]


def form_of(module: DiffusionModule) -> Form:
    """Which folder represents a model exactly, see the table above."""
    scaling, rectangular = module.raw.scaling, module.shape[1] != module.shape[2]
    if module.role == "student":
        ours = isinstance(scaling, EDMScaling) and scaling.noise_factor == NOISE_FACTOR
        ours = ours and module.record.function is None
        # The pipeline knows square images only.
        return "consistency" if ours and scaling.prediction == "epsilon" and not rectangular else "network"
    return "ddpm" if isinstance(scaling, VPScaling) and not module.num_classes else "network"


def prepare(module: DiffusionModule, weights: str | None = None, n: int | None = None) -> Export:
    """Everything but the writing.

    Args:
        module: teacher or student.
        weights: ``raw`` or ``ema_<half-life>``; None is the model's own choice.
        n: unique training images, if known.

    Raises:
        InputError: a network that is not a UNet2DModel, or no such weights.
    """
    name = weights or module.weights
    network = module.function(name).network
    if not isinstance(network, UNetNetwork):
        kind = type(network).__name__
        raise InputError("checkpoint", kind, "is not a UNet2DModel, which is all that diffusers holds", "train a UNet")
    scaling, form = module.raw.scaling, form_of(module)
    edm = isinstance(scaling, EDMScaling)
    metadata = module.record.plain() | {
        "form": form,
        "teacher": None,  # a path of the machine it was trained on
        "weights": name,
        "digest": weights_digest(network),
        "n": n,
        "nfe": module.default_nfe,
        "rho": RHO,
        "c_noise": f"{scaling.noise_factor:g} ln(sigma)" if edm else "time step t(sigma), ln(sigma) interpolated",
    }
    return Export(form, network, metadata, _scheduler(form, module))


def _scheduler(form: Form, module: DiffusionModule) -> dict[str, Any]:
    scaling = module.raw.scaling
    if form == "consistency":
        return {
            "num_train_timesteps": module.record.sampler["points"],
            "sigma_min": module.sigma_min,
            "sigma_max": module.sigma_max,
            "sigma_data": scaling.sigma_data,
            "rho": RHO,
            "clip_denoised": False,
        }
    if form == "ddpm":
        schedule = scaling.schedule
        return {
            "num_train_timesteps": schedule.steps,
            "beta_schedule": schedule.betas,
            "beta_start": schedule.beta_start,
            "beta_end": schedule.beta_end,
            "prediction_type": scaling.prediction,
            "clip_sample": False,
        }
    return {}


def nearest_indices(metadata: dict[str, Any]) -> list[tuple[float, int, float]]:
    """For each mid sigma of a student: itself, the index of the nearest point of the pipeline's grid, that point."""
    sampler, ends = metadata["sampler"], (metadata["sigma_min"], metadata["sigma_max"])
    grid = karras_sigmas(sampler["points"], *ends, metadata["rho"]).log()
    nearest = [(sigma, int((grid - math.log(sigma)).abs().argmin())) for sigma in sampler["mid_sigmas"]]
    return [(sigma, k, float(grid[k].exp())) for sigma, k in nearest]


def write(export: Export, card: str, out: Path) -> Path:
    """Write the folder beside its place and rename it.

    Raises:
        InputError: ``out`` exists or cannot be written.
    """
    if os.path.lexists(out):
        raise InputError("out", out, "exists already", "give another --out")
    temporary = out.with_name(f".{out.name}.part-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        if export.form == "network":
            save_diffusers(export.network, str(temporary / "unet"))
        else:
            pipeline, scheduler = (getattr(diffusers, name) for name in PIPELINES[export.form])
            made = pipeline(unet=export.network.unet, scheduler=scheduler(**export.scheduler))
            made.save_pretrained(temporary, safe_serialization=True, max_shard_size="1TB")
        (temporary / METADATA).write_text(json.dumps(export.metadata, indent=2) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(card, encoding="utf-8")
        os.rename(temporary, out)
    except OSError as error:
        raise InputError("out", out, f"cannot be written ({error.strerror})", "give another --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out
