"""The ceiling of a distillation against loops by hand, exact flows, and the sampler of the student it stands for."""

from __future__ import annotations

import pytest
import torch

import support
from cdmem.diffusion.analytic import GaussianDenoiser
from cdmem.diffusion.noise import karras_sigmas
from cdmem.diffusion.sampling import ConsistencySampler, NoiseSource, OdeSampler
from cdmem.diffusion.solvers import SOLVERS
from cdmem.distillation import ConsistencyDistillation, ConsistencyTraining, DistillationMethod, TrajectoryRegression
from cdmem.distillation.ceiling import CeilingSampler, PerfectStudent
from cdmem.training.record import read_record

SHAPE, SEEDS = (1, 3, 3), [4, 9, 11]
RANGE = {"sigma_max": 80.0, "sigma_min": 0.002, "shape": SHAPE}


def teacher():
    return GaussianDenoiser.fit(torch.rand(12, *SHAPE, generator=support.rng()) - 0.5)


def test_one_interval_by_hand():
    """Euler on two points: x - (80 - .002) (x - D(x)) / 80; then the only interval from the second level down."""
    denoiser, noise = teacher(), NoiseSource(SEEDS, SHAPE)

    def down(x, sigma):
        x = x.double()
        return x + (0.002 - sigma) * (x - denoiser(x, support.fill(3, value=sigma))) / sigma

    one = down(noise.next() * 80, 80.0)
    two = down(one.float() + (0.7**2 - 0.002**2) ** 0.5 * noise.next(), 0.7)
    for mids, expected in (((), one), ((0.7,), two)):
        sampler = CeilingSampler.of(denoiser, 2, "euler", mid_sigmas=mids, **RANGE)
        torch.testing.assert_close(sampler(SEEDS), expected.float(), rtol=1e-5, atol=1e-6)
        assert (sampler.nfe, sampler.evaluations) == (1 + len(mids), 1 + len(mids))


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_a_grid_by_hand(solver):
    """From sigma_max every grid point; from the second level that level, then the grid points below it."""
    grid = karras_sigmas(7).tolist()
    assert grid[3] > 1.5 > grid[4]
    noise, step, x = NoiseSource(SEEDS, SHAPE), SOLVERS[solver], None
    for level, below in ((80.0, grid[1:]), (1.5, grid[4:])):
        x = noise.next() * 80 if x is None else x + (level**2 - 0.002**2) ** 0.5 * noise.next()
        x = support.walk(step, teacher(), x.double(), torch.tensor([level, *below], dtype=torch.float64)).float()
    sampler = CeilingSampler.of(teacher(), 7, solver, mid_sigmas=(1.5,), **RANGE)
    torch.testing.assert_close(sampler(SEEDS), x, rtol=1e-5, atol=1e-6)
    assert sampler.evaluations == (6 + 3) * (2 if solver == "heun" else 1)


def test_a_level_of_the_grid_is_not_left_twice():
    grid = karras_sigmas(7)
    student = PerfectStudent(teacher(), grid, "heun")
    assert torch.equal(student.levels(float(grid[2].float())), grid[2:])
    assert student.levels(80.0).tolist() == grid.tolist() and student.evaluations(float(grid[5].float())) == 2
    with pytest.raises(ValueError, match="one noise level"):
        student(torch.zeros(2, *SHAPE), torch.tensor([1.0, 2.0]))


def test_an_exact_student_is_its_ceiling():
    """Finer and finer grids lead to the student whose f is the exact flow, at the order of the solver."""
    exact = teacher()
    student = ConsistencySampler(lambda x, s, _=None: exact.endpoint(x, s, 0.002).float(), 80.0, 0.002, SHAPE, (0.7,))
    errors = []
    for points in (33, 65, 129):
        images = CeilingSampler.of(exact, points, "heun", mid_sigmas=(0.7,), **RANGE)(SEEDS)
        errors.append(float((images - student(SEEDS)).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15) and errors[1] / errors[2] == pytest.approx(4, rel=0.15)
    assert errors[2] < 2e-3


def test_in_one_step_it_is_the_teacher_that_stops_at_sigma_min():
    ode = OdeSampler(teacher(), karras_sigmas(10), SOLVERS["heun"], SHAPE)
    ceiling = CeilingSampler.of(teacher(), 10, "heun", **RANGE)
    torch.testing.assert_close(ceiling(SEEDS), ode(SEEDS), rtol=1e-5, atol=1e-6)
    assert ceiling.evaluations == ode.nfe == 18 and ceiling.nfe == 1


def test_evaluations_are_those_that_are_spent_and_labels_those_of_the_seeds():
    spent, seen = 0, set()

    def counting(x, sigma, labels=None):
        nonlocal spent
        spent += 1
        seen.add(tuple(labels.tolist()))
        return teacher()(x, sigma)

    sampler = CeilingSampler.of(counting, 9, "heun", mid_sigmas=(2.0, 0.1), num_classes=5, **RANGE)
    sampler(SEEDS)
    assert spent == sampler.evaluations and sampler.nfe == 3
    assert seen == {tuple(NoiseSource(SEEDS, SHAPE).labels(5).tolist())}


# ---- of a student ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        (ConsistencyDistillation(6, solver="euler"), (6, "euler")),
        (ConsistencyDistillation(6, curriculum="doubling"), (7, "heun")),
        (TrajectoryRegression(5), (5, "heun")),
        (ConsistencyTraining(6), None),
    ],
)
def test_a_student_knows_its_recipe_after_its_checkpoint_too(method, recipe):
    module = support.make_student(points=4, mid_sigmas=[0.6])
    module.method = method
    support.hand_over(module, training_set := support.make_data().training_set)
    module.prepare(training_set)
    module.record = read_record(module.record.plain())
    for nfe in (1, 2):
        ceiling = module.ceiling(module.teacher_denoiser, nfe)
        if recipe is None:
            assert ceiling is None
            continue
        assert ceiling.nfe == nfe and tuple(ceiling.mid_sigmas) == (0.6,)[: nfe - 1]
        points, solver = recipe
        expected = CeilingSampler.of(
            module.teacher_denoiser, points, solver, 80.0, 0.002, module.shape, (0.6,)[: nfe - 1]
        )
        assert torch.equal(ceiling(range(3)), expected(range(3)))


def test_students_of_before_have_none_and_an_odd_solver_is_no_record():
    module = support.make_student()
    support.hand_over(module, training_set := support.make_data().training_set)
    module.prepare(training_set)
    plain = module.record.plain()
    del plain["sampler"]["ode_solver"]
    module.record = read_record(plain)
    assert module.ceiling(module.teacher_denoiser) is None
    plain["sampler"]["ode_solver"] = "os.system"
    with pytest.raises(ValueError, match="ode_solver"):
        read_record(plain)


def test_a_method_of_ones_own_has_no_ceiling_unless_it_says_so():
    assert DistillationMethod.ode_solver.fget(None) is None
