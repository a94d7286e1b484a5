"""Same seeds through teacher and student, against a float64 reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cdmem.images import to_float, to_uint8
from cdmem.metrics.neighbors import NeighborIndex
from cdmem.metrics.pairing import PairedWithTeacher
from cdmem.metrics.statistics import wilson_interval

SHAPE = (3, 8, 8)


@pytest.fixture
def index():
    generator = torch.Generator().manual_seed(0)
    return NeighborIndex(torch.randint(0, 256, (10, *SHAPE), generator=generator, dtype=torch.uint8))


def pair(n=60, seed=1):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(n, *SHAPE, generator=generator) * 0.6
    return teacher + 0.7 * torch.randn(n, *SHAPE, generator=generator), teacher


def measure(index, student, teacher, batch=1000):
    metric = PairedWithTeacher(index)
    for s, t in zip(student.split(batch), teacher.split(batch)):
        metric.update(s, t)
    return metric.compute()


def basins(index, x):
    rows = index.rows.numpy().astype(np.int64) + 128
    points = to_uint8(x).flatten(1).numpy().astype(np.int64)
    return ((points[:, None] - rows[None]) ** 2).sum(2).argmin(1)


def test_equals_numpy(index):
    student, teacher = pair()
    s, t = (x.numpy().astype(np.float64) for x in (student, teacher))
    found = measure(index, student, teacher)
    assert found["rmse_to_teacher"] == pytest.approx(math.sqrt(((s - t) ** 2).mean()), rel=1e-12)
    assert found["variance_ratio"] == pytest.approx(s.var(0).sum() / t.var(0).sum(), rel=1e-10)
    same = basins(index, student) == basins(index, teacher)
    assert 0 < same.mean() < 1
    assert found["same_basin"] == same.mean()
    assert (found["same_basin_low"], found["same_basin_high"]) == wilson_interval(int(same.sum()), len(same))


@pytest.mark.parametrize("batch", [1, 7, 59])
def test_batches_do_not_matter(index, batch):
    student, teacher = pair()
    assert measure(index, student, teacher, batch) == pytest.approx(measure(index, student, teacher), rel=1e-10)


def test_identical_samples(index):
    _, teacher = pair()
    found = measure(index, teacher, teacher)
    assert (found["rmse_to_teacher"], found["variance_ratio"], found["same_basin"]) == (0.0, 1.0, 1.0)
    assert found["same_basin_high"] == 1.0


@pytest.mark.parametrize("scale", [0.5, 0.9, 2.0])
def test_a_scaled_student_scales_the_variance(index, scale):
    _, teacher = pair()
    found = measure(index, teacher.double() * scale + 0.1, teacher.double())
    assert found["variance_ratio"] == pytest.approx(scale**2, rel=1e-10)
    constant = measure(index, teacher[:1].expand_as(teacher), teacher)
    assert constant["variance_ratio"] == pytest.approx(0.0, abs=1e-12)


def test_a_constant_shift_is_the_rmse(index):
    _, teacher = pair()
    found = measure(index, teacher.double() + 0.25, teacher.double())
    assert found["rmse_to_teacher"] == pytest.approx(0.25, rel=1e-12)
    assert found["variance_ratio"] == pytest.approx(1.0, rel=1e-10)


def test_basins_are_training_images(index):
    train = to_float((index.rows.to(torch.int16) + 128).to(torch.uint8).reshape(10, *SHAPE))
    assert measure(index, train, train.roll(1, 0))["same_basin"] == 0.0
    swapped = train.clone()
    swapped[:4] = train[:4].roll(1, 0)
    assert measure(index, swapped, train)["same_basin"] == 0.6


def test_reset_and_checkpoints(index):
    student, teacher = pair()
    metric = PairedWithTeacher(index)
    metric.update(*pair(seed=5))
    metric.reset()
    metric.update(student, teacher)
    assert metric.compute() == measure(index, student, teacher)
    assert not metric.state_dict() and not list(metric.parameters())
