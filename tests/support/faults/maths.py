"""Bugs of preconditioning, grids, solver and loss."""

from __future__ import annotations

import torch

import support
from cdmem.diffusion import losses, noise, preconditioning, sampling, solvers
from cdmem.diffusion import step_noise as randomness
from cdmem.distillation import ConsistencyDistillation, ConsistencyTraining, consistency
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher
from support.faults.frame import EDM, VP, fault, slip

# ---- preconditioning ------------------------------------------------------------------------------------------------


@fault(support.check_boundary, support.edm)
def boundary_shift_missing(m):
    m.setattr(EDM, "consistency", EDM.denoiser)


@fault(support.check_boundary, support.vp)
def boundary_shift_missing_vp(m):
    m.setattr(VP, "consistency", VP.denoiser)


@fault(support.check_boundary, support.edm)
def boundary_shifted_only_in_c_skip(m):
    real = EDM.consistency
    m.setattr(EDM, "consistency", lambda self, s: real(self, s)._replace(c_out=self.denoiser(s).c_out))


@fault(support.check_edm_identities)
def c_out_without_sigma_data(m):
    real = EDM.denoiser
    m.setattr(EDM, "denoiser", lambda self, s: real(self, s)._replace(c_out=s / (s**2 + self.sigma_data**2).sqrt()))


@fault(support.check_edm_identities)
def c_in_without_root(m):
    real = EDM.denoiser
    m.setattr(EDM, "denoiser", lambda self, s: real(self, s)._replace(c_in=1 / (s**2 + self.sigma_data**2)))


@fault(support.check_edm_identities)
def loss_weight_without_root_of_sigma(m):
    m.setattr(EDM, "loss_weight", lambda self, s: (s**2 + self.sigma_data**2) / (s * self.sigma_data))


@fault(support.check_shared_inputs, support.edm)
def c_noise_of_the_student_in_other_units(m):
    real = EDM.consistency
    m.setattr(EDM, "consistency", lambda self, s: real(self, s)._replace(c_noise=0.25 * s.log()))


@fault(support.check_shared_inputs, support.edm)
def c_in_of_the_student_shifted(m):
    real = EDM.consistency

    def shifted(self, s):
        return real(self, s)._replace(c_in=1 / ((s - self.sigma_min) ** 2 + self.sigma_data**2).sqrt())

    m.setattr(EDM, "consistency", shifted)


def low_precision_forward(self, x, sigma, labels=None):
    c_skip, c_out, c_in, c_noise = self.scalings(sigma)
    raw = self.network(noise.expand(c_in, x) * x, c_noise, labels)
    cast = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
    return (noise.expand(c_skip, x).to(cast) * x.to(cast) + noise.expand(c_out, x).to(cast) * raw.to(cast)).float()


@fault(support.check_boundary, support.edm, True)
def state_in_bfloat16(m):
    m.setattr(preconditioning.Denoiser, "forward", low_precision_forward)


@fault(support.check_network_only_in_low_precision)
def preconditioning_in_bfloat16(m):
    m.setattr(preconditioning.Denoiser, "forward", low_precision_forward)


@fault(support.check_network_only_in_low_precision)
def noise_added_in_bfloat16(m):
    m.setattr(
        sampling,
        "renoise",
        lambda x0, s, eps: (x0.bfloat16() + noise.expand(s, x0).bfloat16() * eps.bfloat16()).float(),
    )


@fault(support.check_nan_is_visible)
def nan_replaced_in_the_output(m):
    real = preconditioning.Denoiser.forward
    m.setattr(preconditioning.Denoiser, "forward", lambda self, *a: torch.nan_to_num(real(self, *a)))


@fault(support.check_nan_is_visible)
def nan_left_out_of_the_loss(m):
    real = consistency.consistency_loss
    m.setattr(consistency, "consistency_loss", lambda *a: real(*a).nan_to_num())


# ---- grid, solver, target -------------------------------------------------------------------------------------------


@fault(support.check_grid)
def points_taken_for_intervals(m):
    real = noise.karras_sigmas
    m.setattr(noise, "karras_sigmas", lambda points, *a: real(points + 1, *a))


@fault(support.check_grid)
def ends_only_to_rounding(m):
    def rounded(points, low=0.002, high=80.0, rho=7.0):
        ramp = torch.linspace(0, 1, points, dtype=torch.float64)
        return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho

    m.setattr(noise, "karras_sigmas", rounded)


@fault(support.check_law_of_the_noise, "edm")
def spread_of_the_noise_for_its_variance(m):
    slip(m, DiffusionTeacher.sigma, "self.noise.p_std * normal", "self.noise.p_std**0.5 * normal")


@fault(support.check_law_of_the_noise, "edm")
def noise_in_decimal_logarithms(m):
    slip(
        m,
        DiffusionTeacher.sigma,
        "(self.noise.p_mean + self.noise.p_std * normal).exp()",
        "10 ** (self.noise.p_mean + self.noise.p_std * normal)",
    )


@fault(support.check_law_of_the_noise, "vp")
def ddpm_times_gaussian(m):
    slip(m, DiffusionTeacher.sigma, "torch.special.ndtr(normal)", "(normal * 0.25 + 0.5).clamp(0, 1)")


