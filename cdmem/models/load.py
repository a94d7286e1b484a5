"""Models from folders: what ``cdmem export`` wrote, and diffusion models that others trained with diffusers.

A folder with ``cdmem.json`` is one of ours. Another one holds ``unet/`` and ``scheduler/``; its scheduler says what the
network's output means: DDPM and DDIM are epsilon (v, sample) networks on DDPM times, EDM schedulers are EDM's F with
c_noise = ln(sigma) / 4. Nothing in a folder chooses code, and no path is read from it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdmem.data.subset import UNRECORDED
from cdmem.diffusion.ddpm import DDPMSchedule
from cdmem.diffusion.noise import SIGMA_MAX
from cdmem.diffusion.preconditioning import Denoiser
from cdmem.errors import InputError
from cdmem.io.text import read_json
from cdmem.models.pipelines import INDEX, PipelineParts, read_parts
from cdmem.networks.diffusers import DiffusersUNet, load_diffusers, read_config
from cdmem.networks.unet import UNetNetwork
from cdmem.training.checkpoint import read_checkpoint, weights_digest
from cdmem.training.ema import EMA

if TYPE_CHECKING:
    from cdmem.training.module import CdmemModule

METADATA = "cdmem.json"
MAX_POINTS = 10_000
SAVE_AGAIN = "save the folder again"


def is_model_folder(path: str | Path) -> bool:
    """Whether a folder holds a model that :func:`load_folder` reads (a run folder does not)."""
    path = Path(path)
    return path.is_dir() and any((path / name).is_file() for name in (METADATA, INDEX, "unet/config.json"))


def read_record(path: str | Path, key: str = "checkpoint") -> dict[str, Any]:
    """What a checkpoint, run folder or exported folder says of itself.

    Raises:
        InputError: unreadable.
    """
    if not is_model_folder(path):
        return read_checkpoint(path, key)["cdmem"]
    return read_json(Path(path) / METADATA, key) if (Path(path) / METADATA).is_file() else {"role": "teacher"}


def load_folder(path: str | Path, key: str = "checkpoint") -> CdmemModule:
    """A teacher or student from a folder, on the CPU, in eval mode; its only weights are called ``raw``.

    Args:
        path: an exported folder, or one with a ``UNet2DModel`` and a scheduler of diffusers.
        key: the setting that named it.

    Raises:
        InputError: see the messages; KeyError, TypeError and ValueError mean a record that makes no sense.
    """
    path = Path(path)
    if (path / METADATA).is_file():
        record = read_json(path / METADATA, key)
        network, config = load_diffusers(path / "unet", key), read_config(path / "unet", key)
        if weights_digest(network) != record["digest"]:
            raise InputError(key, path, f"its weights are not those that {METADATA} describes", "export it again")
    else:
        parts = read_parts(path, key)
        network, config, record = parts.network, parts.config, _foreign_record(parts, path, key)
    module = _module(record, network, config)
    _try(module, path, key)
    return module


# ---- other people's folders -----------------------------------------------------------------------------------------


def _foreign_record(parts: PipelineParts, path: Path, key: str) -> dict[str, Any]:
    """What :data:`METADATA` would say of a diffusers folder."""
    settings = {"time_embedding_type": "positional", "class_embed_type": None} | parts.config.config
    if settings["time_embedding_type"] != "positional":
        problem = "cannot be asked at noise levels between its time steps"
        raise InputError(f"{key}.unet.time_embedding_type", settings["time_embedding_type"], problem, "use positional")
    if settings["class_embed_type"] is not None:
        raise InputError(
            f"{key}.unet.class_embed_type", settings["class_embed_type"], "is not supported", "use num_class_embeds"
        )
    inputs, outputs = settings.get("in_channels", 3), settings.get("out_channels", 3)
    if inputs != outputs:
        problem = f"the network has {inputs} input channels (a learned variance has no place in the ODE)"
        raise InputError(f"{key}.unet.out_channels", outputs, problem, "give a network of fixed variance")
    if parts.name.startswith("EDM"):
        about = _edm(parts.scheduler.config, key)
    elif parts.name in ("DDPMScheduler", "DDIMScheduler"):
        about = _vp(parts.scheduler, key)
    else:
        problem = "is a consistency model, which has no ODE to distil"
        raise InputError(key, path, problem, "give the folder of a diffusion model")
    return {
        "role": "teacher",
        "step": None,
        "training_set": {"hash": UNRECORDED},
        "sampler": {"solver": "heun", "points": 18},
        "sampling_seed": 0,
        **about,
    }


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
    if config.trained_betas is not None or config.get("rescale_betas_zero_snr"):
        name = "trained_betas" if config.trained_betas is not None else "rescale_betas_zero_snr"
        mend = "give a model with linear, scaled_linear or squaredcos_cap_v2 betas"
        raise InputError(f"{key}.scheduler.{name}", "...", "is not supported", mend)
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


# ---- record and network to module -----------------------------------------------------------------------------------


def _module(record: dict[str, Any], network: UNetNetwork, config: DiffusersUNet) -> CdmemModule:
    from cdmem.training.student import ConsistencyStudent
    from cdmem.training.teacher import DiffusionTeacher

    levels = {name: float(record[name]) for name in ("sigma_data", "sigma_min", "sigma_max")}
    if not all(math.isfinite(v) and v > 0 for v in levels.values()) or levels["sigma_min"] >= levels["sigma_max"]:
        raise ValueError(f"noise levels {levels}")
    null = record.get("null_label", False)
    if null not in (False, True) or (null and config.num_classes < 2):
        raise ValueError(f"null_label {null}")
    about = {
        "shape": list(config.shape),
        "num_classes": config.num_classes - bool(null),
        "sigma_data": levels["sigma_data"],
        "sigma_min": levels["sigma_min"],
        "parameterization": record["parameterization"],
        "training_set": str(record["training_set"]["hash"]),
    }
    status = record["training_set"].get("status")
    about |= {"training_set_status": str(status)} if status not in (None, "recorded") else {}
    about |= {"null_label": True} if null else {}
    about |= {"scaling": record["scaling"]} if record.get("scaling") else {}
    sampler = record["sampler"]
    common = {
        "network": config,
        "ema_half_lives": [1],
        "weights": "raw",
        "sampling_seed": int(record["sampling_seed"]),
    }
    if record["role"] == "teacher":
        if not 2 <= int(sampler["points"]) <= MAX_POINTS or sampler["solver"] not in ("heun", "euler"):
            raise ValueError(f"sampler {sampler}")
        teacher = DiffusionTeacher(
            parameterization=record["parameterization"],
            sampler_points=int(sampler["points"]),
            solver=sampler["solver"],
            **common,
        )
        teacher.assemble(about, network, Denoiser)
        module: CdmemModule = teacher
    elif record["role"] == "student":
        student = ConsistencyStudent(
            objective="training", initialize="scratch", mid_sigmas=sampler["mid_sigmas"][:MAX_POINTS], mu=0.0, **common
        )
        student.sigma_max = levels["sigma_max"]
        student.assemble_student(about, network)
        module = student
    else:
        raise ValueError(f"role {record['role']}")
    module.sigma_max = levels["sigma_max"]
    module.ema, module.ema_half_lives = EMA(network, []), []  # a folder holds one set of weights
    module.step = record["step"] if isinstance(record["step"], int) else None
    return module.eval()


@torch.no_grad()
def _try(module: CdmemModule, path: Path, key: str) -> None:
    """One call at both ends of the noise range: a network that cannot be used is better found before training."""
    x = torch.randn(2, *module.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([module.sigma_max, module.sigma_min])
    labels = torch.zeros(2, dtype=torch.int64) if module.num_classes else None
    try:
        out = module.function()(x * sigma.reshape(-1, 1, 1, 1), sigma, labels)
        problem = None if out.shape == x.shape and bool(out.isfinite().all()) else "gives no finite images"
    except Exception as error:
        problem = f"cannot be run ({' '.join(str(error).split())[:120]})"
    if problem:
        raise InputError(key, path, problem, SAVE_AGAIN)
