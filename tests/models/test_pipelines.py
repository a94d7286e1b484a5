"""diffusers folders as generators: the same images as diffusers' own pipelines, seed by seed."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    UNet2DModel,
)

from cdmem.errors import InputError
from cdmem.models.pipelines import is_pipeline, load_pipeline
from support.folders import make_unet, saved

SEEDS = [3, 1_000_004, 7]


@pytest.fixture(scope="module")
def unet():
    return make_unet()


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "steps"),
    [
        (DDPMPipeline, DDPMScheduler, 5),
        (DDIMPipeline, DDIMScheduler, 5),
        (ConsistencyModelPipeline, CMStochasticIterativeScheduler, 1),
        (ConsistencyModelPipeline, CMStochasticIterativeScheduler, 3),
    ],
)
def test_the_same_images_as_diffusers(tmp_path, unet, pipeline, scheduler, steps):
    folder = saved(tmp_path / "p", unet, scheduler(), pipeline)
    theirs = pipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    images = theirs(batch_size=3, generator=generators, num_inference_steps=steps, output_type="np").images
    (sampler,), name, digest = load_pipeline(folder, [steps])
    assert name == scheduler.__name__ and len(digest) == 64 and sampler.nfe == steps and is_pipeline(folder)
    ours = (sampler(SEEDS) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, torch.tensor(images), atol=1e-6, rtol=0)


def test_an_edm_scheduler_starts_at_its_sigma_max_and_each_seed_is_alone(tmp_path, unet):
    """With D(x) = c_skip x + c_out F and F = 0 the ODE is linear, so the end point is a known multiple of the noise."""
    zero = UNet2DModel.from_config(unet.config)
    for parameter in zero.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    folder = saved(tmp_path / "p", zero, EDMEulerScheduler())
    (sampler,), _, _ = load_pipeline(folder, [6])
    together, alone = sampler(SEEDS), torch.cat([sampler([s]) for s in SEEDS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(6)
    factor, data = 1.0, scheduler.config.sigma_data
    for hi, lo in zip(scheduler.sigmas[:-1].double(), scheduler.sigmas[1:].double()):
        skip = data**2 / (data**2 + hi**2)
        factor *= 1 + (lo - hi) * (1 - skip) / hi
    noise = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(s)) for s in SEEDS])
    torch.testing.assert_close(
        together.double(), noise.double() * scheduler.init_noise_sigma * factor, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "generator="),
        ({"scheduler": ["diffusers", "PNDMScheduler"]}, "generator.scheduler="),
        ({"scheduler": ["os", "system"]}, "generator.scheduler="),
        ({"unet": ["evil", "UNet2DModel"]}, "generator.unet="),
        ({"unet": ["diffusers", "AutoencoderKL"]}, "generator.unet="),
    ],
)
def test_other_pipelines_are_refused(tmp_path, unet, change, key):
    folder = saved(tmp_path / "p", unet)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(InputError) as error:
        load_pipeline(folder, None)
    assert str(error.value).startswith(key)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "null"])
def test_a_broken_index_is_one_line(tmp_path, text):
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(InputError) as error:
        load_pipeline(tmp_path, None)
    assert "\n" not in str(error.value)
