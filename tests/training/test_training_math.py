"""Tiny real runs on the CPU: gradients, averages, targets, controls, precision."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import support
from cdmem.data.stream import Batch
from cdmem.diffusion import curriculum, ddpm
from cdmem.diffusion.losses import L2, consistency_loss
from cdmem.diffusion.preconditioning import ConsistencyFunction
from cdmem.diffusion.step_noise import StepNoise
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.models.load import load_model
from cdmem.networks.mlp import MLP
from cdmem.training import student, teacher
from cdmem.training.checkpoint import weights_digest

MAKE = {"student": support.make_student, "teacher": support.make_teacher}
KINDS = pytest.mark.parametrize("parameterization", ["edm", "vp"])


def from_teacher(path, **options):
    return support.make_student(**({"teacher": str(path), "network": None} | options))


def sgd(lr):
    return lambda p: torch.optim.SGD(p, lr=lr)


def three():
    """Images and levels, one of each kind."""
    return torch.randn(3, 1, 8, 8, generator=support.rng()), torch.tensor([0.1, 1.0, 10.0])


@pytest.mark.parametrize(
    "check",
    [
        support.check_who_is_optimised,
        support.check_step_follows_the_teacher,
        support.check_target_is_a_consistency_function,
        support.check_sigma_data_is_measured,
        support.check_flips_are_grouped,
        support.check_pair_of_consistency_training,
        support.check_curriculum_follows_the_step,
        support.check_shared_dropout,
        support.check_nan_is_visible,
    ],
    ids=lambda check: check.__name__,
)
def test_statements_about_a_step(check):
    check()


def test_copies_count_in_sigma_data():
    support.check_sigma_data_is_measured([{"fraction": 0.25, "copies": 9}])


# ---- who learns -----------------------------------------------------------------------------------------------------


def test_the_teacher_is_frozen_in_eval_mode_and_unchanged(teacher_file):
    content = Path(teacher_file).read_bytes()
    module = support.fit(from_teacher(teacher_file, mu=0.5), 3)
    frozen = module.teacher.denoiser
    assert weights_digest(frozen) == weights_digest(load_model(teacher_file).function())
    assert Path(teacher_file).read_bytes() == content
    assert not any(m.training for m in frozen.modules())
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    assert not {id(p) for p in frozen.parameters()} & {id(p) for p in module.parameters()}
    assert not any("outside" in key or "teacher" in key for key in module.state_dict())


def test_the_student_starts_from_the_teachers_averaged_weights(teacher_file):
    module = support.fit(from_teacher(teacher_file, mu=0.5, optimizer=sgd(0.0)), 1)
    average = support.flat_weights(load_model(teacher_file).ema.get("ema_2"))
    assert not torch.equal(average, support.flat_weights(load_model(teacher_file).raw.network))
    for network in (module.raw.network, module.target, module.ema.get("ema_2")):
        assert torch.equal(support.flat_weights(network), average)


def test_the_solver_uses_the_chosen_teacher_weights(teacher_file):
    outputs = []
    for weights in (None, "raw"):
        module = support.fit(from_teacher(teacher_file, teacher_weights=weights), 1)
        outputs.append(module.teacher_denoiser(*three()))
        assert torch.equal(outputs[-1], load_model(teacher_file).function(weights)(*three()))
    assert not torch.equal(*outputs)


def test_every_weight_of_the_student_learns():
    """The output layer starts at zero, so the rest has a gradient from the second step on."""
    module = support.fit(support.make_student(support.TrackedStudent, optimizer=sgd(1.0)), 4)
    sizes = [p.numel() for p in module.raw.network.parameters()]
    assert not any(map(torch.equal, module.trail[0].split(sizes), module.trail[-1].split(sizes)))


# ---- averages and target --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_averages_move_once_per_optimizer_step_and_after_it(role, accumulate):
    support.check_averages(accumulate, 4, role)


@pytest.mark.parametrize("name", ["fixed", "sqrt", "doubling"])
def test_adaptive_rate_follows_the_grid_of_the_same_step(name):
    options = {"mu": "adaptive", "mu_start": 0.9, "curriculum": name, "points": 20, "start_points": 2}
    module = support.fit(support.make_student(support.TrackedStudent, **options), 4)
    average = module.trail[0].double()
    for step, weights in enumerate(module.trail[1:]):
        mu = curriculum.adaptive_mu(curriculum.num_points(step, 4, name, 2, 20), 2, 0.9)
        average = mu * average + (1 - mu) * weights.double()
    bound = 16 * support.EPS32 * float(torch.stack(module.trail).abs().max())
    assert float((support.flat_weights(module.target) - average).abs().max()) <= bound


# ---- the loss of a real step ----------------------------------------------------------------------------------------


def prepared(module, **data):
    """Built for its data, not trained."""
    training_set = support.make_data(**data).training_set
    support.hand_over(module, training_set).prepare(training_set)
    return module


@pytest.mark.sensitive
def test_analytic_teacher_trains_a_student_end_to_end():
    """One step from the shared noise comes closer to the end of the exact flow than the untrained network does: to .68
    of its distance, to six digits on every processor.
    """
    options = {"optimizer": lambda p: torch.optim.RAdam(p, lr=3e-3), "lr_schedule": "constant", "ema_half_lives": [10]}
    module = prepared(support.make_student(network=MLP(width=32, depth=2), **options))

    def rmse():
        gap = module.sampler(1, "raw")(range(64)) - module.teacher_sampler()(range(64))
        return gap.square().mean().sqrt().item()

    untrained = rmse()
    support.fit(module, 200, support.make_data(batch_size=16))
    assert rmse() < 0.8 * untrained
    samples = module.sampler(2)(range(5))
    assert samples.shape == (5, 1, 8, 8) and bool(samples.isfinite().all())


def test_inverse_gap_weighting():
    for c in support.Seen(support.make_student(weighting="inverse_gap", distance="l2"), 2).calls:
        plain = L2()(c.outputs["online"][2], c.outputs["target"][2]).detach()
        torch.testing.assert_close(c.loss.detach(), plain / (c.hi - c.lo), rtol=4 * support.EPS32, atol=0)
        assert {t.dtype for t in (c.x_hi, c.x_lo, c.hi, c.lo)} == {torch.float32}


@pytest.mark.parametrize("role", [teacher, student], ids=["teacher", "student"])
def test_dropout_has_the_seeds_of_its_steps(role, monkeypatch):
    """Not those of the training noise: from one seed the bits of masks and pixels would be the same."""
    seeds, real = set(), role.dropout_seed
    monkeypatch.setattr(role, "dropout_seed", lambda device, seed: (seeds.add(seed), real(device, seed))[1])
    support.fit(MAKE[role.__name__.rpartition(".")[2]](), 2)
    assert seeds == {StepNoise(0, step, 4).dropout_seed for step in (0, 1)}


@KINDS
def test_a_gaussian_number_is_a_noise_level(parameterization):
    """EDM: exp(p_mean + p_std z). VP: the level of time 999 Phi(z): known at both ends and, with z = 0, the middle."""
    module = prepared(support.make_teacher(parameterization=parameterization, p_mean=-0.7, p_std=1.5))
    z = torch.tensor([-9.0, 0.0, 9.0])
    sigma = module.sigma(SimpleNamespace(normal=lambda: z)).double()
    expected = (-0.7 + 1.5 * z.double()).exp()
    if parameterization == "vp":
        table = ddpm.VPSchedule().log_sigma
        expected = torch.stack([table[0], table[499:501].mean(), table[-1]]).exp()
    torch.testing.assert_close(sigma, expected, rtol=1e-5, atol=0)


@KINDS
def test_loss_of_an_empty_network(parameterization):
    """Fresh networks answer 0, so D = c_skip x; the weights make the loss that of F, with c_out^2 taken out."""
    data = support.make_data()
    module = prepared(support.make_teacher(parameterization=parameterization, sigma_data=0.6))
    batch = Batch(data.training_set.images, data.training_set.labels, torch.arange(8))
    loss = module.loss(batch, StepNoise(3, 5, 8)).double()
    draws = StepNoise(3, 5, 8)
    sigma, eps = module.sigma(draws).double(), draws.normal((1, 8, 8)).double()
    x0, s2, d2 = to_float(batch.image).double(), (sigma**2)[:, None, None, None], 0.6**2
    error = (d2 / (s2 + d2) * (x0 + s2.sqrt() * eps) - x0).square().mean((1, 2, 3)) * (sigma**2 + d2) / (sigma**2 * d2)
    expected = error if parameterization == "edm" else eps.square().mean((1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


# ---- precision ------------------------------------------------------------------------------------------------------


def test_mixed_precision_leaves_the_teachers_step_alone(teacher_file):
    """The student computes in bfloat16, its teacher does not: x_lo is that of a float32 run bit for bit."""
    calls = [support.Seen(from_teacher(teacher_file), 1, precision=p).calls[0] for p in ("32-true", "bf16-mixed")]
    assert torch.equal(calls[0].x_lo, calls[1].x_lo)
    assert not torch.equal(calls[0].outputs["online"][2], calls[1].outputs["online"][2])


def test_mixed_precision_gradients_survive_the_goal():
    """Autocast caches cast weights: casts made for the goal, without gradient, must not be used for the student."""
    gradients = []
    for enabled in (False, True):
        network = support.small_network()
        f = ConsistencyFunction(network, support.edm())
        x, s = torch.randn(4, 1, 4, 4, generator=support.rng()), torch.tensor([1.0, 2.0, 3.0, 4.0])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = consistency_loss(f, f, x, 0.5 * x, s, 0.5 * s, L2())
        loss.sum().backward()
        assert all(p.grad is not None for p in network.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    # bfloat16 has 8 bits: relative error of the whole gradient of a few per cent.
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.1


# ---- networks and teachers of other kinds ---------------------------------------------------------------------------


def test_vp_teacher_hands_down_its_form_and_its_classes(tmp_path):
    vp_teacher = support.fit(support.make_teacher(parameterization="vp", conditional=True), 2)
    vp_teacher.trainer.save_checkpoint(tmp_path / "vp.ckpt")
    module = support.fit(from_teacher(tmp_path / "vp.ckpt"), 2)
    assert module.record.parameterization == "vp" and module.num_classes == 10
    assert module.sigma_min == pytest.approx(0.01, rel=1e-3)
    x, labels = three()[0], torch.tensor([1, 2, 3])
    assert torch.equal(module.raw(x, torch.full((3,), module.sigma_min), labels), x)
    assert module.sampler(2)(range(3)).shape == (3, 1, 8, 8)


def test_a_network_of_its_own_starts_from_random_weights(teacher_file):
    config = MLP(width=32, depth=1)
    module = support.fit(from_teacher(teacher_file, network=config, optimizer=sgd(0.0)), 1)
    fresh = config.build(module.shape, module.record.label_rows, module.training_seed)
    assert torch.equal(support.flat_weights(module.raw.network), support.flat_weights(fresh))
    assert module.record.network["init_args"]["width"] == 32 and module.teacher_digest is not None


def test_student_dropout_replaces_the_teachers(tmp_path):
    dropping = support.fit(support.make_teacher(network=MLP(width=16, depth=1, dropout=0.5)), 1)
    dropping.trainer.save_checkpoint(tmp_path / "dropout.ckpt")
    module = support.fit(from_teacher(tmp_path / "dropout.ckpt", dropout=0.1), 1)
    assert {m.p for m in module.raw.network.modules() if isinstance(m, nn.Dropout)} == {0.1}


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"teacher": None}, "teacher"),
        ({"network": None}, "network"),
        ({"teacher": None, "training": True, "data": "teacher_samples"}, "data.images"),
        *(({"mid_sigmas": levels}, "mid_sigmas") for levels in ([80.0], [1.0, 1.0], [0.0], [0.8, 0.0])),
        ({"points": 1}, "method.points"),
        ({"start_points": 0}, "method.start_points"),
        ({"start_points": 19}, "method.start_points"),
        ({"mu": 1.0}, "method.mu"),
        ({"mu": -0.1}, "method.mu"),
        ({"dropout": -0.1}, "method.dropout"),
        ({"dropout": 1.0}, "method.dropout"),
        ({"distance": 7}, "method.distance"),
        ({"ema_half_lives": []}, "averaging.half_lives"),
        ({"ema_half_lives": [0]}, "averaging.half_lives"),
        ({"weights": "ema_7"}, "averaging.weights"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(options, key):
    with pytest.raises(InputError, match=rf"^model\.{key}="):
        support.make_student(**options)


def test_smallest_settings_are_taken():
    support.make_student(points=2, start_points=2, mu=0.0, mid_sigmas=[])
    support.make_student(points=2, start_points=1, mu=0.99, mid_sigmas=[79.0, 0.003], ema_half_lives=[1])
    support.make_teacher(sampler_points=2, conditional=True, label_dropout=0.99)
    with pytest.raises(InputError, match=r"^model\.sampling\.points="):
        support.make_teacher(sampler_points=1)


@pytest.mark.parametrize(("name", "points"), [("fixed", 18), ("sqrt", 19), ("doubling", 19)])
def test_a_record_names_the_last_grid(name, points):
    """s1 is the number of points where it is fixed, of intervals where it grows."""
    method = support.make_student(curriculum=name, mu=0.5).method
    assert method.grid_points() == points == curriculum.num_points(100, 100, name, 2, 18)
