"""Tiny real runs on the CPU: gradients, averages, targets, controls, precision, resuming, refusals."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

import support
from cdmem.data.stream import Batch
from cdmem.diffusion import curriculum, ddpm, noise
from cdmem.diffusion.losses import L2, consistency_loss
from cdmem.diffusion.preconditioning import ConsistencyFunction
from cdmem.diffusion.solvers import SOLVERS
from cdmem.diffusion.step_noise import StepNoise
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.models.load import load_model
from cdmem.networks.mlp import MLP
from cdmem.networks.unet import UNet
from cdmem.training.record import ModelRecord
from cdmem.training.student import Student
from support.settings import built

SETTINGS = {"max_epochs": -1}


def digest(module):
    tensors = [v.cpu().contiguous().numpy().tobytes() for _, v in sorted(module.state_dict().items())]
    return hashlib.sha256(b"".join(tensors)).hexdigest()


def saved(module, path):
    module.trainer.save_checkpoint(path)
    return str(path)


def trained_teacher(path, steps=2, data=None, **options):
    return saved(support.fit(support.make_teacher(**options), steps, data), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(scope="module")
def teacher_file(folder):
    return trained_teacher(folder / "teacher.ckpt")


@pytest.fixture(scope="module")
def vp_teacher_file(folder):
    return trained_teacher(folder / "vp.ckpt", parameterization="vp", conditional=True)


def from_teacher(path, **options):
    default = {"teacher": path, "ema_half_lives": [2], "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    return Student(**built("student", **(default | options)))


# ---- who learns -----------------------------------------------------------------------------------------------------


def test_only_the_student_is_optimised():
    support.check_who_is_optimised()


def test_the_teacher_is_frozen_in_eval_mode_and_unchanged(teacher_file):
    file_before = hashlib.sha256(Path(teacher_file).read_bytes()).hexdigest()
    module = from_teacher(teacher_file, mu=0.5)
    frozen = []

    class Watched(type(module)):
        def setup(self, stage):
            super().setup(stage)
            frozen.append(digest(self.teacher.denoiser))

    module.__class__ = Watched
    support.fit(module, 3)
    frozen_teacher = module.teacher.denoiser
    assert digest(frozen_teacher) == frozen[0]
    assert hashlib.sha256(Path(teacher_file).read_bytes()).hexdigest() == file_before
    assert not any(m.training for m in frozen_teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in frozen_teacher.parameters())
    assert not any(m.training for m in module.teacher_denoiser.modules())
    held = {id(p) for p in frozen_teacher.parameters()}
    assert not held & {id(p) for p in module.parameters()}
    assert not any("outside" in key or "teacher" in key for key in module.state_dict())


def test_the_student_starts_from_the_teachers_averaged_weights(teacher_file):
    module = from_teacher(teacher_file, mu=0.5, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    support.fit(module, 1)
    average = support.flat_weights(load_model(teacher_file).ema.get("ema_2"))
    assert not torch.equal(average, support.flat_weights(load_model(teacher_file).raw.network))
    for network in (module.raw.network, module.target, module.ema.get("ema_2")):
        assert torch.equal(support.flat_weights(network), average)


def test_the_solver_uses_the_chosen_teacher_weights(teacher_file):
    x, sigma = torch.randn(3, 1, 8, 8, generator=support.rng()), torch.tensor([0.1, 1.0, 10.0])
    outputs = []
    for weights in (None, "raw"):
        module = support.fit(from_teacher(teacher_file, teacher_weights=weights), 1)
        outputs.append(module.teacher_denoiser(x, sigma))
        expected = load_model(teacher_file).function(weights)(x, sigma)
        assert torch.equal(outputs[-1], expected)
    assert not torch.equal(*outputs)


def test_every_weight_of_the_student_learns():
    """The output layer starts at zero, so the rest has a gradient from the second step on."""
    module = support.make_student(optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    before = {}

    class Remember(type(module)):
        def setup(self, stage):
            super().setup(stage)
            before.update({n: p.detach().clone() for n, p in self.raw.network.named_parameters()})

    module.__class__ = Remember
    support.fit(module, 4)
    same = [n for n, p in module.raw.network.named_parameters() if torch.equal(p, before[n])]
    assert same == []


# ---- averages and target --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_averages_move_once_per_optimizer_step_and_after_it(role, accumulate):
    support.check_averages(accumulate, 4, role)


def test_without_a_rate_the_target_is_the_student():
    module = support.make_student(mu=0.0)
    seen = support.Seen(module, 2)
    assert module.target is None
    x, sigma = torch.randn(3, 1, 8, 8, generator=support.rng()), torch.tensor([0.1, 1.0, 10.0])
    support.scramble(module.raw.network)
    call = seen.calls[-1]
    with torch.no_grad():
        assert torch.equal(call.target(x, sigma), call.online(x, sigma))
        assert torch.equal(call.target(x, sigma), module.raw(x, sigma))


@pytest.mark.parametrize("name", ["fixed", "sqrt", "doubling"])
def test_adaptive_rate_follows_the_grid_of_the_same_step(name):
    module = support.make_student(
        support.TrackedStudent, mu="adaptive", mu_start=0.9, curriculum=name, points=20, start_points=2
    )
    support.fit(module, 4)
    average = module.trail[0].double()
    for step, weights in enumerate(module.trail[1:]):
        mu = curriculum.adaptive_mu(curriculum.num_points(step, 4, name, 2, 20), 2, 0.9)
        average = mu * average + (1 - mu) * weights.double()
    bound = 16 * support.EPS32 * float(torch.stack(module.trail).abs().max())
    assert float((support.flat_weights(module.target) - average).abs().max()) <= bound


# ---- the loss of a real step ----------------------------------------------------------------------------------------


def test_steps_follow_the_teachers_flow():
    support.check_step_follows_the_teacher()


def test_goal_is_the_targets_consistency_function():
    support.check_target_is_a_consistency_function()


def test_sigma_data_is_the_standard_deviation_of_the_training_pixels():
    support.check_sigma_data_is_measured()
    support.check_sigma_data_is_measured([{"fraction": 0.25, "copies": 9}])


def test_mirror_images_are_one_group():
    support.check_flips_are_grouped()


@pytest.mark.sensitive
def test_analytic_teacher_trains_a_student_end_to_end():
    """One step from the shared noise comes closer to the end of the exact flow than the untrained network does: to .68
    of its distance, to six digits on every processor.
    """
    module = support.make_student(
        network=MLP(width=32, depth=2),
        optimizer=lambda p: torch.optim.RAdam(p, lr=3e-3),
        lr_schedule="constant",
        ema_half_lives=[10],
    )
    errors = []

    def rmse():
        gap = module.sampler(1, "raw")(range(64)) - module.teacher_sampler()(range(64))
        errors.append(gap.square().mean().sqrt().item())

    class Before(pl.Callback):
        def on_train_start(self, *_):
            rmse()

    support.fit(module, 200, support.make_data(batch_size=16), callbacks=[Before()])
    rmse()
    assert errors[1] < 0.8 * errors[0]
    samples = module.sampler(2)(range(5))
    assert samples.shape == (5, 1, 8, 8) and bool(samples.isfinite().all())


@pytest.mark.parametrize("name", ["analytic:empirical", "analytic:gaussian", "analytic:partial:0.5"])
def test_every_analytic_teacher_distils(name):
    module = support.fit(support.make_student(teacher=name), 2)
    assert bool(support.flat_weights(module.raw.network).isfinite().all())


def test_consistency_training_steps_towards_the_image_itself():
    support.check_pair_of_consistency_training()


def test_resume_of_the_curriculum():
    support.check_curriculum_follows_the_step()


def test_inverse_gap_weighting():
    module = support.make_student(weighting="inverse_gap", distance="l2")
    seen = support.Seen(module, 2)
    for c in seen.calls:
        plain = L2()(c.outputs["online"][2], c.outputs["target"][2]).detach()
        torch.testing.assert_close(c.loss.detach(), plain / (c.hi - c.lo), rtol=4 * support.EPS32, atol=0)


def test_dropout_is_shared_between_student_and_target():
    support.check_shared_dropout()


def test_dropout_noise_is_not_the_training_noise(monkeypatch):
    """Masks and pixels come from different seeds; from one seed their bits would be the same."""
    from cdmem.training import student, teacher

    for module, role in ((support.make_teacher(), teacher), (support.make_student(), student)):
        seeds, noises = [], []
        real = role.dropout_seed
        with monkeypatch.context() as m:
            m.setattr(role, "dropout_seed", lambda device, seed, r=real, s=seeds: (s.append(seed), r(device, seed))[1])
            step_noise = type(module).step_noise
            m.setattr(
                type(module),
                "step_noise",
                lambda self, *a, f=step_noise, n=noises: (n.append(f(self, *a)), n[-1])[1],
            )
            support.fit(module, 2)
        assert seeds and noises
        assert not set(seeds) & {n.seed for n in noises}


# ---- samplers and noise levels -----------------------------------------------------------------------------------


def prepared(module, **data):
    """Built for its data, not trained."""
    training_set = support.make_data(**data).training_set
    support.hand_over(module, training_set).prepare(training_set)
    return module


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


def test_a_teacher_walks_the_students_levels_by_euler_steps(teacher_file):
    student = prepared(from_teacher(teacher_file))
    for sampler in (prepared(support.make_teacher()).few_step_sampler([2.0]), student.teacher_few_step_sampler([2.0])):
        assert sampler.sigmas.tolist() == [80.0, 2.0, 0.0] and sampler.nfe == 2
    assert prepared(support.make_student()).teacher_few_step_sampler([2.0]) is None


@pytest.mark.parametrize(("nfe", "levels"), [(None, []), (1, []), (2, [2.0]), (3, [2.0, 0.5])])
def test_a_student_renoises_to_its_first_levels(nfe, levels):
    module = prepared(support.make_student(mid_sigmas=[2.0, 0.5]))
    sampler = module.sampler(nfe)
    assert (list(sampler.mid_sigmas), sampler.sigma_max, sampler.sigma_min) == (levels, 80.0, 0.002)
    assert sampler.nfe == 1 + len(levels) and module.default_nfe == [1, 2, 3]
    for wrong in (0, 4):
        with pytest.raises(InputError, match=r"^nfe="):
            module.sampler(wrong)


@pytest.mark.parametrize("parameterization", ["edm", "vp"])
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


@pytest.mark.parametrize("parameterization", ["edm", "vp"])
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


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_mixed_precision_run_keeps_weights_and_boundary_in_float32(mu):
    module = support.make_student(mu=mu)
    seen = support.Seen(module, 3, precision="bf16-mixed")
    assert all(p.dtype == torch.float32 for p in module.parameters())
    for c in seen.calls:
        for tensor in (c.x_hi, c.x_lo, c.hi, c.lo, c.loss, *(o[2] for o in c.outputs.values())):
            assert tensor.dtype == torch.float32
    x = torch.randn(3, 1, 8, 8, generator=support.rng())
    lowest = torch.full((3,), module.sigma_min)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.raw(x, lowest), x)
    assert torch.equal(module.function()(x, lowest), x)


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


def test_a_diverged_run_says_so():
    support.check_nan_is_visible()


# ---- teachers of other kinds ----------------------------------------------------------------------------------------


def test_vp_teacher_hands_down_its_form_and_its_classes(vp_teacher_file):
    module = support.fit(from_teacher(vp_teacher_file), 2)
    assert module.record.parameterization == "vp" and module.num_classes == 10
    assert module.sigma_min == pytest.approx(0.01, rel=1e-3)
    x = torch.randn(3, 1, 8, 8, generator=support.rng())
    labels = torch.tensor([1, 2, 3])
    assert torch.equal(module.raw(x, torch.full((3,), module.sigma_min), labels), x)
    assert module.sampler(2)(range(3)).shape == (3, 1, 8, 8)


def test_unet_runs():
    network = UNet(channels=[8, 16], layers=1, norm_groups=4)
    module = support.fit(support.make_student(network=network), 1)
    assert module.sampler()(range(2)).shape == (2, 1, 8, 8)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [{"n": 4}, {"subset_seed": 5}, {"duplication": [{"fraction": 0.25, "copies": 3}]}, {"flip": True}],
    ids=["n", "seed", "copies", "flip"],
)
def test_a_teacher_of_other_data_is_refused(teacher_file, data):
    with pytest.raises(InputError, match="another training set") as caught:
        support.fit(from_teacher(teacher_file), 1, support.make_data(**data))
    assert caught.value.key == "model.teacher"


def test_a_teacher_of_another_shape_is_refused(teacher_file):
    with pytest.raises(InputError, match="shape") as caught:
        support.fit(from_teacher(teacher_file), 1, support.make_data(resolution=4))
    assert caught.value.key == "model.teacher"


def test_a_student_is_no_teacher(tmp_path):
    path = saved(support.fit(support.make_student(), 1), tmp_path / "student.ckpt")
    with pytest.raises(InputError, match="is a student") as caught:
        support.fit(from_teacher(path), 1)
    assert caught.value.key == "model.teacher"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"teacher": None}, "model.teacher"),
        ({"network": None}, "model.network"),
        ({"teacher": None, "training": True, "data": "teacher_samples"}, "model.data.images"),
        *(({"mid_sigmas": levels}, "model.mid_sigmas") for levels in ([80.0], [1.0, 1.0], [0.0], [0.8, 0.0])),
        ({"points": 1}, "model.method.points"),
        ({"start_points": 0}, "model.method.start_points"),
        ({"start_points": 19}, "model.method.start_points"),
        ({"mu": 1.0}, "model.method.mu"),
        ({"mu": -0.1}, "model.method.mu"),
        ({"dropout": -0.1}, "model.method.dropout"),
        ({"dropout": 1.0}, "model.method.dropout"),
        ({"distance": 7}, "model.method.distance"),
        ({"ema_half_lives": []}, "model.averaging.half_lives"),
        ({"ema_half_lives": [0]}, "model.averaging.half_lives"),
        ({"weights": "ema_7"}, "model.averaging.weights"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(options, key):
    with pytest.raises(InputError) as caught:
        support.make_student(**options)
    assert caught.value.key == key


def test_a_network_of_its_own_starts_from_random_weights(teacher_file):
    config = MLP(width=32, depth=1)
    module = support.fit(from_teacher(teacher_file, network=config, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)), 1)
    fresh = config.build(module.shape, module.record.label_rows, module.training_seed)
    assert torch.equal(support.flat_weights(module.raw.network), support.flat_weights(fresh))
    assert module.record.network["init_args"]["width"] == 32 and module.teacher_digest is not None


@pytest.mark.parametrize("network", [MLP(width=16, depth=1, dropout=-0.1), UNet(channels=[8], dropout=1.5)])
def test_a_network_that_torch_refuses_is_one_line(network):
    with pytest.raises(InputError, match="cannot be built") as caught:
        support.make_teacher(network=network).prepare(support.make_data().training_set)
    assert caught.value.key == "model.network"


def test_a_student_is_handed_its_teacher(teacher_file):
    with pytest.raises(InputError, match="not handed over") as caught:
        from_teacher(teacher_file).prepare(support.make_data().training_set)
    assert caught.value.key == "model.teacher"


def test_a_run_needs_an_end():
    with pytest.raises(InputError) as caught:
        support.fit(support.make_student(), -1, **SETTINGS)
    assert caught.value.key == "trainer.max_steps"


@pytest.mark.parametrize("levels", [[2.0], [3.0, 1.0], [1.0, 0.5]])
def test_levels_outside_the_teachers_range_are_refused(levels):
    """A teacher from elsewhere may end below 80 and start above 0.002."""
    module = support.make_student(mid_sigmas=levels)
    sampler = {"solver": "consistency", "points": 18, "mid_sigmas": levels}
    record = ModelRecord("student", (1, 4, 4), 0, 0.5, 0.5, 2.0, "edm", {}, sampler, "raw")
    with pytest.raises(InputError, match="must lie between") as caught:
        module.assemble_student(record, support.small_network())
    assert caught.value.key == "model.mid_sigmas"


@pytest.mark.parametrize(("name", "points"), [("fixed", 18), ("sqrt", 19), ("doubling", 19)])
def test_a_record_names_the_last_grid(name, points):
    """s1 is the number of points where it is fixed, of intervals where it grows."""
    method = support.make_student(curriculum=name, mu=0.5).method
    assert method.grid_points() == points == curriculum.num_points(100, 100, name, 2, 18)


def test_classes_need_labels():
    with pytest.raises(InputError, match=r"^model\.conditional="):
        support.make_teacher(conditional=True).prepare(support.make_training_set(support.random_images(4)))


def test_smallest_settings_are_taken():
    support.make_student(points=2, start_points=2, mu=0.0, mid_sigmas=[])
    support.make_student(points=2, start_points=1, mu=0.99, mid_sigmas=[79.0, 0.003], ema_half_lives=[1])
    support.make_teacher(sampler_points=2, conditional=True, label_dropout=0.99)
    with pytest.raises(InputError, match=r"^model\.sampling\.points="):
        support.make_teacher(sampler_points=1)


def test_student_dropout_replaces_the_teachers(folder):
    path = trained_teacher(folder / "dropout.ckpt", network=MLP(width=16, depth=1, dropout=0.5))
    module = support.fit(from_teacher(path, dropout=0.1), 1)
    assert {m.p for m in module.raw.network.modules() if isinstance(m, nn.Dropout)} == {0.1}
