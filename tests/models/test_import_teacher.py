"""Teachers from diffusers folders: D is what their schedulers say, students are sound, bad folders run nothing."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch
import yaml
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
)

import support
from cdmem.audit.opening import stage_generators
from cdmem.diffusion.ddpm import DDPMSchedule
from cdmem.diffusion.preconditioning import EDMScaling, VPScaling
from cdmem.diffusion.sampling import NoiseSource, sample_ode
from cdmem.diffusion.solvers import euler_step
from cdmem.errors import InputError
from cdmem.models.load import load_model
from cdmem.networks.diffusers import DiffusersUNet
from cdmem.training.checkpoint import weights_digest
from support.folders import make_unet, saved
from support.stages import cdmem, stage

SEEDS = [3, 1_000_004, 7]
BETAS = {
    "linear": {},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"num_train_timesteps": 400},
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
EDMS = list(product((EDMEulerScheduler, EDMDPMSolverMultistepScheduler), PREDICTIONS[:2]))


@pytest.fixture(scope="module")
def unet():
    return make_unet()


def close(ours, theirs, rtol=1e-5):
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours / scale, theirs.to(ours.dtype) / scale, atol=rtol, rtol=0)


def noise(*shape):
    return torch.randn(*(shape or (3, 1, 8, 8)), generator=support.rng())


# ---- D is what their schedulers say ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("betas", "prediction"), list(product(BETAS, PREDICTIONS)))
@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_ddpm_denoisers(tmp_path, unet, scheduler, betas, prediction):
    """In their own variables x_t = x / sqrt(1 + sigma^2), by their ``step``, at levels from their alphas_cumprod."""
    made = scheduler(beta_schedule=betas, prediction_type=prediction, clip_sample=False, **BETAS[betas])
    module = load_model(saved(tmp_path / "p", unet, made, DDIMPipeline))
    bar = made.alphas_cumprod.double()
    last = len(bar) - 1
    made.set_timesteps(len(bar))
    with torch.no_grad():
        for t in (0, 1, 5, last // 2, last - 40):
            sigma = float(((1 - bar[t]) / bar[t]).sqrt())
            x = noise() * (1 + sigma**2) ** 0.5
            x_t = x / (1 + sigma**2) ** 0.5
            out = unet(x_t, torch.tensor(t)).sample
            ours = module.function()(x, torch.full((3,), sigma))
            close(ours, made.step(out, t, x_t).pred_original_sample)
            if prediction == "epsilon":
                close(ours, x - sigma * out)


@pytest.mark.parametrize("betas", BETAS)
def test_betas_are_theirs_to_the_bit(betas):
    theirs = DDPMScheduler(beta_schedule=betas, **BETAS[betas])
    c = theirs.config
    ours = DDPMSchedule(betas, c.beta_start, c.beta_end, c.num_train_timesteps)
    assert torch.equal(ours.alpha_bar, theirs.alphas_cumprod)
    times = torch.arange(c.num_train_timesteps)
    torch.testing.assert_close(ours.time(ours.sigma(times)), times.float(), atol=2e-3, rtol=0)
    assert ours.sigma_min == pytest.approx(float(((1 - theirs.alphas_cumprod[0]) / theirs.alphas_cumprod[0]) ** 0.5))


@pytest.mark.parametrize(("scheduler", "prediction"), EDMS)
def test_edm_denoisers(tmp_path, unet, scheduler, prediction):
    made = scheduler(sigma_data=0.7, sigma_min=0.01, sigma_max=50.0, prediction_type=prediction)
    module = load_model(saved(tmp_path / "p", unet, made))
    assert (module.sigma_min, module.sigma_max, module.record.sigma_data) == (0.01, 50.0, 0.7)
    with torch.no_grad():
        for sigma in torch.tensor([0.01, 0.3, 2.0, 50.0]):
            x = noise() * (0.49 + sigma**2).sqrt()
            out = unet(made.precondition_inputs(x, sigma), made.precondition_noise(sigma)).sample
            close(module.function()(x, sigma.expand(3)), made.precondition_outputs(x, out, sigma))


def test_their_edm_sampler_is_our_euler_walk(tmp_path, unet):
    made = EDMEulerScheduler(sigma_data=0.7)
    module = load_model(saved(tmp_path / "p", unet, made))
    made.set_timesteps(6)
    start = noise() * made.init_noise_sigma
    x = start
    with torch.no_grad():
        for t in made.timesteps:
            x = made.step(unet(made.scale_model_input(x, t), t).sample, t, x).prev_sample
    close(sample_ode(module.function(), start, made.sigmas.double(), euler_step), x)


def test_their_ddim_pipeline_is_our_euler_walk(tmp_path, unet):
    made = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    folder = saved(tmp_path / "p", unet, made, DDIMPipeline)
    pipe = DDIMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    draws = [torch.Generator().manual_seed(s) for s in SEEDS]
    images = pipe(3, generator=draws, num_inference_steps=10, output_type="np").images
    module = load_model(folder)
    made.set_timesteps(10)
    bar = made.alphas_cumprod[made.timesteps].double()
    levels = ((1 - bar) / bar).sqrt()
    x = NoiseSource(SEEDS, (1, 8, 8)).next().double() * (1 + levels[0] ** 2).sqrt()
    ours = sample_ode(module.function(), x, torch.cat([levels, torch.zeros(1)]), euler_step)
    shown = (ours / 2 + 0.5).clamp(0, 1)
    assert ((shown > 0) & (shown < 1)).float().mean() > 0.3
    torch.testing.assert_close(shown, torch.tensor(images).permute(0, 3, 1, 2), atol=1e-5, rtol=0)


def test_levels_beyond_the_folders_own_are_not_used(tmp_path, unet):
    """Latent-diffusion betas end at sigma 14.6; a student of such a teacher starts there, also when it is read back."""
    folder = saved(tmp_path / "p", unet, DDPMScheduler(beta_schedule="scaled_linear", **BETAS["scaled_linear"]))
    module = load_model(folder)
    top = float(((1 - (b := DDPMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod[-1])) / b).sqrt())
    assert module.sigma_max == pytest.approx(top, rel=1e-5) and top < 15
    student = distilled(folder)
    student.trainer.save_checkpoint(tmp_path / "student.ckpt")
    back = load_model(tmp_path / "student.ckpt")
    assert back.sigma_max == student.sigma_max == module.sigma_max
    assert torch.equal(back.sampler(2)(SEEDS), student.sampler(2)(SEEDS))
    with pytest.raises(InputError, match="mid_sigmas"):
        distilled(folder, mid_sigmas=[20.0])


# ---- distillation ---------------------------------------------------------------------------------------------------


def distilled(folder, steps=1, ckpt_path=None, data=None, **options):
    student = support.make_student(teacher=str(folder), network=None, **options)
    return support.fit(student, steps, data=data, ckpt_path=ckpt_path)


KINDS = {
    "ddpm": DDPMScheduler,
    "v": lambda: DDIMScheduler(prediction_type="v_prediction"),
    "sample": lambda: DDPMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2"),
    "edm": lambda: EDMEulerScheduler(sigma_data=0.7),
    "edm-v": lambda: EDMDPMSolverMultistepScheduler(prediction_type="v_prediction"),
}


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request, tmp_path_factory, unet):
    """Folder, student after two steps, its checkpoint."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("pair")
    folder = saved(home / "teacher", unet, KINDS[request.param]())
    student = distilled(folder, 2)
    student.trainer.save_checkpoint(home / "student.ckpt")
    return folder, student, home / "student.ckpt"


