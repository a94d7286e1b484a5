"""Diffusion models that others trained with diffusers, as records of ours.

Their scheduler says what the network's output means: DDPM and DDIM are epsilon (v, sample) networks on DDPM times, EDM
schedulers are EDM's F with c_noise = ln(sigma) / 4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cdmem.data.subset import UNRECORDED
from cdmem.diffusion.ddpm import DDPMSchedule
from cdmem.diffusion.noise import SIGMA_MAX
from cdmem.errors import InputError
from cdmem.models.pipelines import DDPM_SAMPLERS, PipelineParts
from cdmem.training.record import ModelRecord
from cdmem.training.settings import RAW


def foreign_record(parts: PipelineParts, path: Path, key: str) -> ModelRecord:
    """What a diffusers folder is, read from its scheduler and its network's settings.

    Raises:
        InputError: a network or scheduler that has no exact counterpart here.
    """
    settings = parts.config.config
    embedding, labels = settings.get("time_embedding_type", "positional"), settings.get("class_embed_type")
    if embedding != "positional":
        problem = "cannot be asked at noise levels between its time steps"
        raise InputError(f"{key}.unet.time_embedding_type", embedding, problem, "use positional")
    if labels is not None:
        raise InputError(f"{key}.unet.class_embed_type", labels, "is not supported", "use num_class_embeds")
    inputs, outputs = settings.get("in_channels", 3), settings.get("out_channels", 3)
    if inputs != outputs:
        problem = f"the network has {inputs} input channels (a learned variance has no place in the ODE)"
        raise InputError(f"{key}.unet.out_channels", outputs, problem, "give a network of fixed variance")
    if parts.name.startswith("EDM"):
        about = _edm(parts.scheduler.config, key)
    elif parts.name in ("DDPMScheduler", "DDIMScheduler", *DDPM_SAMPLERS):
        about = _vp(parts.scheduler, key)
    else:
        problem = "is a consistency model, which has no ODE to distil"
        raise InputError(key, path, problem, "give the folder of a diffusion model")
    return ModelRecord(
        role="teacher",
        shape=parts.config.shape,
        num_classes=parts.config.num_classes,
        network=parts.config.record(),
        sampler={"solver": "heun", "points": 18},
        weights=RAW,
        training_set=UNRECORDED,
        **about,
    )


def _edm(config: Any, key: str) -> dict[str, Any]:
    """EDM (Karras et al. 2022, table 1) as diffusers' EDM schedulers have it."""
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise InputError(f"{key}.scheduler.prediction_type", config.prediction_type, "is unknown", "use epsilon")
    return {
        "parameterization": "edm",
        "sigma_data": config.sigma_data,
        "sigma_min": config.sigma_min,
        "sigma_max": config.sigma_max,
        "scaling": {"noise_factor": 0.25, "prediction": config.prediction_type},
    }


def _vp(scheduler: Any, key: str) -> dict[str, Any]:
    """DDPM with the folder's own betas; it is distilled from sigma 80, or from its largest level if that is lower."""
    config = scheduler.config
    other = ("trained_betas", "rescale_betas_zero_snr", "use_flow_sigmas")
    name = next((name for name in other if config.get(name) not in (None, False)), None)
    if name is not None:
        hint = "give a model with linear, scaled_linear or squaredcos_cap_v2 betas"
        raise InputError(f"{key}.scheduler.{name}", "...", "is not supported", hint)
    if config.prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise InputError(f"{key}.scheduler.prediction_type", config.prediction_type, "is unknown", "use epsilon")
    betas = {
        "betas": config.beta_schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "steps": config.num_train_timesteps,
    }
    try:
        schedule = DDPMSchedule(**betas)
    except (ValueError, TypeError) as error:
        raise InputError(f"{key}.scheduler", config.beta_schedule, str(error), "give usual betas") from None
    if not torch.allclose(schedule.alpha_bar, scheduler.alphas_cumprod, rtol=1e-5, atol=0):
        raise InputError(f"{key}.scheduler", config.beta_schedule, "gives other betas than expected", "report this")
    return {
        "parameterization": "vp",
        "sigma_data": 1.0,  # what "variance preserving" takes the data to have; no formula of ours uses it
        "sigma_min": schedule.sigma_min,
        "sigma_max": min(SIGMA_MAX, schedule.sigma_max),
        "scaling": {"prediction": config.prediction_type, "schedule": betas},
    }
