"""Checks of preconditioning, grids, solver and loss."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import torch
from scipy.stats import kstest, norm, uniform
from torch import nn

from cdmem.diffusion import curriculum, losses, noise, preconditioning, sampling, solvers
from cdmem.diffusion.step_noise import StepNoise
from cdmem.distillation import TrajectoryRegression
from cdmem.distillation.base import CleanBatch, Progress
from cdmem.errors import InputError
from cdmem.training import student
from support.parts import (
    EPS32,
    MEAN,
    SIGMA_MIN,
    Seen,
    as_images,
    edm,
    fill,
    fit,
    gaussian,
    make_data,
    make_student,
    make_teacher,
    make_training_set,
    rng,
    small_network,
    walk,
)

# ---- preconditioning ------------------------------------------------------------------------------------------------


def check_boundary(make_scaling=edm, autocast=False, training=False):
    """f(x, sigma_min) = x bit for bit, whatever the network says."""
    scaling = make_scaling()
    function = preconditioning.ConsistencyFunction(small_network(dropout=0.5), scaling).train(training)
    x = torch.randn(5, 1, 4, 4, generator=rng())
    sigma = torch.full((5,), scaling.sigma_min)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        raw = function.network(x, sigma)
        out = function(x, sigma)
    assert raw.abs().max() > 0.1, "the network must have something to say"
    assert out.dtype == torch.float32
    assert torch.equal(out, x)


def check_edm_identities():
    """EDM eqs. 7-8: unit-variance network target and lambda c_out^2 = 1. Rounding of float64: 1e-12."""
    sigma = torch.logspace(-3, 2, 11, dtype=torch.float64)
    for sigma_data in (0.2, 0.5, 1.7):
        scaling = edm(sigma_data)
        c = scaling.denoiser(sigma)
        target = ((1 - c.c_skip) ** 2 * sigma_data**2 + c.c_skip**2 * sigma**2) / c.c_out**2
        one = torch.ones_like(sigma)
        torch.testing.assert_close(target, one, rtol=0, atol=1e-12)
        torch.testing.assert_close(scaling.loss_weight(sigma) * c.c_out**2, one, rtol=0, atol=1e-12)
        torch.testing.assert_close(c.c_in**2 * (sigma**2 + sigma_data**2), one, rtol=0, atol=1e-12)


def check_shared_inputs(make_scaling=edm):
    """The student feeds its network, the teacher's, what the teacher fed it."""
    scaling = make_scaling()
    calls = []

    class Probe(nn.Module):
        def forward(self, x, c_noise, labels=None):
            calls.append((x, c_noise))
            return x

    x, sigma = torch.randn(4, 1, 4, 4, generator=rng()), torch.tensor([0.02, 0.5, 5.0, 80.0])
    preconditioning.Denoiser(Probe(), scaling)(x, sigma)
    preconditioning.ConsistencyFunction(Probe(), scaling)(x, sigma)
    (x_teacher, c_teacher), (x_student, c_student) = calls
    assert torch.equal(x_teacher, x_student)
    assert torch.equal(c_teacher, c_student)


def check_network_only_in_low_precision():
    """With a network that is exact in bfloat16 (it returns 1), autocast changes nothing."""

    class One(nn.Module):
        def forward(self, x, c_noise, labels=None):
            return torch.ones_like(x, dtype=torch.bfloat16)

    x, sigma = 80 * torch.randn(8, 1, 4, 4, generator=rng()), torch.logspace(-2, 1.9, 8)
    for form in (preconditioning.Denoiser, preconditioning.ConsistencyFunction):
        plain = form(One(), edm())(x, sigma)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(form(One(), edm())(x, sigma), plain)
        c = [noise.expand(v.double(), x) for v in form(One(), edm()).scalings(sigma)[:2]]
        exact = c[0] * x.double() + c[1]
        # c_skip is d^2/(s^2 + d^2): a handful of float32 roundings of each term.
        bound = 16 * EPS32 * ((c[0] * x).abs() + c[1].abs())
        assert bool(((plain - exact).abs() <= bound).all())
    low, high = noise.karras_sigmas(160).float()[80:82].flip(0).split(1)
    x0, eps = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        near = sampling.renoise(x0, low, eps), sampling.renoise(x0, high, eps)
    assert torch.equal(near[0], noise.expand(low, eps) * eps) and bool((near[1] > near[0]).all())


