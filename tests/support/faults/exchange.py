"""Bugs of models that come from elsewhere or go there."""

from __future__ import annotations

import torch

import support
from cdmem.diffusion import ddpm, preconditioning
from cdmem.models import export, model_card
from cdmem.training import student
from support.faults.frame import EDM, VP, patch, plant, scalings, slip


def ones(_, s):
    return torch.ones_like(s)


plant(
    support.check_imported_ddpm,
    "v_prediction",
    v_with_the_sign_of_edm=scalings(VP, "denoiser", c_out=lambda _, s: s / (1 + s**2).sqrt()),
    v_read_as_epsilon=scalings(VP, "denoiser", c_skip=ones, c_out=lambda _, s: -s),
)
plant(
    support.check_imported_ddpm,
    "sample",
    sample_read_as_epsilon=scalings(VP, "denoiser", c_skip=ones, c_out=lambda _, s: -s),
)
plant(
    support.check_imported_ddpm,
    "epsilon",
    "scaled_linear",
    the_folders_betas_ignored=patch(preconditioning, "DDPMSchedule", lambda _: lambda **schedule: None),
)
plant(
    support.check_imported_ddpm,
    "epsilon",
    ddpm_input_not_scaled=scalings(VP, "denoiser", c_in=ones),
    ddpm_times_one_step_late=patch(ddpm.VPSchedule, "time", lambda real: lambda self, s: real(self, s) + 1),
)
plant(
    support.check_betas_are_theirs,
    "scaled_linear",
    scaled_linear_without_square=slip(ddpm.ddpm_betas, "dtype=torch.float32) ** 2", "dtype=torch.float32)"),
    scaled_linear_read_as_linear=slip(ddpm.ddpm_betas, 'kind == "linear"', '"linear" in kind'),
)
plant(
    support.check_betas_are_theirs,
    "squaredcos_cap_v2",
    cosine_betas_not_capped=slip(ddpm.ddpm_betas, "b / a, 0.999", "b / a, 1.0"),
)
plant(
    support.check_imported_edm,
    "epsilon",
    c_noise_of_cdmem_for_an_edm_folder=scalings(EDM, "denoiser", c_noise=lambda _, s: 250.0 * s.log()),
)
plant(
    support.check_imported_edm,
    "v_prediction",
    v_of_edm_with_the_sign_of_f=slip(EDM.__init__, "else -sigma_data", "else sigma_data"),
)
plant(
    support.check_imported_student,
    "edm",
    "v_prediction",
    student_of_v_with_another_sign=slip(EDM.consistency, "self.amplitude * shifted", "self.sigma_data * shifted"),
)
plant(
    support.check_imported_student,
    "vp",
    "v_prediction",
    student_of_v_without_boundary=scalings(VP, "consistency", c_out=lambda self, s: self.denoiser(s).c_out),
)
plant(
    support.check_imported_student,
    "vp",
    "sample",
    student_of_sample_forgets_its_input=scalings(VP, "consistency", c_skip=lambda self, s: self.denoiser(s).c_skip),
    student_that_never_leaves_its_input=scalings(VP, "consistency", c_skip=ones, c_out=lambda _, s: 0 * s),
)


def exported(change):
    """Wrong values in the scheduler of an exported folder."""
    return patch(export, "_scheduler", lambda real: lambda *a: (right := real(*a)) | change(right))


plant(
    support.check_exported_scheduler,
    exported_with_the_usual_sigma_data=exported(lambda _: {"sigma_data": 0.5}),
    exported_with_intervals_for_points=exported(lambda s: {"num_train_timesteps": s["num_train_timesteps"] - 1}),
    exported_with_clipping=exported(lambda _: {"clip_denoised": True}),
    exported_with_the_usual_sigma_max=exported(lambda _: {"sigma_max": 80.0}),
)
plant(
    support.check_card_is_about_these_weights,
    card_of_other_weights=slip(model_card.audit_rows, 'model["digest"] != digest', "False"),
)
plant(
    support.check_claim_is_said,
    claim_not_recorded=slip(student._check_teacher, ', training_set_status="claimed"', ""),
    claim_made_silently=patch(student, "rank_zero_only", lambda _: lambda function: lambda *a, **k: None),
    classes_of_an_imported_teacher_unchecked=slip(
        student._check_teacher, "record.num_classes != training_set.num_classes", "False"
    ),
)
