"""Regression along the teacher's trajectories, against flows that are known in closed form.

In one dimension the probability flow keeps every point's quantile, so the exact end of any trajectory is a root of
F_end(y) = F_start(x); of a single point mass trajectories are straight lines in sigma.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

import support
from cdmem.diffusion.analytic import EmpiricalDenoiser
from cdmem.diffusion.losses import L2
from cdmem.diffusion.noise import karras_sigmas
from cdmem.diffusion.solvers import SOLVERS
from cdmem.diffusion.step_noise import StepNoise
from cdmem.distillation import ConsistencyDistillation, TrajectoryRegression
from cdmem.distillation.base import CleanBatch, Progress, StudentFunctions
from cdmem.distillation.ceiling import PerfectStudent
from cdmem.errors import InputError
from cdmem.networks.mlp import MLP
from cdmem.seeds import COUNTERS, sample_seed
from cdmem.training.settings import Averaging, Optimization
from cdmem.training.student import Student

MIDS = (0.8, 0.2)
AT = Progress(0, 100, support.SIGMA_MIN, 80.0, MIDS)


def part(method, teacher, batch=40, shape=(1, 1, 1), at=AT, labels=None, noise=None):
    """x, sigma, goal, weight, labels of one step's batch of images, which are never looked at."""
    images = torch.full((batch, *shape), torch.nan)
    return method.teacher_part(teacher, CleanBatch(images, labels), noise or StepNoise(0, 3, batch), at)


# ---- where trajectories end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("euler", 1)])
def test_ends_are_those_of_the_exact_flow_up_to_the_order_of_the_solver(solver, order):
    errors = []
    for points in (65, 129, 257):
        x, sigma, goal, _, _ = part(TrajectoryRegression(points, solver, reuse=8), support.gaussian())
        exact = support.gaussian().endpoint(x, sigma, support.SIGMA_MIN)
        errors.append(float((goal - exact)[sigma == 80.0].abs().max()))
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.1)
    assert errors[-1] < {"heun": 1e-3, "euler": 0.05}[solver]


def test_ends_of_few_points_are_those_of_their_quantiles():
    """Three images of one pixel, the last of them twice: which one a seed ends at, and where."""
    images, copies = torch.tensor([-0.6, 0.1, 0.7]).reshape(3, 1, 1, 1), torch.tensor([1, 1, 2])
    x, sigma, goal, _, _ = part(TrajectoryRegression(400), EmpiricalDenoiser(images, copies), 401 * 3)

    def quantile(y, level):
        return float((copies.numpy() / 4 * norm.cdf(y, images.flatten().numpy(), level)).sum())

    checked = 0
    for k in range(0, len(x), 40):
        q = quantile(float(x[k]), float(sigma[k]))
        if min(abs(q - edge) for edge in (0, 0.25, 0.5, 1)) < 0.02:
            continue  # between two images the end is a matter of rounding, at the edges the root is far out
        exact = brentq(lambda y, q=q: quantile(y, support.SIGMA_MIN) - q, -2, 2, xtol=1e-12)
        assert float(goal[k]) == pytest.approx(exact, abs=2e-3), (k, float(sigma[k]))
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_the_trajectories_of_one_image_are_straight_lines(solver):
    """Both solvers are exact there, at every level of the grid and at the sampling levels between."""
    image = torch.rand(1, 2, 3, 3, generator=support.rng()) - 0.5
    method = TrajectoryRegression(6, solver)
    noise = StepNoise(0, 3, 70)
    start = 80 * StepNoise(0, 3, 70).group_normal(method.group(AT), (2, 3, 3))
    x, sigma, goal, _, _ = part(method, EmpiricalDenoiser(image), 70, (2, 3, 3), noise=noise)
    row, _ = noise.groups(method.group(AT))
    for level, point in ((sigma, x), (torch.full_like(sigma, support.SIGMA_MIN), goal)):
        line = image + (level / 80).reshape(-1, 1, 1, 1) * (start[row] - image)
        # float32 of a point: its own rounding and that of the start, brought down with it.
        bound = 4 * support.EPS32 * (line.abs() + (level / 80).reshape(-1, 1, 1, 1) * start[row].abs() + 1)
        assert bool(((point - line).abs() <= bound).all())


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_every_level_of_a_trajectory_leads_to_what_the_grid_composes(solver):
    """Of the Gaussian teacher f(x, sigma_k) = a_k x + b_k: least squares finds the composition of the steps."""
    method, sigmas = TrajectoryRegression(6, solver), karras_sigmas(6)
    x, sigma, goal, _, _ = part(method, support.gaussian(), 700, at=Progress(0, 1, support.SIGMA_MIN, 80.0))
    for k in range(5):
        mine = sigma == sigmas[k].float()
        assert int(mine.sum()) == 140
        design = torch.stack([x[mine].flatten().double(), torch.ones(140, dtype=torch.float64)], 1)
        gain, shift = torch.linalg.lstsq(design, goal[mine].flatten().double()[:, None]).solution.flatten()
        ends = support.walk(SOLVERS[solver], support.gaussian(), support.as_images([0.0, 1.0]), sigmas[k:]).flatten()
        assert (float(shift), float(gain)) == pytest.approx((float(ends[0]), float(ends[1] - ends[0])), abs=1e-6)