def check_nan_is_visible():
    """A network that returns NaN is neither masked by the boundary condition nor by the training step."""

    class Broken(nn.Module):
        def forward(self, x, c_noise, labels=None):
            return x * math.nan

    function = preconditioning.ConsistencyFunction(Broken(), edm())
    assert not function(torch.ones(2, 1, 4, 4), torch.full((2,), SIGMA_MIN)).isfinite().any()

    class Diverging(student.Student):
        def setup(self, stage):
            super().setup(stage)
            with torch.no_grad():
                next(self.raw.network.parameters()).fill_(math.nan)

    try:
        fit(make_student(Diverging), 1)
    except InputError as error:
        assert error.key == "train/loss"
        return
    raise AssertionError("a NaN loss went unnoticed")


# ---- grids ----------------------------------------------------------------------------------------------------------


def check_grid():
    """N points, N - 1 intervals; reference values of the published grid."""
    for points in (2, 9, 18, 40, 151):
        sigmas = noise.karras_sigmas(points)
        assert sigmas.shape == (points,)
        assert sigmas[0].item() == 80.0 and sigmas[-1].item() == 0.002
        assert bool((sigmas.diff() < 0).all())
    # The references are rounded to four decimals.
    assert abs(noise.karras_sigmas(40)[22].item() - 1.3824) <= 5e-5
    assert abs(noise.karras_sigmas(18)[9].item() - 1.9233) <= 5e-5


def check_every_interval_is_trained():
    """Of N points exactly the N - 1 neighbouring pairs occur in training, the first and the last among them.

    A uniform draw of 4 x 60 samples misses a given one of 3 intervals with probability (2/3)^240 < 1e-42.
    """
    seen = Seen(make_student(points=4, intervals="uniform"), steps=15, data=make_data(batch_size=16))
    grid = noise.karras_sigmas(4).float().tolist()
    pairs = {(h, low) for c in seen.calls for h, low in zip(c.hi.tolist(), c.lo.tolist())}
    assert pairs == set(pairwise(grid))


def check_law_of_the_noise(parameterization):
    """A teacher trains at ln sigma ~ N(p_mean, p_std^2), or at DDPM times uniform between the first and the last.

    Kolmogorov-Smirnov over 20,000 examples of a fixed seed: a mean off by 0.05 or a spread off by 0.07 fails.
    """
    teacher = make_teacher(parameterization=parameterization, p_mean=-0.7, p_std=1.3)
    teacher.prepare(make_training_set(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)))
    levels = teacher.sigma(StepNoise(0, 0, 20_000)).log().double()
    law = norm(-0.7, 1.3)
    if parameterization == "vp":
        levels, law = teacher.raw.scaling.schedule.time(levels.exp()), uniform(0, 999)
    assert kstest(levels.numpy(), law.cdf).pvalue > 1e-4


def check_curriculum_values():
    """Song et al. 2023, app. C and Song & Dhariwal 2023, eq. 11 on the published lengths."""
    doubling = [curriculum.num_points(50_000 * k, 400_000, "doubling", 10, 1280) for k in range(8)]
    assert doubling == [11, 21, 41, 81, 161, 321, 641, 1281]
    steps = (0, 1, 100_000, 400_000, 800_000)
    assert [curriculum.num_points(k, 800_000, "sqrt", 2, 150) for k in steps] == [2, 3, 54, 107, 151]


def check_curriculum_follows_the_step():
    """N is read off the trainer's step: any order, any number of calls, a resumed process included."""
    for name in ("doubling", "sqrt"):
        modules = [make_student(curriculum=name, start_points=2, points=64) for _ in range(2)]
        for order, module in zip(((0, 5, 9), (9, 5, 0, 5)), modules):
            module._trainer = SimpleNamespace(max_steps=10)
            module.record = SimpleNamespace(sigma_min=SIGMA_MIN, sigma_max=80.0)
            for step in order:
                module._trainer.global_step = step
                at = module.progress(module.trainer.global_step)
                points = module.method.points_at(at.step, at.total_steps)
                assert points == curriculum.num_points(step, 10, name, 2, 64)


