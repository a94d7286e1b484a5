"""Bugs of preconditioning, grids, solver and loss."""

from __future__ import annotations

import torch

import support
from cdmem.diffusion import losses, noise, preconditioning, sampling, solvers
from cdmem.diffusion import step_noise as randomness
from cdmem.distillation import ConsistencyDistillation, ConsistencyTraining, consistency
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher
from support.faults.frame import EDM, VP, fault, patch, plant, scalings, slip

# ---- preconditioning ------------------------------------------------------------------------------------------------


def shifted_c_in(self, s):
    return 1 / ((s - self.sigma_min) ** 2 + self.sigma_data**2).sqrt()


plant(
    support.check_boundary,
    support.edm,
    boundary_shift_missing=patch(EDM, "consistency", lambda _: EDM.denoiser),
    boundary_shifted_only_in_c_skip=scalings(EDM, "consistency", c_out=lambda self, s: self.denoiser(s).c_out),
)
plant(support.check_boundary, support.vp, boundary_shift_missing_vp=patch(VP, "consistency", lambda _: VP.denoiser))
plant(
    support.check_edm_identities,
    c_out_without_sigma_data=scalings(EDM, "denoiser", c_out=lambda self, s: s / (s**2 + self.sigma_data**2).sqrt()),
    c_in_without_root=scalings(EDM, "denoiser", c_in=lambda self, s: 1 / (s**2 + self.sigma_data**2)),
    loss_weight_without_root_of_sigma=patch(
        EDM, "loss_weight", lambda _: lambda self, s: (s**2 + self.sigma_data**2) / (s * self.sigma_data)
    ),
)
plant(
    support.check_shared_inputs,
    support.edm,
    c_noise_of_the_student_in_other_units=scalings(EDM, "consistency", c_noise=lambda _, s: 0.25 * s.log()),
    c_in_of_the_student_shifted=scalings(EDM, "consistency", c_in=shifted_c_in),
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


def without_last(real):
    def wrong(*a):
        p = real(*a)
        p[-1] = 0
        return p

    return wrong


plant(
    support.check_every_interval_is_trained,
    last_interval_never_drawn=patch(consistency, "interval_probabilities", without_last),
    first_interval_never_drawn=patch(
        randomness.StepNoise, "choice", lambda real: lambda self, p: real(self, p[1:]) + 1
    ),
)


@fault(support.check_step_follows_the_teacher)
def solver_steps_up(m):
    step = solvers.heun_step
    m.setitem(consistency.SOLVERS, "heun", lambda d, x, hi, lo, labels=None: step(d, x, hi, hi + (hi - lo), labels))


def fresh_noise(self, teacher, batch, x, hi, lo):
    return sampling.renoise(batch.x0, lo, torch.randn_like(x))


plant(
    support.check_step_follows_the_teacher,
    # What consistency training does, called distillation.
    clean_image_renoised_instead_of_the_ode=patch(
        ConsistencyDistillation, "step_down", lambda _: ConsistencyTraining.step_down
    ),
    fresh_noise_at_the_lower_level=patch(ConsistencyDistillation, "step_down", lambda _: fresh_noise),
)
plant(
    support.check_pair_of_consistency_training,
    noise_of_half_the_level=patch(consistency, "renoise", lambda real: lambda x0, s, eps: real(x0, s / 2, eps)),
    fresh_noise_in_consistency_training=patch(
        consistency,
        "training_step_solver",
        lambda _: lambda x0, x, hi, lo: sampling.renoise(x0, lo, torch.randn_like(x0)),
    ),
)


def heun_at_the_old_level(d, x, hi, lo, labels=None):
    h = noise.expand(lo - hi, x)
    first = solvers.slope(d, x, hi, labels)
    return x + h * (first + solvers.slope(d, x + h * first, hi, labels)) / 2


plant(
    support.check_solver_order,
    "heun",
    heun_without_its_second_slope=patch(solvers, "heun_step", lambda _: solvers.euler_step),
    heun_evaluated_at_the_old_level=patch(solvers, "heun_step", lambda _: heun_at_the_old_level),
)


def teacher_for_target(real):
    def wrong(self, function, seed):
        teacher = self.teacher_denoiser
        return real(self, function, seed) if function is self.raw else lambda x, s, labels: teacher(x, s).float()

    return wrong


def loss(make, where=losses):
    return patch(where, "consistency_loss", make)


plant(
    support.check_target_is_a_consistency_function,
    goal_is_the_teachers_denoiser=patch(Student, "_seeded", teacher_for_target),
    target_in_the_denoisers_form=slip(Student.loss, "type(self.raw)(self.target", "Denoiser(self.target"),
    goal_at_the_upper_level=loss(
        lambda real: lambda f, g, xh, xl, hi, lo, *r: real(f, g, xh, xl, hi, hi, *r), consistency
    ),
)
plant(
    support.check_student_sees_the_noisier_image,
    student_and_target_swapped=loss(lambda real: lambda f, g, xh, xl, hi, lo, *r: real(f, g, xl, xh, lo, hi, *r)),
    gradient_through_the_goal=loss(lambda _: lambda f, g, xh, xl, hi, lo, d, *r: d(f(xh, hi, None), g(xl, lo, None))),
)
plant(
    support.check_zero_loss,
    "heun",
    loss_compares_with_the_clean_image=loss(lambda _: lambda f, g, xh, xl, hi, lo, d, *r: d(f(xh, hi, None), xl)),
)
plant(
    support.check_huber_on_the_vector,
    huber_per_pixel=patch(
        losses.PseudoHuber,
        "__call__",
        lambda _: lambda self, a, b: (((a - b) ** 2 + self.c**2).sqrt() - self.c).flatten(1).mean(1),
    ),
    huber_of_the_mean_square=patch(
        losses.PseudoHuber,
        "__call__",
        lambda _: lambda self, a, b: ((a - b).flatten(1).square().mean(1) + self.c**2).sqrt() - self.c,
    ),
)
plant(
    support.check_no_clamp,
    student_clamped_in_the_loss=loss(lambda real: lambda f, *r: real(lambda *a: f(*a).clamp(-1, 1), *r)),
    loss_summed_over_pixels=patch(
        losses.L2, "__call__", lambda _: lambda self, a, b: (a - b).flatten(1).square().sum(1)
    ),
)
