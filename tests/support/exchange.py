"""Statements about models that come from elsewhere or go there."""

from __future__ import annotations

from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from types import SimpleNamespace

import torch
from diffusers import CMStochasticIterativeScheduler, DDIMScheduler, DDPMScheduler, EDMEulerScheduler

from cdmem.diffusion import ddpm, noise, preconditioning
from cdmem.models import export
from cdmem.models import model_card as export_card
from cdmem.training import student
from cdmem.training.frozen_teacher import FrozenTeacher
from cdmem.training.record import ModelRecord
from support.parts import refused, rng

BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (1e-4, 0.02)}
STEPS = 500


def network(x, c_noise, labels=None):
    """Something that tells inputs and times apart."""
    return torch.sin(x + c_noise.reshape(-1, 1, 1, 1).double() / 100).float()


def imported(parameterization, prediction, betas="linear"):
    about = {"parameterization": parameterization, "sigma_data": 0.7, "sigma_min": 0.02}
    if parameterization == "edm":
        return preconditioning.make_scaling(about | {"scaling": {"noise_factor": 0.25, "prediction": prediction}})
    schedule = dict(zip(("betas", "beta_start", "beta_end", "steps"), (betas, *BETAS[betas], STEPS)))
    return preconditioning.make_scaling(about | {"scaling": {"prediction": prediction, "schedule": schedule}})


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs.to(ours.dtype), atol=2e-5 * float(theirs.abs().max()), rtol=0)


def check_imported_ddpm(prediction, betas="linear"):
    """D is the ``pred_original_sample`` of their own step, at levels from their own alphas_cumprod."""
    start, end = BETAS[betas]
    theirs = DDIMScheduler(STEPS, start, end, betas, prediction_type=prediction, clip_sample=False)
    theirs.set_timesteps(STEPS)
    denoiser = preconditioning.Denoiser(network, imported("vp", prediction, betas))
    for t in (0, 1, 7, 200, STEPS - 5):
        bar = theirs.alphas_cumprod[t].double()
        sigma = ((1 - bar) / bar).sqrt()
        x = torch.randn(2, 1, 4, 4, generator=rng(t)) * float((1 + sigma**2).sqrt())
        x_t = x / float((1 + sigma**2).sqrt())
        out = network(x_t, torch.full((2,), float(t)))
        same(denoiser(x, sigma.expand(2)), theirs.step(out, t, x_t).pred_original_sample)


def check_imported_edm(prediction):
    """D is their ``precondition_outputs``; the network is asked at ln(sigma) / 4."""
    theirs = EDMEulerScheduler(sigma_data=0.7, prediction_type=prediction)
    denoiser = preconditioning.Denoiser(network, imported("edm", prediction))
    for sigma in torch.tensor([0.02, 0.5, 3.0, 80.0]):
        x = torch.randn(2, 1, 4, 4, generator=rng()) * (1 + sigma)
        out = network(theirs.precondition_inputs(x, sigma), theirs.precondition_noise(sigma).expand(2))
        same(denoiser(x, sigma.expand(2)), theirs.precondition_outputs(x, out, sigma))


def check_imported_student(parameterization, prediction):
    """f is the identity at sigma_min to the bit, and D far from it; both ask the network alike."""
    scaling = imported(parameterization, prediction)
    function = preconditioning.ConsistencyFunction(network, scaling)
    x = torch.randn(2, 1, 4, 4, generator=rng())
    assert torch.equal(function(x, torch.full((2,), 0.02)), x)
    assert not torch.equal(function(x, torch.full((2,), 0.03)), x)
    far = torch.full((2,), 75.0)
    denoiser = preconditioning.Denoiser(network, scaling)
    torch.testing.assert_close(function(75 * x, far), denoiser(75 * x, far), rtol=1e-3, atol=0.05)
    a, b = scaling.consistency(far), scaling.denoiser(far)
    assert torch.equal(a.c_in, b.c_in) and torch.equal(a.c_noise, b.c_noise)


def check_betas_are_theirs(betas):
    """Bit for bit."""
    start, end = BETAS[betas]
    assert torch.equal(ddpm.ddpm_betas(betas, start, end, STEPS), DDPMScheduler(STEPS, start, end, betas).betas)


def check_exported_scheduler():
    """The consistency scheduler that is written has the student's own scalings, c_noise and grid, and clips nothing."""
    scaling = preconditioning.EDMScaling(0.37, 0.002)
    module = SimpleNamespace(raw=SimpleNamespace(scaling=scaling), sigma_min=0.002, sigma_max=60.0)
    module.record = SimpleNamespace(sampler={"points": 23})
    theirs = CMStochasticIterativeScheduler(**export._scheduler("consistency", module))
    assert not theirs.config.clip_denoised and theirs.init_noise_sigma == 60.0
    grid = noise.karras_sigmas(23, 0.002, 60.0)
    torch.testing.assert_close(theirs.sigmas, grid, rtol=1e-9, atol=1e-9)
    ours = scaling.consistency(grid)
    for mine, other in zip(ours[:2], theirs.get_scalings_for_boundary_condition(grid)):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.c_noise, theirs.timesteps, rtol=1e-9, atol=1e-6)


def check_card_is_about_these_weights():
    """Rows of other weights stay out of a model card."""
    row = {"method": "consistency", "nfe": 1, "samples": 9, "f_mem": {"value": 0.5, "ci95": [0.2, 0.8]}}
    summary = {"training_set": {"hash": "ab"}, "models": [row | {"digest": d} for d in ("one", "other", "one")]}
    assert len(export_card.audit_rows(summary, "one")) == 2 and not export_card.audit_rows(summary, "neither")


def check_claim_is_said():
    """The training set of an imported teacher is claimed: said aloud, recorded, and refused with other classes."""
    for classes, data, good in ((0, 10, True), (10, 10, True), (4, 10, False)):
        sampler = {"solver": "heun", "points": 18}
        record = ModelRecord("teacher", (1, 4, 4), classes, 0.5, 0.002, 80.0, "edm", {}, sampler, "raw")
        teacher = FrozenTeacher("folder", None, None, record, "ab")
        training_set = SimpleNamespace(shape=(1, 4, 4), num_classes=data, hash="cd" * 32)
        said = StringIO()
        with redirect_stdout(said):
            bad = refused(partial(student._check_teacher, teacher, training_set))
        assert bad == (not good)
        if good:
            assert (teacher.record.training_set, teacher.record.training_set_status) == ("cd" * 32, "claimed")
            assert said.getvalue().count("\n") == 1 and "does not record" in said.getvalue()
