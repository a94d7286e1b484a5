"""Bugs of preconditioning, grids, solver and loss."""

from __future__ import annotations

import torch

import support
from cdmem.diffusion import losses, noise, preconditioning, sampling, solvers
from cdmem.diffusion.step_noise import StepNoise
from cdmem.distillation import ConsistencyDistillation, ConsistencyTraining, TrajectoryRegression, consistency
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher
from support.faults.frame import EDM, VP, patch, plant, slip

# ---- preconditioning ------------------------------------------------------------------------------------------------


plant(
    support.check_boundary,
    support.edm,
    boundary_shift_missing=slip(EDM.consistency, "sigma - self.sigma_min", "sigma"),
    boundary_shifted_only_in_c_skip=slip(EDM.consistency, "self.amplitude * shifted", "self.amplitude * sigma"),
)
plant(
    support.check_boundary,
    support.vp,
    boundary_shift_missing_vp=slip(VP.consistency, "sigma - self.sigma_min", "sigma"),
)
plant(
    support.check_edm_identities,
    c_out_without_sigma_data=slip(EDM.denoiser, "sigma * self.amplitude / total", "sigma / total"),
    c_in_without_root=slip(EDM.denoiser, "1 / total", "1 / total**2"),
    loss_weight_without_root_of_sigma=slip(EDM.loss_weight, "self.sigma_data) ** 2", "self.sigma_data)"),
)
plant(
    support.check_shared_inputs,
    support.edm,
    c_noise_of_the_student_in_other_units=slip(EDM.consistency, "base.c_noise", "0.25 * sigma.log()"),
    c_in_of_the_student_shifted=slip(EDM.consistency, "base.c_in", "1 / (shifted**2 + d2).sqrt()"),
)


def low_precision_forward(self, x, sigma, labels=None):
    c_skip, c_out, c_in, c_noise = self.scalings(sigma)
    raw = self.network(noise.expand(c_in, x) * x, c_noise, labels)
    cast = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
    return (noise.expand(c_skip, x).to(cast) * x.to(cast) + noise.expand(c_out, x).to(cast) * raw.to(cast)).float()


def low_precision_noise(x0, s, eps):
    return (x0.bfloat16() + noise.expand(s, x0).bfloat16() * eps.bfloat16()).float()


in_bfloat16 = patch(preconditioning.Denoiser, "forward", lambda _: low_precision_forward)
plant(support.check_boundary, support.edm, True, state_in_bfloat16=in_bfloat16)
plant(
    support.check_network_only_in_low_precision,
    preconditioning_in_bfloat16=in_bfloat16,
    noise_added_in_bfloat16=patch(sampling, "renoise", lambda _: low_precision_noise),
)
plant(
    support.check_nan_is_visible,
    nan_replaced_in_the_output=patch(
        preconditioning.Denoiser, "forward", lambda real: lambda self, *a: torch.nan_to_num(real(self, *a))
    ),
    nan_left_out_of_the_loss=patch(consistency, "consistency_loss", lambda real: lambda *a: real(*a).nan_to_num()),
)

# ---- regression -----------------------------------------------------------------------------------------------------

pairs = TrajectoryRegression.teacher_part
plant(
    support.check_pairs_of_regression,
    onto_the_end_of_another_trajectory=slip(pairs, "ends[row]", "ends.roll(1, 0)[row]"),
    sigma_max_left_to_chance=slip(pairs, "torch.zeros_like(others[:, :1])", "others[:, :1] - 1"),
    trajectories_from_unit_noise=slip(pairs, "at.sigma_max * eps", "eps"),
    pairs_of_other_levels=slip(pairs, "states[level, row]", "states[level.roll(1), row]"),
)

# ---- grid, solver, target -------------------------------------------------------------------------------------------