@fault(support.check_every_interval_is_trained)
def last_interval_never_drawn(m):
    real = consistency.interval_probabilities

    def without_last(*a):
        p = real(*a)
        p[-1] = 0
        return p

    m.setattr(consistency, "interval_probabilities", without_last)


@fault(support.check_every_interval_is_trained)
def first_interval_never_drawn(m):
    real = randomness.StepNoise.choice
    m.setattr(randomness.StepNoise, "choice", lambda self, p: real(self, p[1:]) + 1)


def upwards(step):
    return lambda d, x, hi, lo, labels=None: step(d, x, hi, hi + (hi - lo), labels)


@fault(support.check_step_follows_the_teacher)
def solver_steps_up(m):
    m.setitem(consistency.SOLVERS, "heun", upwards(solvers.heun_step))


@fault(support.check_step_follows_the_teacher)
def clean_image_renoised_instead_of_the_ode(m):
    """What consistency training does, called distillation."""
    m.setattr(ConsistencyDistillation, "step_down", ConsistencyTraining.step_down)


@fault(support.check_step_follows_the_teacher)
def fresh_noise_at_the_lower_level(m):
    m.setattr(
        ConsistencyDistillation,
        "step_down",
        lambda self, teacher, batch, x, hi, lo: sampling.renoise(batch.x0, lo, torch.randn_like(x)),
    )


@fault(support.check_pair_of_consistency_training)
def noise_of_half_the_level(m):
    real = consistency.renoise
    m.setattr(consistency, "renoise", lambda x0, s, eps: real(x0, s / 2, eps))


@fault(support.check_pair_of_consistency_training)
def fresh_noise_in_consistency_training(m):
    wrong = lambda x0, x, hi, lo: sampling.renoise(x0, lo, torch.randn_like(x0))  # noqa: E731
    m.setattr(consistency, "training_step_solver", wrong)


@fault(support.check_solver_order, "heun")
def heun_without_its_second_slope(m):
    m.setattr(solvers, "heun_step", solvers.euler_step)


@fault(support.check_solver_order, "heun")
def heun_evaluated_at_the_old_level(m):
    def wrong(d, x, hi, lo, labels=None):
        h = noise.expand(lo - hi, x)
        first = solvers.slope(d, x, hi, labels)
        return x + h * (first + solvers.slope(d, x + h * first, hi, labels)) / 2

    m.setattr(solvers, "heun_step", wrong)


@fault(support.check_target_is_a_consistency_function)
def goal_is_the_teachers_denoiser(m):
    real = Student._seeded

    def wrong(self, function, seed):
        teacher = self.teacher_denoiser
        return real(self, function, seed) if function is self.raw else lambda x, s, labels: teacher(x, s).float()

    m.setattr(Student, "_seeded", wrong)


@fault(support.check_target_is_a_consistency_function)
def target_in_the_denoisers_form(m):
    slip(m, Student.loss, "type(self.raw)(self.target", "Denoiser(self.target")


@fault(support.check_target_is_a_consistency_function)
def goal_at_the_upper_level(m):
    real = losses.consistency_loss
    m.setattr(consistency, "consistency_loss", lambda f, g, xh, xl, hi, lo, *r: real(f, g, xh, xl, hi, hi, *r))


@fault(support.check_student_sees_the_noisier_image)
def student_and_target_swapped(m):
    real = losses.consistency_loss
    m.setattr(losses, "consistency_loss", lambda f, g, xh, xl, hi, lo, *r: real(f, g, xl, xh, lo, hi, *r))


@fault(support.check_student_sees_the_noisier_image)
def gradient_through_the_goal(m):
    m.setattr(losses, "consistency_loss", lambda f, g, xh, xl, hi, lo, d, *r: d(f(xh, hi, None), g(xl, lo, None)))


@fault(support.check_zero_loss, "heun")
def loss_compares_with_the_clean_image(m):
    m.setattr(losses, "consistency_loss", lambda f, g, xh, xl, hi, lo, d, *r: d(f(xh, hi, None), xl))


@fault(support.check_huber_on_the_vector)
def huber_per_pixel(m):
    def wrong(self, a, b):
        return (((a - b) ** 2 + self.c**2).sqrt() - self.c).flatten(1).mean(1)

    m.setattr(losses.PseudoHuber, "__call__", wrong)


@fault(support.check_huber_on_the_vector)
def huber_of_the_mean_square(m):
    def wrong(self, a, b):
        return ((a - b).flatten(1).square().mean(1) + self.c**2).sqrt() - self.c

    m.setattr(losses.PseudoHuber, "__call__", wrong)


@fault(support.check_no_clamp)
def student_clamped_in_the_loss(m):
    real = losses.consistency_loss
    m.setattr(losses, "consistency_loss", lambda f, *r: real(lambda *a: f(*a).clamp(-1, 1), *r))


@fault(support.check_no_clamp)
def loss_summed_over_pixels(m):
    m.setattr(losses.L2, "__call__", lambda self, a, b: (a - b).flatten(1).square().sum(1))
