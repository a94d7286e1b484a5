"""The white-box callback: keys, who knows T, real runs of teacher and student, the same on every call."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import support
from callbacks import Cadence, WhiteboxCallback
from callbacks.whitebox import Remembered
from cdmem.diffusion.analytic import EmpiricalDenoiser, GaussianDenoiser
from cdmem.diffusion.noise import sampler_sigmas
from cdmem.diffusion.sampling import OdeSampler
from cdmem.diffusion.solvers import heun_step
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.metrics.whitebox.loss_gap import OdeEndpoint
from cdmem.metrics.whitebox.record import SIGMAS, whitebox_record
from cdmem.seeds import first_sample

SHAPE = (1, 4, 4)
T = support.make_training_set(support.random_images(20, SHAPE), held_out=support.random_images(24, SHAPE, seed=1))


def fake(function, role="teacher", teacher=None):
    """What the callback asks of a module."""
    sampler = OdeSampler(EmpiricalDenoiser(to_float(T.images)), sampler_sigmas(8), heun_step, SHAPE)
    module = SimpleNamespace(
        role=role,
        num_classes=0,
        shape=SHAPE,
        sampling_seed=3,
        device=torch.device("cpu"),
        sigma_min=0.002,
        function=lambda weights=None: function,
        sampler=lambda nfe=None, weights=None: sampler,
        teacher_denoiser=teacher,
        move_teacher=lambda: None,
    )
    return SimpleNamespace(module=module, training_set=T)


def measured(sigmas, *model):
    return WhiteboxCallback(sigmas, cadence=Cadence(samples=4)).measure(fake(*model))


def test_the_optimum_is_caught():
    values = measured([0.05, 0.5, 50], EmpiricalDenoiser(to_float(T.images)))
    assert values["auc_s0.05"] == 1 and values["tpr1_s0.05"] == 1 and values["loss_gap_low_s0.05"] > 0
    assert abs(values["loss_gap_s50"]) < 0.2 * values["loss_gap_s0.05"]
    assert values["optimum_heldout_s0.05"] < 1e-12 and values["optimum_s50"] < 1e-12
    assert "optimum_s0.05" not in values  # 0 / 0
    assert values["optimum_mse_s0.05"] < 1e-25
    assert abs(values["lid_s0.05"]) < 1e-6


def test_the_gaussian_is_not():
    generator = torch.Generator().manual_seed(0)
    smooth = GaussianDenoiser.fit(torch.rand(400, *SHAPE, generator=generator) * 2 - 1)
    values = measured([0.5], smooth)
    assert values["auc_low_s0.5"] < 0.5 < values["auc_high_s0.5"]
    assert values["optimum_heldout_s0.5"] > 0.1 and values["lid_s0.5"] > 1


def test_the_exact_student_ends_where_its_teacher_does():
    teacher = EmpiricalDenoiser(to_float(T.images))
    values = measured([0.1, 1.0], OdeEndpoint(teacher), "student", teacher)
    assert values["endpoint_s1"] == values["endpoint_heldout_s1"] == 0
    assert values["optimum_f_heldout_s0.1"] < 1e-10
    assert values["auc_f_s0.1"] == 1
    assert not any(key.startswith(("auc_s", "lid_s", "loss_gap_s", "optimum_s")) for key in values)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_audit_measures_the_same(role):
    """Same model, seeds and levels: the numbers of the audit's record are those that are logged, to the bit."""
    denoiser = EmpiricalDenoiser(to_float(T.images))
    function, teacher = (denoiser, None) if role == "teacher" else (OdeEndpoint(denoiser), denoiser)
    evaluation = fake(function, role, teacher)
    seeds = torch.arange(first_sample(3), first_sample(3) + 4)
    samples, hit = evaluation.module.sampler()(seeds.tolist(), "cpu"), torch.tensor([True, False, True, False])
    record = whitebox_record(evaluation.module, T, teacher and fake(teacher).module, samples, seeds, hit, "cpu")
    values, suffix = measured(SIGMAS, function, role, teacher), "" if role == "teacher" else "_f"
    for k, s in enumerate(SIGMAS):
        gap, optimum, lid = (record[f"{name}{suffix}"] for name in ("loss_gap", "optimum", "lid"))
        assert gap[k]["gap"]["value"] == values[f"loss_gap{suffix}_s{s:g}"]
        assert gap[k]["auc"]["ci95"] == [values[f"auc{suffix}_{end}_s{s:g}"] for end in ("low", "high")]
        assert gap[k]["tpr_at_1_fpr"]["value"] == values[f"tpr1{suffix}_s{s:g}"]
        assert optimum["held_out"][k]["ratio"] == values[f"optimum{suffix}_heldout_s{s:g}"]
        assert lid[k]["median"] == values[f"lid{suffix}_s{s:g}"]
        if teacher:
            assert record["endpoint"][k]["held_out"] == values[f"endpoint_heldout_s{s:g}"]
    assert set(record) == {"images", *(f"{name}{suffix}" for name in ("loss_gap", "optimum", "lid"))} | (
        {"endpoint"} if teacher else {"secmi", "pia"}
    )


