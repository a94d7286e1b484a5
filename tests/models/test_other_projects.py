"""Models that others left in other forms: bare networks, half precision, other samplers, and files that are refused."""

from __future__ import annotations

import pickle
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from cdmem.audit.opening import open_generators
from cdmem.audit.settings import AuditSettings
from cdmem.errors import InputError
from cdmem.models.load import load_model
from support.folders import make_unet, saved
from support.parts import make_data, rng
from support.stages import cdmem, stage

SAMPLERS = [
    PNDMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
]
X = torch.randn(3, 1, 8, 8, generator=rng())


@pytest.fixture(scope="module")
def unet():
    return make_unet()


def images(module, sigma):
    with torch.no_grad():
        return module.function()(X * sigma, torch.full((3,), sigma))


# ---- schedulers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.__name__)
def test_the_network_of_another_sampler_is_the_same_ddpm(tmp_path, unet, sampler, prediction, capsys):
    """D does not depend on who took its steps; that they are not taken is said."""
    betas = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": prediction}
    theirs = load_model(saved(tmp_path / "a", unet, sampler(**betas), DDPMPipeline))
    said = capsys.readouterr().out
    assert f"a DDPM by the betas of its {sampler.__name__}; cdmem samples it by its own ODE solver" in said
    usual = load_model(saved(tmp_path / "b", unet, DDPMScheduler(**betas)))
    for sigma in (0.05, 1.0, 40.0):
        assert torch.equal(images(theirs, sigma), images(usual, sigma))


def test_such_a_pipeline_is_audited_as_a_teacher(tmp_path, unet):
    folder = saved(tmp_path / "p", unet, PNDMScheduler())
    generators, _, _ = open_generators(folder, make_data().training_set, AuditSettings(nfe=[3]))
    assert [(g.role, g.method) for g in generators] == [("teacher", "heun")] * 2


@pytest.mark.parametrize("change", [{"trained_betas": [0.1] * 10}, {"rescale_betas_zero_snr": True}])
def test_other_noise_is_still_refused(tmp_path, unet, change):
    with pytest.raises(InputError, match=next(iter(change))):
        load_model(saved(tmp_path / "p", unet, EulerDiscreteScheduler(**change)))


# ---- networks without a pipeline ------------------------------------------------------------------------------------


def place(folder, unet, where, scheduler=None, at="scheduler"):
    unet.save_pretrained(folder / where)
    if scheduler is not None:
        scheduler.save_pretrained(folder / at)
    return folder


@pytest.mark.parametrize(
    ("where", "at", "given"),
    [
        (".", "scheduler", "."),  # the network at the top, its scheduler beside its files
        (".", ".", "."),
        ("unet_ema", "scheduler", "."),
        ("unet", "scheduler", "unet"),  # the network's own folder is named
        ("unet_ema", "scheduler", "unet_ema"),
        ("checkpoint-500/unet_ema", "scheduler", "checkpoint-500/unet_ema"),  # as a training script leaves it
        ("checkpoint-500/unet_ema", "scheduler", "checkpoint-500"),
    ],
)
def test_a_network_finds_its_scheduler(tmp_path, unet, where, at, given):
    place(tmp_path, unet, where, EDMEulerScheduler(sigma_data=0.6), at)
    usual = load_model(saved(tmp_path / "usual", unet, EDMEulerScheduler(sigma_data=0.6)))
    found = load_model(tmp_path / given)
    assert found.record.sigma_data == 0.6 and torch.equal(images(found, 1.0), images(usual, 1.0))


@pytest.mark.parametrize(("said", "scheduler"), [("vp", DDPMScheduler()), ("edm", EDMEulerScheduler())])
def test_a_network_without_a_scheduler_is_what_the_user_says(tmp_path, unet, said, scheduler, capsys):
    place(tmp_path / "bare", unet, ".")
    found = load_model(tmp_path / "bare", parameterization=said)
    assert "as was said" in capsys.readouterr().out
    assert torch.equal(images(found, 1.0), images(load_model(saved(tmp_path / "p", unet, scheduler)), 1.0))


def test_what_is_missing_or_needless_is_one_line(tmp_path, unet):
    bare = place(tmp_path / "bare", unet, ".")
    for key, option in (
        ("model.teacher", "--model.teacher_parameterization vp"),
        ("generator", "--parameterization vp"),
    ):
        with pytest.raises(InputError) as error:
            load_model(bare, key)
        assert str(error.value).startswith(f"{key}={bare}: is a network without a scheduler")
        assert option in str(error.value) and "scheduler/scheduler_config.json" in str(error.value)
    with pytest.raises(InputError, match="says what it is"):
        load_model(saved(tmp_path / "p", unet), parameterization="vp")