def test_the_student_is_sound_and_read_back(pair):
    """The identity at sigma_min, far from it the teacher's D; its network is fed as the teacher feeds it."""
    folder, student, file = pair
    x = noise() * 3
    with torch.no_grad():
        assert torch.equal(student.function()(x, torch.full((3,), student.sigma_min)), x)
        assert not torch.equal(student.function()(x, torch.full((3,), 2 * student.sigma_min)), x)
    sigma = torch.tensor([0.05, 0.7, 60.0])
    ours, theirs = student.raw.scaling.consistency(sigma), load_model(folder).raw.scaling.denoiser(sigma)
    assert torch.equal(ours.c_in, theirs.c_in) and torch.equal(ours.c_noise, theirs.c_noise)
    far = [torch.stack(scalings[:2])[:, -1] for scalings in (ours, theirs)]
    torch.testing.assert_close(*far, atol=1e-3, rtol=1e-3)
    back = load_model(file)
    assert torch.equal(back.sampler(2)(SEEDS), student.sampler(2)(SEEDS))
    assert back.raw.scaling.prediction == student.raw.scaling.prediction
    assert isinstance(back.network_config, DiffusersUNet) and "_name_or_path" not in back.network_config.config
    assert back.record.training_set_status == "claimed"
    assert back.record.training_set == support.make_data().training_set.hash


def test_resuming_gives_the_same_bits(pair, tmp_path):
    folder = pair[0]
    whole = distilled(folder, 4, lr_schedule="constant")
    half = distilled(folder, 2, lr_schedule="constant")
    half.trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = distilled(folder, 4, ckpt_path=str(tmp_path / "half.ckpt"), lr_schedule="constant")
    assert torch.equal(support.flat_weights(whole.raw.network), support.flat_weights(resumed.raw.network))
    assert not torch.equal(support.flat_weights(whole.raw.network), support.flat_weights(half.raw.network))