# ---- the loss -------------------------------------------------------------------------------------------------------


def mean_loss(method, student, teacher, **options):
    """By level: the mean loss of a student there."""
    seen = part(method, teacher, 90, (1, 2, 2), **options)
    loss = method.loss(StudentFunctions(student, None), seen, None)
    return {round(float(s), 4): float(loss[seen[1] == s].mean()) for s in seen[1].unique()}


def by_levels(function):
    """A function of images of one level as a loss calls it: level by level."""

    def call(x, sigma, labels=None):
        out = torch.empty_like(x)
        for level in sigma.unique():
            out[sigma == level] = function(x[sigma == level], sigma[sigma == level])
        return out

    return call


def test_the_perfect_student_has_no_loss():
    teacher = EmpiricalDenoiser(torch.rand(3, 1, 2, 2, generator=support.rng()) - 0.5)
    losses = {}
    for points in (9, 33):
        method = TrajectoryRegression(points, distance=L2())
        student = PerfectStudent(teacher, karras_sigmas(points), "heun")
        losses[points] = mean_loss(method, by_levels(student), teacher)
        assert all(loss < 1e-9 for level, loss in losses[points].items() if level not in MIDS)
    # At a sampling level between two points it solves from there on; the two ways differ by the solver's error.
    assert all(losses[33][level] < 1e-3 * max(losses[9][level], 1e-6) for level in MIDS)
    other = PerfectStudent(teacher, karras_sigmas(9), "euler")
    assert mean_loss(TrajectoryRegression(9, distance=L2()), by_levels(other), teacher)[80.0] > 1e-5


def test_weights_are_one_or_one_over_the_gap_to_the_next_grid_point():
    sigmas = karras_sigmas(6)
    _, sigma, _, weight, _ = part(TrajectoryRegression(6, weighting="inverse_gap"), support.gaussian())
    gaps = dict(zip(sigmas[:-1].float().tolist(), (-sigmas.diff()).tolist()))
    gaps |= {float(torch.tensor(s)): s - float(sigmas[sigmas < s][0]) for s in MIDS}
    assert weight.tolist() == pytest.approx([1 / gaps[s] for s in sigma.tolist()], rel=1e-5)
    assert bool((part(TrajectoryRegression(6), support.gaussian())[3] == 1).all())


# ---- which pairs a batch has ----------------------------------------------------------------------------------------


def test_every_sampling_level_is_trained_and_sigma_max_by_every_trajectory():
    method = TrajectoryRegression(6)
    levels = [*karras_sigmas(6)[:-1].float().tolist(), *torch.tensor(MIDS).tolist()]
    _, sigma, goal, _, _ = part(method, support.gaussian(), 7 * 4 + 3)
    for k in range(4):
        assert sorted(sigma[7 * k : 7 * k + 7].tolist()) == sorted(levels)
        assert len(goal[7 * k : 7 * k + 7].unique()) == 1
    assert sigma[::7].tolist() == [80.0] * 5 and len(goal.unique()) == 5
    assert len(set(sigma[28:].tolist())) == 3
    # A level of the grid is not trained twice, and none is needed.
    on_grid = Progress(0, 1, support.SIGMA_MIN, 80.0, (float(karras_sigmas(6)[2]),))
    assert method.group(on_grid) == method.group(Progress(0, 1, support.SIGMA_MIN, 80.0)) == 5


def test_fewer_pairs_of_a_trajectory_are_drawn_evenly_from_the_other_levels():
    method, count = TrajectoryRegression(6, reuse=3), Counter()
    for step in range(50):
        _, sigma, goal, _, _ = part(method, support.gaussian(), 30, noise=StepNoise(0, step, 30))
        assert sigma[::3].tolist() == [80.0] * 10 and len(goal.unique()) == 10
        assert all(len(set(three.tolist())) == 3 for three in sigma.reshape(10, 3))
        count.update(sigma.reshape(10, 3)[:, 1:].flatten().tolist())
    # 500 trajectories take each of 6 levels with probability 1/3: five standard errors.
    assert len(count) == 6 and all(abs(n - 500 / 3) < 5 * (500 * 2 / 9) ** 0.5 for n in count.values())


