"""What teacher and student make of settings, data and each other: samplers, and what is refused before a step."""

from __future__ import annotations

import pytest
import torch
from test_training_math import from_teacher, prepared

import support
from cdmem.diffusion import noise
from cdmem.diffusion.solvers import SOLVERS
from cdmem.errors import InputError
from cdmem.networks.mlp import MLP
from cdmem.networks.unet import UNet
from cdmem.training.record import ModelRecord


@pytest.mark.parametrize(
    ("solver", "nfe", "points"),
    [("heun", None, 18), ("heun", 35, 18), ("heun", 3, 2), ("heun", 5, 3), ("euler", None, 18), ("euler", 2, 2)],
)
def test_a_teacher_spends_the_evaluations_asked_for(solver, nfe, points):
    module = prepared(support.make_teacher(solver=solver))
    sampler = module.sampler(nfe)
    assert torch.equal(sampler.sigmas, noise.sampler_sigmas(points)) and sampler.step is SOLVERS[solver]
    assert sampler.nfe == (nfe or module.default_nfe[0]) and len(module.default_nfe) == 1


@pytest.mark.parametrize(("solver", "nfe"), [("heun", 1), ("heun", 2), ("heun", 4), ("euler", 0), ("euler", 1)])
def test_evaluations_that_a_teacher_cannot_spend_are_refused(solver, nfe):
    with pytest.raises(InputError, match=r"^nfe="):
        prepared(support.make_teacher(solver=solver)).sampler(nfe)


def test_a_teacher_walks_the_students_levels_by_euler_steps():
    sampler = prepared(support.make_teacher()).few_step_sampler([2.0])
    assert sampler.sigmas.tolist() == [80.0, 2.0, 0.0] and sampler.nfe == 2


@pytest.mark.parametrize(("nfe", "levels"), [(None, []), (1, []), (2, [2.0]), (3, [2.0, 0.5])])
def test_a_student_renoises_to_its_first_levels(nfe, levels):
    module = prepared(support.make_student(mid_sigmas=[2.0, 0.5]))
    sampler = module.sampler(nfe)
    assert (list(sampler.mid_sigmas), sampler.sigma_max, sampler.sigma_min) == (levels, 80.0, 0.002)
    assert sampler.nfe == 1 + len(levels) and module.default_nfe == [1, 2, 3]
    for wrong in (0, 4):
        with pytest.raises(InputError, match=r"^nfe="):
            module.sampler(wrong)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"n": 4}, "another training set"),
        ({"subset_seed": 5}, "another training set"),
        ({"duplication": [{"fraction": 0.25, "copies": 3}]}, "another training set"),
        ({"flip": True}, "another training set"),
        ({"resolution": 4}, "images of shape"),
    ],
    ids=str,
)
def test_a_teacher_of_other_data_is_refused(teacher_file, data, problem):
    with pytest.raises(InputError, match=rf"^model\.teacher=.*{problem}"):
        support.fit(from_teacher(teacher_file), 1, support.make_data(**data))


def test_a_student_is_no_teacher(tmp_path):
    support.fit(support.make_student(), 1).trainer.save_checkpoint(tmp_path / "student.ckpt")
    with pytest.raises(InputError, match=r"^model\.teacher=.*is a student"):
        support.fit(from_teacher(tmp_path / "student.ckpt"), 1)


def test_a_student_is_handed_its_teacher(teacher_file):
    with pytest.raises(InputError, match=r"^model\.teacher=.*not handed over"):
        from_teacher(teacher_file).prepare(support.make_data().training_set)


@pytest.mark.parametrize("network", [MLP(width=16, depth=1, dropout=-0.1), UNet(channels=[8], dropout=1.5)])
def test_a_network_that_torch_refuses_is_one_line(network):
    with pytest.raises(InputError, match=r"^model\.network=.*cannot be built"):
        prepared(support.make_teacher(network=network))


def test_a_run_needs_an_end():
    with pytest.raises(InputError, match=r"^trainer\.max_steps="):
        support.fit(support.make_student(), -1, max_epochs=-1)


@pytest.mark.parametrize("levels", [[2.0], [3.0, 1.0], [1.0, 0.5]])
def test_levels_outside_the_teachers_range_are_refused(levels):
    """A teacher from elsewhere may end below 80 and start above 0.002."""
    module = support.make_student(mid_sigmas=levels)
    sampler = {"solver": "consistency", "points": 18, "mid_sigmas": levels}
    record = ModelRecord("student", (1, 4, 4), 0, 0.5, 0.5, 2.0, "edm", {}, sampler, "raw")
    with pytest.raises(InputError, match=r"^model\.mid_sigmas=.*must lie between"):
        module.assemble_student(record, support.small_network())


def test_classes_need_labels():
    with pytest.raises(InputError, match=r"^model\.conditional="):
        support.make_teacher(conditional=True).prepare(support.make_training_set(support.random_images(4)))