# ---- solver and loss ------------------------------------------------------------------------------------------------


def global_error(step, points):
    """|end of the numerical ODE - exact end| of the Gaussian, per unit of starting noise, at sigma_min."""
    sigmas = noise.karras_sigmas(points)
    start = as_images([MEAN + 80.0])
    exact = gaussian().endpoint(start, fill(1, value=80), SIGMA_MIN)
    return float((walk(step, gaussian(), start, sigmas) - exact).abs())


def check_solver_order(name="heun"):
    """Error ratio per doubling: 2^order."""
    step, order = {"heun": (solvers.heun_step, 2), "euler": (solvers.euler_step, 1)}[name]
    errors = [global_error(step, 1 + k) for k in (128, 256, 512)]
    for coarse, fine in pairwise(errors):
        # The next term of the error is smaller by O(1/N): 4 % is far from the neighbouring orders.
        assert abs(coarse / fine / 2**order - 1) < 0.04


def check_step_follows_the_teacher():
    """x_lo of the training loss is where the teacher's ODE, not the forward process, leads from x_hi.

    The exact Gaussian flow is the truth. Heun's relative local error on a grid of 80 points is O(h^3), below 1 % of the
    way; noise put on x0 instead would miss by a multiple of it, and stepping up goes the wrong way.
    """
    module = make_student(teacher="analytic:gaussian", points=80, solver="heun", intervals="uniform")
    seen = Seen(module, steps=3)
    truth = module.teacher_denoiser
    for c in seen.calls:
        assert bool((c.lo < c.hi).all())
        for k in range(len(c.hi)):
            exact = truth.endpoint(c.x_hi[k : k + 1], c.hi[k : k + 1], float(c.lo[k]))
            way = (c.x_hi[k] - exact[0]).norm()
            # float32 of the state adds EPS32 |x| per pixel.
            bound = 0.02 * way + 8 * EPS32 * c.x_hi[k].norm()
            assert (c.x_lo[k] - exact[0]).norm() <= bound


def check_pair_of_consistency_training():
    """Control without a teacher: x_hi = x0 + sigma_hi eps with unit noise, x_lo = x0 + sigma_lo eps with the same."""
    images = []

    class Keep(student.Student):
        def images(self, batch):
            images.append(super().images(batch))
            return images[-1]

    module = make_student(Keep, teacher=None, training=True)
    seen = Seen(module, 3)
    assert module.teacher_denoiser is None and module.teacher_sampler() is None
    for x0, c in zip(images, seen.calls, strict=True):
        hi, lo = (noise.expand(s, x0).double() for s in (c.hi, c.lo))
        eps = (c.x_hi.double() - x0) / hi
        bound = 8 * EPS32 * (x0.abs() + c.x_hi.abs())
        assert bool(((c.x_lo - (x0 + lo * eps)).abs() <= bound).all())
        # Five standard errors of the second moment of 4 x 64 draws.
        assert abs(float(eps.square().mean()) - 1) < 5 * (2 / eps.numel()) ** 0.5


def check_pairs_of_regression():
    """Every trajectory is trained at sigma_max, from unit noise, and each of its points onto where the grid leads from
    there."""
    method, sigmas = TrajectoryRegression(6), noise.karras_sigmas(6)
    at = Progress(0, 1, SIGMA_MIN, 80.0)
    images = CleanBatch(torch.zeros(500, 1, 1, 1), None)
    x, sigma, goal, _, _ = method.teacher_part(gaussian(), images, StepNoise(0, 0, 500), at)
    start = x[sigma == 80.0].double() / 80
    assert len(start) == 100
    # Five standard errors of the second moment of 100 draws.
    assert abs(float(start.square().mean()) - 1) < 5 * (2 / 100) ** 0.5
    for k, level in enumerate(sigmas[:-1]):
        mine = sigma == level.float()
        assert int(mine.sum()) == 100
        end = walk(solvers.heun_step, gaussian(), x[mine].double(), sigmas[k:])
        torch.testing.assert_close(goal[mine].double(), end, rtol=0, atol=1e-5)


