"""Distance to the memorising optimum, by noise level."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cdmem.diffusion.analytic import EmpiricalDenoiser, GaussianDenoiser
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.metrics.whitebox.empirical_optimum import EmpiricalOptimum, distance_to_optimum, training_optimum
from cdmem.metrics.whitebox.loss_gap import OdeEndpoint

GENERATOR = torch.Generator().manual_seed(0)
TRAIN, HELD_OUT = (torch.randint(0, 256, (30, 1, 4, 4), generator=GENERATOR, dtype=torch.uint8) for _ in range(2))
COPIES = torch.arange(30) % 4 + 1
LEVELS = [0.01, 0.3, 1.0, 20.0]


def test_matrix_products_agree_with_direct_differences():
    fast, direct = (kind(to_float(TRAIN), COPIES) for kind in (EmpiricalOptimum, EmpiricalDenoiser))
    for sigma in (0.002, 0.5, 2.0, 80.0):
        x = to_float(TRAIN).double() + sigma * torch.randn(30, 1, 4, 4, generator=GENERATOR, dtype=torch.float64)
        level = torch.full((30,), sigma)
        torch.testing.assert_close(fast(x, level), direct(x, level), rtol=0, atol=1e-9)


def test_the_optimum_is_at_distance_zero():
    best = EmpiricalOptimum(to_float(TRAIN), COPIES)
    exact = EmpiricalDenoiser(to_float(TRAIN), COPIES)
    for side in (TRAIN, HELD_OUT):
        for found in distance_to_optimum(exact, best, side, LEVELS):
            assert found.absolute < 1e-18
    # On T at little noise both vanish: no ratio; on H the reference is the distance to the nearest image.
    assert distance_to_optimum(exact, best, TRAIN, LEVELS)[0].ratio is None
    assert distance_to_optimum(exact, best, HELD_OUT, LEVELS)[0].ratio == pytest.approx(0, abs=1e-15)


def test_the_clean_image_is_at_distance_one_and_batches_do_not_matter():
    best = EmpiricalOptimum(to_float(TRAIN))
    clean = iter(to_float(HELD_OUT).double().split(30))
    found = distance_to_optimum(lambda x, s, c: next(clean), best, HELD_OUT, [1.0])[0]
    assert found.ratio == pytest.approx(1)
    gaussian = GaussianDenoiser.fit(to_float(TRAIN))
    whole, parts = (distance_to_optimum(gaussian, best, TRAIN, LEVELS, batch_size=b, draws=2) for b in (256, 7))
    for a, b in zip(whole, parts):
        assert a.absolute == pytest.approx(b.absolute, rel=1e-9) and a.reference == pytest.approx(
            b.reference, abs=1e-12
        )


def test_a_student_is_compared_with_the_ode_endpoint():
    best = EmpiricalOptimum(to_float(TRAIN))
    phi = OdeEndpoint(best)
    # D* itself is not the endpoint of its ODE; a solver of the same ODE with direct differences is.
    as_student = distance_to_optimum(best, phi, HELD_OUT, [1.0])[0]
    solver = OdeEndpoint(EmpiricalDenoiser(to_float(TRAIN)))
    assert as_student.ratio > 0.01
    assert distance_to_optimum(solver, phi, HELD_OUT, [1.0])[0].absolute < 1e-10


def test_classes_restrict_the_posterior():
    classes = torch.arange(30) % 3
    best = EmpiricalOptimum(to_float(TRAIN), COPIES, classes)
    only = EmpiricalDenoiser(to_float(TRAIN[classes == 1]), COPIES[classes == 1])
    x, level = to_float(HELD_OUT[:4]).double(), torch.full((4,), 1.5)
    torch.testing.assert_close(best(x, level, torch.ones(4, dtype=torch.int64)), only(x, level), rtol=0, atol=1e-9)
    torch.testing.assert_close(best(x, level), EmpiricalDenoiser(to_float(TRAIN), COPIES)(x, level), rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="without training images"):
        best(x, level, torch.full((4,), 3))


def test_mirror_images_belong_to_the_optimum_where_training_mirrors():
    t = SimpleNamespace(images=TRAIN, multiplicities=COPIES, labels=torch.zeros(30, dtype=torch.int64), flip=True)
    best = training_optimum(t, conditional=True)
    mirrored = to_float(TRAIN.flip(-1)).double()
    torch.testing.assert_close(best(mirrored, torch.full((30,), 0.01), t.labels), mirrored, rtol=0, atol=1e-9)
