"""Bugs of models that come from elsewhere or go there."""

from __future__ import annotations

import support
from cdmem.diffusion import ddpm, preconditioning
from cdmem.models import export
from cdmem.models import model_card as export_card
from cdmem.training import student
from support.faults.frame import EDM, VP, fault, slip


@fault(support.check_imported_ddpm, "v_prediction")
def v_with_the_sign_of_edm(m):
    slip(m, VP.denoiser, "-sigma / total.sqrt()", "sigma / total.sqrt()")


@fault(support.check_imported_ddpm, "v_prediction")
def v_read_as_epsilon(m):
    slip(m, VP.denoiser, '"v_prediction"', '"v"')


@fault(support.check_imported_ddpm, "sample")
def sample_read_as_epsilon(m):
    slip(m, VP.denoiser, '"sample"', '"x0"')


@fault(support.check_imported_ddpm, "epsilon", "scaled_linear")
def the_folders_betas_ignored(m):
    slip(m, preconditioning.make_scaling, "DDPMSchedule(**schedule) if schedule else None", "None")


@fault(support.check_imported_ddpm, "epsilon")
def ddpm_input_not_scaled(m):
    slip(m, VP.denoiser, "1 / total.sqrt(), self", "torch.ones_like(total), self")


@fault(support.check_imported_ddpm, "epsilon")
def ddpm_times_one_step_late(m):
    slip(m, ddpm.VPSchedule.time, "(left + fraction)", "(left + fraction + 1)")


@fault(support.check_betas_are_theirs, "scaled_linear")
def scaled_linear_without_square(m):
    slip(m, ddpm.ddpm_betas, "dtype=torch.float32) ** 2", "dtype=torch.float32)")


@fault(support.check_betas_are_theirs, "squaredcos_cap_v2")
def cosine_betas_not_capped(m):
    slip(m, ddpm.ddpm_betas, "b / a, 0.999", "b / a, 1.0")


@fault(support.check_betas_are_theirs, "scaled_linear")
def scaled_linear_read_as_linear(m):
    slip(m, ddpm.ddpm_betas, 'kind == "linear"', '"linear" in kind')


@fault(support.check_imported_edm, "epsilon")
def c_noise_of_cdmem_for_an_edm_folder(m):
    slip(m, EDM.denoiser, "self.noise_factor * sigma.log()", "250.0 * sigma.log()")


@fault(support.check_imported_edm, "v_prediction")
def v_of_edm_with_the_sign_of_f(m):
    slip(m, EDM.__init__, "else -sigma_data", "else sigma_data")


@fault(support.check_imported_student, "edm", "v_prediction")
def student_of_v_with_another_sign(m):
    slip(m, EDM.consistency, "self.amplitude * shifted", "self.sigma_data * shifted")


@fault(support.check_imported_student, "vp", "v_prediction")
def student_of_v_without_boundary(m):
    slip(m, VP.consistency, "share * base.c_out", "base.c_out")


@fault(support.check_imported_student, "vp", "sample")
def student_of_sample_forgets_its_input(m):
    slip(m, VP.consistency, "c_skip=1 - share * (1 - base.c_skip)", "c_skip=base.c_skip")


@fault(support.check_imported_student, "vp", "sample")
def student_that_never_leaves_its_input(m):
    slip(m, VP.consistency, "shifted / sigma", "shifted * 0")


@fault(support.check_exported_scheduler)
def exported_with_the_usual_sigma_data(m):
    slip(m, export._scheduler, '"sigma_data": scaling.sigma_data', '"sigma_data": 0.5')


@fault(support.check_exported_scheduler)
def exported_with_intervals_for_points(m):
    slip(m, export._scheduler, 'module.record.sampler["points"]', 'module.record.sampler["points"] - 1')


@fault(support.check_exported_scheduler)
def exported_with_clipping(m):
    slip(m, export._scheduler, '"clip_denoised": False', '"clip_denoised": True')


@fault(support.check_exported_scheduler)
def exported_with_the_usual_sigma_max(m):
    slip(m, export._scheduler, '"sigma_max": module.sigma_max', '"sigma_max": 80.0')


@fault(support.check_card_is_about_these_weights)
def card_of_other_weights(m):
    slip(m, export_card.audit_rows, 'model["digest"] != digest', "False")


@fault(support.check_claim_is_said)
def claim_not_recorded(m):
    slip(m, student._check_teacher, ', training_set_status="claimed"', "")


@fault(support.check_claim_is_said)
def claim_made_silently(m):
    slip(m, student._check_teacher, "rank_zero_only(print)", "(lambda *a, **k: None)")


@fault(support.check_claim_is_said)
def classes_of_an_imported_teacher_unchecked(m):
    slip(m, student._check_teacher, "record.num_classes != training_set.num_classes", "False")
