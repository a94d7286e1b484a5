"""Edge: students against closed forms, and the laboratory as a whole."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cdmem.errors import InputError
from cdmem.theory.edge.distillation import Teachers, consistency, regression, schedule_of
from cdmem.theory.edge.laboratory import Settings, check, run
from cdmem.theory.edge.mixture import grid
from cdmem.theory.edge.sampling import integrate
from cdmem.theory.edge.training import Learned
from cdmem.theory.experiment import Progress, plain

SMALL = Settings(
    n=12, d=8, k=3, capacities=3, refine=2, samples=40, fresh=6, steps=60, loss_draws=3, sweep_n=[6, 8], sweep_d=[6, 8],
    sweep_k=[2], distil_steps=[2, 4], image_n=8, image_k=2, image_steps=20,
)  # fmt: skip


def tensor(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.fixture(scope="module")
def outcome():
    torch.set_num_threads(1)
    return run(SMALL, Progress(quiet=True))


def test_a_students_form_holds_its_teachers_denoiser():
    models = [Learned(tensor(5, 4, seed=1), 0.3), Learned(tensor(2, 4, seed=2), 0.0)]
    teachers, x = Teachers.of(models), tensor(7, 4, seed=3)
    for t in (0.2, 0.9):
        maps = teachers.maps(torch.tensor(t))
        for e, model in enumerate(models):
            torch.testing.assert_close(maps.member(e)(x)[0], model(x, t), rtol=1e-4, atol=1e-4)
    step = teachers.step(x.float(), torch.tensor(0.9), torch.tensor(0.5))
    for e, model in enumerate(models):
        alone = integrate(model, x, torch.tensor([0.9, 0.5], dtype=torch.float64))
        torch.testing.assert_close(step[e].double(), alone, rtol=1e-4, atol=1e-4)


def test_students_of_one_point_learn_its_flow():
    """The flow of a single point is linear: the one-step map is known, and both distillations find it."""
    data, z = tensor(3, 4), tensor(200, 4, seed=1)
    teacher = Learned(data[:1], 1e-4)
    exact = integrate(teacher, z, grid())
    for student in (
        consistency([teacher], data, schedule_of(60, 1e-2), 8, 0)[0],
        regression([teacher], schedule_of(300, 3e-2), 32, 0)[0],
    ):
        assert float((student(z) - exact).norm() / exact.norm()) < 0.12


def test_a_student_follows_a_teacher_of_two_far_points():
    """Half of the noise flows to each point; the one-step map must choose as the trajectory does."""
    data = torch.tensor([[4.0, 0.0, 0.0], [-4.0, 0.0, 0.0]], dtype=torch.float64)
    z = tensor(400, 3, seed=1)
    teacher = Learned(data, 1e-4)
    end = integrate(teacher, z, grid())
    made = consistency([teacher], data, schedule_of(60, 1e-2), 40, 0)[0]
    student = made(z)
    assert float((student[:, 0].sign() == end[:, 0].sign()).double().mean()) > 0.97
    twice = made.sample(z, [12], torch.Generator().manual_seed(0))
    assert float((twice.abs()[:, 0] - 4).abs().mean()) < float((student.abs()[:, 0] - 4).abs().mean())


def test_results_have_every_part(outcome):
    found = json.loads(json.dumps(plain(outcome.results), allow_nan=False))
    assert {"losses", "crossover", "trained", "distillation", "sweep", "weighting", "images"} <= set(found)
    assert found["trained"]["capacity"][-1] == 12 and len(found["losses"]["t"]) == 26
    assert len(found["trained"]["ratio"]) == len(found["trained"]["capacity"])
    assert len(found["sweep"]["tuples"]) == 4 and found["images"]["templates"] == "digits"
    assert "reconstruction" in found["status"]["distillation"]
    names = {"teacher", "consistency_1", "consistency_2", "regression_1", "teacher_1", "teacher_2"}
    assert names | {"consistency_1_after_2"} <= set(found["distillation"])
    assert found["distillation"]["teacher"]["error"] == [0.0, 0.0, 0.0]
    assert [s.title for s in outcome.sections if s.reconstruction] == ["Does distillation move the transition?"]


def test_the_same_seed_gives_the_same_results(outcome):
    """To the bit, also if another part is left out."""
    again = run(replace(SMALL, sweep_n=[]), Progress(quiet=True)).results
    for part in ("losses", "crossover", "trained", "distillation", "images"):
        assert json.dumps(plain(again[part])) == json.dumps(plain(outcome.results[part]))
    other = run(replace(SMALL, sweep_n=[], image_n=0, distil_steps=[], seed=1), Progress(quiet=True)).results
    assert other["trained"]["train_loss"] != again["trained"]["train_loss"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"n": 3}, "n"),
        ({"steps": 0}, "steps"),
        ({"memory": 1.0}, "memory"),
        ({"variance": 0.0}, "variance"),
        ({"image_n": 2}, "image_n"),
        ({"sweep_n": [50, 50]}, "sweep_n"),
        ({"sweep_d": []}, "sweep_d"),
        ({"distil_steps": [0]}, "distil_steps"),
        ({"seeds": 0, "sweep_n": [], "image_n": 0}, "seeds"),
    ],
)
def test_settings_that_cannot_be_run(change, key):
    with pytest.raises(InputError) as error:
        check(Settings(**change))
    assert error.value.key == key


@pytest.mark.parametrize(("change", "key"), [({"image_k": 11}, "image_k"), ({"image_source": "cifar10"}, "data.path")])
def test_templates_that_cannot_be_had_are_told_before_anything_is_computed(change, key, monkeypatch):
    monkeypatch.setattr("cdmem.theory.edge.laboratory.references", None)
    with pytest.raises(InputError) as error:
        run(Settings(**change), Progress(quiet=True))
    assert error.value.key == key