def test_a_step_is_a_function_of_seed_and_step_however_the_batch_is_cut():
    method, whole = TrajectoryRegression(6), part(TrajectoryRegression(6), support.gaussian(), 24)
    for parts in (2, 3, 8):
        cut = [
            part(method, support.gaussian(), 24 // parts, noise=StepNoise(0, 3, 24 // parts, k, parts))
            for k in range(parts)
        ]
        for one, pieces in zip(whole[:4], zip(*(p[:4] for p in cut))):
            assert torch.equal(one, torch.cat(pieces))
    for seed, step in ((0, 4), (1, 3)):
        other = part(method, support.gaussian(), 24, noise=StepNoise(seed, step, 24))
        assert not set(other[2].flatten().tolist()) & set(whole[2].flatten().tolist())


def test_training_noise_is_no_noise_of_an_evaluation():
    steps = {StepNoise(seed, step, 4).seed for seed in (0, 1, 77) for step in (0, 1, 2**22 - 1)}
    assert all(seed // COUNTERS == 3 for seed in steps)
    assert all(sample_seed(s, "samples") // COUNTERS == 0 for s in (0, 1, COUNTERS - 1, COUNTERS, 2**40))


def test_a_trajectory_has_one_class_from_the_batch():
    """A teacher whose classes are point masses: every pair ends at the image of its class."""
    asked = set()

    class Classes(torch.nn.Module):
        def forward(self, x, sigma, labels=None):
            asked.add(labels.dtype)
            return labels.reshape(-1, 1, 1, 1).to(x.dtype) / 10 + 0 * x

    labels = torch.arange(40) % 10
    method = TrajectoryRegression(6)
    _, _, goal, _, given = part(method, Classes(), labels=labels)
    assert asked == {torch.int64} and torch.equal(given, labels[torch.arange(40) // 7 * 7])
    # What is left of the start's noise at sigma_min: 0.002 times a few standard deviations.
    assert float((goal.flatten() - given / 10).abs().max()) < 5 * support.SIGMA_MIN


# ---- cost -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "each"), [("heun", 2), ("euler", 1)])
def test_a_pair_costs_the_evaluations_of_consistency_distillation(solver, each):
    spent = Counter()

    def counted(name):
        def teacher(x, sigma, labels=None):
            spent[name] += len(x)
            return support.gaussian()(x, sigma)

        return teacher

    batch = 4 * TrajectoryRegression(9).group(AT)
    part(TrajectoryRegression(9, solver), counted("regression"), batch)
    images = CleanBatch(torch.zeros(batch, 1, 1, 1), None)
    ConsistencyDistillation(9, solver=solver).teacher_part(counted("distillation"), images, StepNoise(0, 0, batch), AT)
    part(TrajectoryRegression(9, solver, reuse=2), counted("two"), batch)
    assert spent["regression"] == spent["distillation"] == each * batch
    assert spent["two"] == batch // 2 * each * (8 + len(MIDS))


# ---- runs -----------------------------------------------------------------------------------------------------------


def student(teacher="analytic:empirical", **options):
    moves = Optimization(lambda p: torch.optim.Adam(p, lr=1e-2), "constant")
    method = TrajectoryRegression(5, dropout=0.2)
    return Student(teacher, method, MLP(width=16, depth=1), optimization=moves, averaging=Averaging([2]), **options)


def test_two_steps_and_two_more_are_four(tmp_path):
    straight = support.fit(student(), 4)
    assert straight.target is None
    support.fit(student(), 2).trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed = support.fit(student(), 4, ckpt_path=str(tmp_path / "two.ckpt"))
    states = [module.state_dict() for module in (straight, resumed)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    accumulated = support.fit(student(), 4, support.make_data(batch_size=2), accumulate_grad_batches=2)
    assert accumulated.trainer.global_step == 4


def test_a_student_without_a_teacher_is_refused():
    with pytest.raises(InputError, match="distillation needs a teacher"):
        student(teacher=None)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"points": 1}, "points"),
        ({"reuse": 1}, "reuse"),
        ({"points": 6, "reuse": 6}, "reuse"),
        ({"distance": "cdmem.diffusion.L2"}, "distance"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_settings(settings, key):
    with pytest.raises(InputError) as error:
        TrajectoryRegression(**settings)
    assert error.value.key == f"model.method.{key}"


@pytest.mark.sensitive
def test_it_learns_what_its_trajectories_end_at():
    """Two images: after 60 steps much nearer to its own ceiling than the mean of all ends is (0.37 here; limit 0.6)."""
    moves, network = Optimization(lambda p: torch.optim.Adam(p, lr=1e-2), "constant"), MLP(width=32, depth=1)
    module = Student("analytic:empirical", TrajectoryRegression(5, "euler", reuse=2), network, optimization=moves)
    module, seeds = support.fit(module, 60, support.make_data(n=2, batch_size=32)).eval(), range(100)
    ends, samples = module.ceiling(module.teacher_denoiser)(seeds), module.sampler(1, "raw")(seeds)
    assert float((samples - ends).square().mean()) < 0.6 * float((ends - ends.mean(0)).square().mean())