def test_a_bare_network_through_the_commands(tmp_path, unet, capsys):
    """Distilled, audited with its student and alone, sampled; each time only with the word that is missing."""
    bare, run = place(tmp_path / "bare", unet, "."), tmp_path / "run"
    config = stage("student", {"max_steps": 1}, {"held_out": 8}, lr_schedule="constant")
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(config))
    fit = ["fit", "--config", tmp_path / "student.yaml", "--run_dir", run, "--model.teacher", bare]
    assert cdmem(*fit) == 2 and "--model.teacher_parameterization vp" in capsys.readouterr().err
    assert cdmem(*fit, "--model.teacher_parameterization", "vp") == 0
    audit = ["audit", "--training_set", run, "--metrics", "memorization", "--samples", 4, "--quiet", "--generator"]
    assert cdmem(*audit, bare) == 2 and "--parameterization vp" in capsys.readouterr().err
    assert cdmem(*audit, bare, "--parameterization", "vp") == 0
    assert cdmem(*audit, run, "--teacher", bare, "--parameterization", "vp") == 0
    assert "teacher (heun)" in capsys.readouterr().out
    sample = ["sample", "--checkpoint", bare, "--samples", 2, "--nfe", 3, "--parameterization", "edm"]
    assert cdmem(*sample, "--out", tmp_path / "s.npz") == 0


# ---- half precision -------------------------------------------------------------------------------------------------


def test_half_precision_is_read_as_float32_and_said(tmp_path, capsys):
    half = make_unet().half()
    DDPMPipeline(half, DDPMScheduler()).save_pretrained(tmp_path / "p", variant="fp16")
    assert (tmp_path / "p/unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    module = load_model(tmp_path / "p")
    assert "its fp16 weights are read as float32" in capsys.readouterr().out
    weights = dict(module.raw.network.unet.named_parameters())
    assert all(p.dtype == torch.float32 for p in weights.values())
    assert all(torch.equal(weights[name], p.float()) for name, p in half.named_parameters())
    _, _, notes = open_generators(tmp_path / "p", make_data().training_set, AuditSettings(nfe=[3]))
    assert any("fp16" in note for note in notes)


# ---- files that are refused -----------------------------------------------------------------------------------------


class Mine:
    """Stands for a class that another program pickled."""


def nvlabs(file: Path) -> None:
    """A pickle with the names of NVlabs' persistence; opened, it would call them."""
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = lambda meta: sys.exit("unpickled")
    module._reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    module._reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    parent = types.ModuleType("torch_utils")
    parent.persistence = module
    sys.modules |= {"torch_utils": parent, "torch_utils.persistence": module}
    try:

        class Ema:
            def __reduce__(self):
                return module._reconstruct_persistent_obj, ({"class_name": "EDMPrecond", "module_src": "..."},)

        file.write_bytes(pickle.dumps({"ema": Ema()}))
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


def openai(old: bool):
    names = ["time_embed.0.weight", "input_blocks.0.0.weight", "out.2.bias"]

    def write(file: Path) -> None:
        torch.save({n: torch.zeros(2) for n in names}, file, _use_new_zipfile_serialization=not old)

    return write


def unet_bin(file: Path) -> None:
    torch.save(make_unet().state_dict(), file)


def lightning(file: Path) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.0", "epoch": 1}, file)


STRANGERS = {
    "network-snapshot.pkl": (nvlabs, "is a pickle of NVlabs' EDM (EDMPrecond)", ["generate.py --outdir"]),
    "edm_cat256_ema.pt": (openai(False), "is a state dict of OpenAI's", ["image_sample.py"]),
    "cd_cat256_l2.pt": (openai(False), "is a state dict of OpenAI's", ["convert_consistency_to_diffusers.py"]),
    "ct_imagenet64.pt": (openai(True), "is a state dict of OpenAI's", ["--unet_path ct_imagenet64.pt --dump_path"]),
    "diffusion_pytorch_model.bin": (unet_bin, "of a diffusers UNet2DModel", ["safe_serialization=True"]),
    "epoch=3.ckpt": (lightning, "of another program", ["diffusers folder"]),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_file_of_another_project_says_what_it_is(tmp_path, name, capsys):
    write, about, hints = STRANGERS[name]
    file = tmp_path / name
    write(file)
    shutil.copy(file, other := tmp_path / f"renamed{file.suffix}")  # the content tells, not the name
    np.savez(tmp_path / "t.npz", images=np.zeros((4, 8, 8), np.uint8))
    for path in (file, other):
        assert cdmem("audit", "--generator", path, "--training_set", tmp_path / "t.npz") == 2
        line = capsys.readouterr().err
        assert line.startswith(f"cdmem: error: generator={path}: ") and about in line and line.count("\n") == 1
        assert path != file or all(hint in line for hint in hints)
    with pytest.raises(InputError) as error:
        load_model(file, "model.teacher")
    assert error.value.key == "model.teacher" and about in error.value.problem
    assert "convert_consistency" not in str(error.value)  # a consistency model is nobody's teacher


def test_our_own_files_and_others_pass(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        (tmp_path / "torn.ckpt").write_bytes(b"PK\x03\x04torn")
        load_model(tmp_path / "torn.ckpt")