def rounded(points, low=0.002, high=80.0, rho=7.0):
    ramp = torch.linspace(0, 1, points, dtype=torch.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


plant(
    support.check_grid,
    points_taken_for_intervals=patch(noise, "karras_sigmas", lambda real: lambda points, *a: real(points + 1, *a)),
    ends_only_to_rounding=patch(noise, "karras_sigmas", lambda _: rounded),
)
plant(
    support.check_law_of_the_noise,
    "edm",
    spread_of_the_noise_for_its_variance=slip(
        DiffusionTeacher.sigma, "self.noise.p_std * normal", "self.noise.p_std**0.5 * normal"
    ),
    noise_in_decimal_logarithms=slip(
        DiffusionTeacher.sigma,
        "(self.noise.p_mean + self.noise.p_std * normal).exp()",
        "10 ** (self.noise.p_mean + self.noise.p_std * normal)",
    ),
)
plant(
    support.check_law_of_the_noise,
    "vp",
    ddpm_times_gaussian=slip(DiffusionTeacher.sigma, "torch.special.ndtr(normal)", "(normal * 0.25 + 0.5).clamp(0, 1)"),
)


plant(
    support.check_every_interval_is_trained,
    last_interval_never_drawn=slip(StepNoise.choice, "multinomial(weights,", "multinomial(weights[:-1],"),
    first_interval_never_drawn=slip(StepNoise.choice, "torch.multinomial(weights", "1 + torch.multinomial(weights[1:]"),
)


def fresh_noise(self, teacher, batch, x, hi, lo):
    return sampling.renoise(batch.x0, lo, torch.randn_like(x))


plant(
    support.check_step_follows_the_teacher,
    # What consistency training does, called distillation.
    clean_image_renoised_instead_of_the_ode=patch(
        ConsistencyDistillation, "step_down", lambda _: ConsistencyTraining.step_down
    ),
    fresh_noise_at_the_lower_level=patch(ConsistencyDistillation, "step_down", lambda _: fresh_noise),
    solver_steps_up=slip(ConsistencyDistillation.step_down, "x_hi, hi, lo, batch", "x_hi, hi, 2 * hi - lo, batch"),
)
plant(
    support.check_pair_of_consistency_training,
    noise_of_half_the_level=slip(ConsistencyTraining.teacher_part, "renoise(batch.x0, hi", "renoise(batch.x0, hi / 2"),
    fresh_noise_in_consistency_training=patch(ConsistencyTraining, "step_down", lambda _: fresh_noise),
)


plant(
    support.check_solver_order,
    "heun",
    heun_without_its_second_slope=slip(solvers.heun_step, "(d + d_next) / 2", "d"),
    heun_evaluated_at_the_old_level=slip(solvers.heun_step, "euler, safe_next, labels", "euler, sigma, labels"),
)


def loss(make):
    return patch(losses, "consistency_loss", make)


plant(
    support.check_target_is_a_consistency_function,
    goal_is_the_teachers_denoiser=slip(
        Student.student_part, "self._seeded(target, seed)", "lambda x, s, labels: self.teacher_denoiser(x, s).float()"
    ),
    target_in_the_denoisers_form=slip(Student.student_part, "type(self.raw)(self.target", "Denoiser(self.target"),
    goal_at_the_upper_level=slip(ConsistencyTraining.loss, "x_hi, x_lo, hi, lo, self", "x_hi, x_lo, hi, hi, self"),
)
plant(
    support.check_student_sees_the_noisier_image,
    student_and_target_swapped=loss(lambda real: lambda f, g, xh, xl, hi, lo, *r: real(f, g, xl, xh, lo, hi, *r)),
    gradient_through_the_goal=loss(lambda _: lambda f, g, xh, xl, hi, lo, d, *r: d(f(xh, hi, None), g(xl, lo, None))),
)
plant(
    support.check_zero_loss,
    "heun",
    loss_compares_with_the_lower_image=slip(losses.consistency_loss, "goal.detach()", "x_lo"),
)
plant(
    support.check_huber_on_the_vector,
    huber_per_pixel=slip(
        losses.PseudoHuber.__call__, "(delta.square().sum(1) + c**2).sqrt()", "(delta.square() + c**2).sqrt().mean(1)"
    ),
    huber_of_the_mean_square=slip(losses.PseudoHuber.__call__, "square().sum(1)", "square().mean(1)"),
)
plant(
    support.check_no_clamp,
    student_clamped_in_the_loss=slip(losses.consistency_loss, "sigma_hi, labels),", "sigma_hi, labels).clamp(-1, 1),"),
    loss_summed_over_pixels=slip(losses.L2.__call__, "mean(1)", "sum(1)"),
)