def test_the_training_set_is_claimed_aloud(tmp_path, unet, capsys):
    folder = saved(tmp_path / "p", unet, DDPMScheduler())
    student = distilled(folder)
    said = [line for line in capsys.readouterr().out.splitlines() if "does not record" in line]
    assert len(said) == 1 and str(folder) in said[0] and student.record.training_set[:12] in said[0]


def test_an_audit_finds_teacher_and_student_and_says_the_claim(pair, tmp_path, unet):
    folder, student, file = pair
    subjects, notes = stage_generators(file, None, "cpu", None, str(folder))
    assert [g.role for g in subjects] == ["teacher"] * 3 + ["student"] * 2 + ["ceiling"] * 2
    assert any("claimed" in note for note in notes)
    assert subjects[0].digest == student.teacher_digest == weights_digest(load_model(folder).raw.network)
    other = saved(tmp_path / "other", make_unet(seed=1), DDPMScheduler())
    with pytest.raises(InputError, match="not the teacher"):
        stage_generators(file, None, "cpu", None, str(other))


def test_an_exported_teacher_is_the_same_teacher(tmp_path):
    """Its hash is recorded, so other data are refused; the digest is that of the checkpoint."""
    from cdmem.cli.export import run_export
    from cdmem.networks.unet import UNet

    teacher = support.fit(support.make_teacher(network=UNet(channels=[8, 16], layers=1, norm_groups=4)), 1)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    teacher.trainer.save_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    run_export(["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    from_run, from_folder = (distilled(tmp_path / name, 2) for name in ("run", "out"))
    assert from_run.teacher_digest == from_folder.teacher_digest
    assert torch.equal(support.flat_weights(from_run.raw.network), support.flat_weights(from_folder.raw.network))
    assert from_folder.record.training_set_status == "recorded" and from_folder.raw.scaling.noise_factor == 250
    with pytest.raises(InputError, match="another training set"):
        distilled(tmp_path / "out", data=support.make_data(n=6))


def test_the_command_line_from_folder_to_audit_and_export(tmp_path, unet, capsys):
    """fit, fit again with ``--ckpt_path last``, another folder refused, audit against the folder, export."""
    folder = saved(tmp_path / "teacher", unet, DDPMScheduler())
    other = saved(tmp_path / "other", make_unet(seed=1), DDPMScheduler())
    config = stage("student", {"max_steps": 2}, {"held_out": 8}, lr_schedule="constant")
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(config))
    run, out, report = tmp_path / "run", tmp_path / "out", tmp_path / "audit.json"
    fit = ["fit", "--config", tmp_path / "student.yaml", "--run_dir", run, "--model.teacher"]
    assert cdmem(*fit, folder) == 0 and capsys.readouterr().out.count("does not record what it was trained on") == 1
    assert cdmem(*fit, other, "--ckpt_path", "last") == 2 and "is not the teacher" in capsys.readouterr().err
    assert cdmem(*fit, folder, "--ckpt_path", "last") == 0
    audit = ["audit", "--training_set", run, "--metrics", "memorization", "--samples", 8, "--quiet", "--generator"]
    assert cdmem(*audit, run, "--teacher", other) == 2
    assert cdmem(*audit, run, "--teacher", folder, "--out", report) == 0
    models, notes = (json.loads(report.read_text())[key] for key in ("models", "notes"))
    assert {m["role"] for m in models} == {"teacher", "student", "ceiling"}
    assert any("claimed" in note for note in notes)
    assert cdmem("export", "--checkpoint", run, "--out", out, "--audit", report) == 0
    assert "claimed" in (out / "README.md").read_text()
    assert cdmem("sample", "--checkpoint", out, "--samples", 4, "--out", tmp_path / "s.npz") == 0
    # The folder of a DDPM student is no pipeline; audited, it is a student with its teacher.
    capsys.readouterr()
    assert cdmem(*audit, out, "--teacher", folder) == 0
    said = capsys.readouterr().out
    assert "student" in said and "teacher (heun)" in said


def test_classes(tmp_path):
    folder = saved(tmp_path / "ten", make_unet(num_class_embeds=10), DDPMScheduler())
    student = distilled(folder)  # digits have ten classes
    student.trainer.save_checkpoint(tmp_path / "s.ckpt")
    assert student.num_classes == load_model(tmp_path / "s.ckpt").num_classes == 10
    with pytest.raises(InputError, match="4 classes"):
        distilled(saved(tmp_path / "four", make_unet(num_class_embeds=4), DDPMScheduler()))


def test_network_and_scheduler_side_by_side_are_enough(tmp_path, unet):
    unet.save_pretrained(tmp_path / "unet")
    EDMEulerScheduler(sigma_data=0.6).save_pretrained(tmp_path / "scheduler")
    assert isinstance(load_model(tmp_path).raw.scaling, EDMScaling)
    assert load_model(tmp_path).record.sigma_data == 0.6
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    assert isinstance(load_model(tmp_path).raw.scaling, VPScaling)