def test_frozen_values_are_computed_once():
    calls = []

    def frozen(x, sigma, labels=None):
        calls.append(labels)
        return 2 * x

    remembered, x = Remembered(frozen), torch.ones(2, 1, 2, 2)
    for labels in (None, torch.tensor([0, 1]), None, torch.tensor([0, 1])):
        assert torch.equal(remembered(x, torch.ones(2), labels), 2 * x)
    remembered(x, 2 * torch.ones(2))
    assert len(calls) == 3


def run(module, callback, **data):
    support.fit(module, 2, support.make_data(**data), callbacks=[callback])
    first, second = (callback.run(module.trainer, module) for _ in range(2))
    assert first == second
    assert all(key.startswith("internal/") for key in first)
    return first


def test_teacher_run_with_classes():
    values = run(support.make_teacher(conditional=True), WhiteboxCallback(cadence=Cadence(3, 1)), balance=True, n=20)
    for s in ("0.1", "0.5", "2"):
        assert values[f"internal/auc_low_s{s}"] <= values[f"internal/auc_s{s}"] <= values[f"internal/auc_high_s{s}"]
        assert f"internal/lid_s{s}" in values and f"internal/tpr1_s{s}" in values
        assert values[f"internal/optimum_heldout_s{s}"] > 0


def test_student_run():
    values = run(support.make_student(), WhiteboxCallback([5.0], cadence=Cadence(3, 1)))
    spread, sides = ("loss_gap_f", "auc_f", "tpr1_f", "endpoint_gap"), ("optimum_mse_f", "optimum_f", "endpoint")
    wanted = {f"{name}{end}" for name in spread for end in ("", "_low", "_high")} | {"lid_f"}
    wanted |= {f"{name}{end}" for name in sides for end in ("", "_heldout")}
    assert {key.removeprefix("internal/").removesuffix("_s5") for key in values} == wanted


def test_held_out_classes_that_training_lacks():
    """Two images of T have at most two classes; the optimum of the others does not exist."""
    callback = WhiteboxCallback([1.0], cadence=Cadence(2, 1))
    values = run(support.make_teacher(conditional=True), callback, n=2, held_out=20)
    assert "internal/optimum_mse_s1" in values and "internal/optimum_mse_heldout_s1" not in values


def test_unusable_settings_are_refused():
    with pytest.raises(InputError, match="must be positive"):
        WhiteboxCallback(sigmas=[0.0])
    with pytest.raises(InputError, match="2 images"):
        WhiteboxCallback(images=1)
    with pytest.raises(InputError, match="held-out images"):
        support.fit(support.make_teacher(), 2, support.make_data(held_out=0), callbacks=[WhiteboxCallback()])