class Composed(nn.Module):
    """The student that distillation aims at: the teacher's solver steps composed down to sigma_min."""

    def __init__(self, step, sigmas):
        super().__init__()
        self.step, self.sigmas = step, sigmas

    def forward(self, x, sigma, labels=None):
        k = int((self.sigmas - float(sigma[0])).abs().argmin())
        return walk(self.step, gaussian(), x, self.sigmas[k:])


def check_zero_loss(name="heun"):
    """The composition of solver steps has consistency loss exactly 0 on every interval."""
    step = solvers.SOLVERS[name]
    sigmas = noise.karras_sigmas(18)
    ideal = Composed(step, sigmas)
    for k in range(17):
        hi, lo = fill(7, value=sigmas[k]), fill(7, value=sigmas[k + 1])
        x_hi = as_images(torch.randn(7, generator=rng(k), dtype=torch.float64)) * sigmas[k]
        x_lo = step(gaussian(), x_hi, hi, lo)
        loss = losses.consistency_loss(ideal, ideal, x_hi, x_lo, hi, lo, losses.L2())
        assert torch.equal(loss, torch.zeros_like(loss))


def check_target_is_a_consistency_function():
    """In training the goal is f_target(x_lo; sigma_lo); at the lowest level that is x_lo itself."""
    module = make_student(points=3, intervals="uniform", mu=0.5)
    seen = Seen(module, steps=4)
    boundary = 0
    for c in seen.calls:
        x, sigma, out = c.outputs["target"]
        assert torch.equal(x, c.x_lo) and torch.equal(sigma, c.lo)
        lowest = c.lo == torch.tensor(module.sigma_min)
        assert torch.equal(out[lowest], c.x_lo[lowest])
        boundary += int(lowest.sum())
    assert boundary > 0


def check_student_sees_the_noisier_image():
    """Gradients flow through f_student(x_hi; sigma_hi) and nowhere else."""
    online, target = nn.Linear(1, 1), nn.Linear(1, 1)
    levels = {}

    def wrap(name, layer):
        def call(x, sigma, labels=None):
            levels[name] = (x, sigma)
            return layer(x)

        return call

    x_hi, x_lo = torch.full((3, 1), 2.0).requires_grad_(), torch.full((3, 1), 1.0).requires_grad_()
    hi, lo = torch.full((3,), 2.0), torch.full((3,), 1.0)
    loss = losses.consistency_loss(wrap("online", online), wrap("target", target), x_hi, x_lo, hi, lo, losses.L2())
    loss.sum().backward()
    assert levels["online"][0] is x_hi and levels["online"][1] is hi
    assert levels["target"][0] is x_lo and levels["target"][1] is lo
    assert all(p.grad is not None for p in online.parameters()) and x_hi.grad is not None
    assert all(p.grad is None for p in target.parameters()) and x_lo.grad is None


def check_huber_on_the_vector():
    """Pseudo-Huber is a function of the norm of the whole image: 16 pixels of 1 have norm 4, whatever their order."""
    a = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    a[0] = 1.0
    a[1, 0, 0, 0] = 4.0
    for c in (0.1, 1.0, 3.0):
        value = losses.PseudoHuber(c)(a, torch.zeros_like(a))
        expected = fill(2, value=math.sqrt(16 + c * c) - c)
        torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)


def check_no_clamp():
    """Outputs beyond [-1, 1] still have a gradient and their full distance."""
    out = torch.full((2, 1, 2, 2), 3.0, requires_grad=True)
    loss = losses.consistency_loss(
        lambda *_: out, lambda *_: torch.full((2, 1, 2, 2), -2.0), out, out, torch.ones(2), torch.ones(2), losses.L2()
    )
    assert torch.equal(loss.detach(), torch.full((2,), 25.0))
    loss.sum().backward()
    assert torch.equal(out.grad, torch.full_like(out, 2 * 5 / 4))
    assert float(losses.denoising_loss(lambda *_: out.detach() * 2, out.detach(), torch.ones(2), out.detach())[0]) == 9
