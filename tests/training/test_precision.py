"""In bf16-mixed and 16-mixed the network F computes in low precision and nothing else does."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from itertools import pairwise

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

import support
from cdmem.cli.fit import run_trainer_command
from cdmem.diffusion import noise, preconditioning
from cdmem.diffusion.sampling import ConsistencySampler, OdeSampler
from cdmem.errors import InputError
from cdmem.networks.unet import UNet
from cdmem.training import student
from cdmem.training.engine import check_precision
from support.settings import nested

LOW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
LOWS = pytest.mark.parametrize("precision", list(LOW))
ROLES = pytest.mark.parametrize("role", ["teacher", "student"])


def plugin(precision):
    """Lightning's own plugin, whose float16 runs on a CPU where the flag 16-mixed does not."""
    return [] if precision == "32-true" else [MixedPrecision(precision, "cpu")]


def make(role, **options):
    return support.make_teacher(**options) if role == "teacher" else support.make_student(**({"mu": 0.75} | options))


# ---- every stage ----------------------------------------------------------------------------------------------------


def watch(network, name, seen):
    """Note what a network gets, whether autocast is on, and what its layers and itself return."""

    def before(_, args):
        seen[name, "inputs"] |= {a.dtype for a in args if isinstance(a, torch.Tensor)}
        seen[name, "autocast"].add(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))

    network.register_forward_pre_hook(before)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, args, out: seen[name, "layers"].add(out.dtype))


@LOWS
def test_types_at_every_stage_of_a_distillation(precision, teacher_file):
    low, seen = LOW[precision], defaultdict(set)

    class Watched(student.Student):
        def on_train_start(self):
            super().on_train_start()
            watch(self.raw.network, "student", seen)
            watch(self.target, "target", seen)
            watch(self.teacher_denoiser.network, "teacher", seen)
            self.raw.register_forward_hook(lambda _, args, out: seen["student", "output"].add(out.dtype))

        def on_before_optimizer_step(self, optimizer):
            seen["gradients"] |= {p.grad.dtype for p in self.raw.network.parameters()}

    module = support.make_student(Watched, teacher=teacher_file, network=None, mu=0.5)
    calls = support.Seen(module, 3, plugins=plugin(precision)).calls
    full = {torch.float32}
    for name in ("student", "target", "teacher"):
        assert seen[name, "inputs"] == full, name  # c_in x and c_noise
    assert seen["student", "autocast"] == seen["target", "autocast"] == {low}
    assert seen["student", "layers"] == seen["target", "layers"] == {low}
    assert seen["teacher", "autocast"] == {False} and seen["teacher", "layers"] == full
    assert seen["student", "output"] == seen["gradients"] == full
    for c in calls:
        every = [c.x_hi, c.x_lo, c.hi, c.lo, c.loss, *(out for _, _, out in c.outputs.values())]
        assert {t.dtype for t in every} == full
    kept = [*module.state_dict().values(), *(v for s in module.optimizers().state.values() for v in s.values())]
    assert {t.dtype for t in kept if t.is_floating_point()} == full


# ---- how much is lost -----------------------------------------------------------------------------------------------


def rms(x):
    return float(x.double().square().mean().sqrt())


def all_in_bf16(network, x, sigma):
    """What ports do that cast images and factors as well."""
    c = [v.bfloat16() for v in support.edm().consistency(sigma)]
    x = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        raw = network(noise.expand(c[2], x) * x, c[3].float()).bfloat16()
    return (noise.expand(c[0], x) * x + noise.expand(c[1], x) * raw).float()


@pytest.mark.parametrize("sigma", [0.002, 0.01, 0.05, 0.2, 1.0, 5.0, 80.0])
def test_low_precision_costs_what_the_network_loses_and_no_more(sigma):
    """Setting: the 0.36 M parameter U-Net for 8x8 images at its random start, data of std 1/2; error of f in rms."""
    network = UNet(channels=[24, 48], layers=1).build((1, 8, 8), 0, 0)
    torch.manual_seed(0)
    network.unet.conv_out.reset_parameters()
    f = preconditioning.ConsistencyFunction(network.eval(), support.edm())
    x = 0.5 * torch.randn(64, 1, 8, 8, generator=support.rng(0))
    x, level = x + sigma * torch.randn(64, 1, 8, 8, generator=support.rng(1)), torch.full((64,), sigma)
    c = f.scalings(level)
    with torch.no_grad():
        plain, careless = f(x, level), all_in_bf16(network, x, level)
        inputs = noise.expand(c.c_in, x) * x, c.c_noise
        f32 = network(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            mixed, f16 = f(x, level), network(*inputs).float()
    lost = rms(mixed - plain)
    assert lost <= float(c.c_out[0]) * rms(f16 - f32) + 4 * support.EPS32 * rms(plain)
    assert rms(careless - plain) > 1.02 * lost
    if 0.01 <= sigma <= 0.2:
        # Where the student's answer is mostly x itself, which must not be rounded.
        assert lost <= 8.3e-4 < rms(careless - plain)


# ---- real runs ------------------------------------------------------------------------------------------------------

CLASSES = {"teacher": "cdmem.training.DiffusionTeacher", "student": "cdmem.training.Student"}


def command(folder, role, precision, **arguments):
    quality = {"class_path": "callbacks.QualityCallback", "init_args": {"cadence": {"samples": 16, "points": 1}}}
    config = {
        "threads": 1,
        "wandb": False,
        "data": {"n": 8, "held_out": 16, "batch_size": 8},
        "model": {"class_path": CLASSES[role], "init_args": nested(role, ema_half_lives=[4], **arguments)},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 25,
            "precision": precision,
            "log_every_n_steps": 5,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [quality],
        },
    }
    run = folder / f"{role}-{precision}"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert run_trainer_command("fit", ["--config", str(folder / "config.yaml"), "--run_dir", str(run)]) == 0
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def raw_weights(checkpoint):
    return torch.cat([v.flatten() for k, v in checkpoint["state_dict"].items() if k.startswith("raw.")])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Teacher and student by the command line, in float32 and in bfloat16; both students of the float32 teacher."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    network = {"class_path": "cdmem.networks.MLP", "init_args": {"width": 32, "depth": 1}}
    arguments = {
        "teacher": {"network": network, "sampler_points": 4},
        "student": {"teacher": str(folder / "teacher-32-true"), "points": 4},
    }
    for role, given in arguments.items():
        optimizer = {
            "class_path": "torch.optim." + ("Adam" if role == "teacher" else "RAdam"),
            "init_args": {"lr": 0.002},
        }
        for precision in ("32-true", "bf16-mixed"):
            made[role, precision] = command(folder, role, precision, optimizer=optimizer, **given)
    return made


@pytest.mark.sensitive
@ROLES
def test_a_bf16_run_stays_near_the_float32_run(runs, role):
    (full, full_rows), (low, low_rows) = runs[role, "32-true"], runs[role, "bf16-mixed"]
    assert [r["step"] for r in full_rows] == [r["step"] for r in low_rows]
    losses = [[r["train/loss"] for r in rows if "train/loss" in r] for rows in (full_rows, low_rows)]
    assert len(losses[0]) == 5 and losses[0] != losses[1]
    # bfloat16 keeps 8 bits: 2^-9 per rounding, a few of them a layer.
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert rms(raw_weights(full) - raw_weights(low)) < 0.02 * rms(raw_weights(full))
    values = [[r for r in rows if "quality/fd_pixels" in r][-1] for rows in (full_rows, low_rows)]
    assert values[1]["quality/fd_pixels"] == pytest.approx(values[0]["quality/fd_pixels"], rel=0.05)


@pytest.mark.parametrize("what", ["evaluation", "predict", "validate"])
@ROLES
def test_measurements_are_float32(role, what, monkeypatch):
    """The same weights give the same samples and losses, to the bit, whatever precision the Trainer was asked for."""
    cast, results = [], []
    for kind in (OdeSampler, ConsistencySampler):
        real = kind.__call__

        def noted(self, *args, real=real):
            cast.append(torch.is_autocast_enabled("cpu"))
            return real(self, *args)

        monkeypatch.setattr(kind, "__call__", noted)

    class Evaluate(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            module.eval()
            results.append(module.sampler()(range(4)))
            module.train()

    for precision in ("32-true", "bf16-mixed"):
        module, data = make(role, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)), support.make_data(predict_samples=5)
        options = {"precision": precision, "callbacks": [Evaluate()]}
        if what == "evaluation":
            support.fit(module, 1, data, **options)
            continue
        trainer = support.make_trainer(1, **options)
        module.trainer = trainer
        support.hand_over(module, data.training_set).prepare(data.training_set)
        support.scramble(module.ema)
        if what == "predict":
            results.append(torch.cat([images for _, images in trainer.predict(module, datamodule=data)]))
        else:
            losses = trainer.validate(module, data, verbose=False)
            results.append(torch.tensor([v for row in losses for v in row.values()]))
    assert results[0].numel() and torch.equal(*results)
    assert not any(cast) and bool(cast) == (what != "validate")


# ---- float16 --------------------------------------------------------------------------------------------------------


def overflow_at(role, wanted, scale=2.0**16, steps=5):
    """Fit in float16 with an infinite gradient at some steps (0, 1, ...): the state after every step."""
    cls = support.TrackedTeacher if role == "teacher" else support.TrackedStudent
    module = make(role, cls=cls, optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), lr_schedule="constant")
    scaler, states = torch.amp.GradScaler("cpu", init_scale=scale), []

    class Break(pl.Callback):
        def on_train_start(self, trainer, module):
            first = next(module.raw.network.parameters())
            first.register_hook(lambda g: g * math.inf if trainer.global_step in wanted else g)

        def on_train_batch_end(self, trainer, module, *_):
            state = [v.clone() for v in module.state_dict().values()]
            state += [s["momentum_buffer"].clone() for s in module.optimizers().state.values()]
            states.append((state, scaler.get_scale(), trainer.global_step))

    support.fit(module, steps, callbacks=[Break()], plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    return module, states


@ROLES
def test_a_step_that_overflows_moves_nothing_and_counts(role):
    module, states = overflow_at(role, {2})
    assert [step for _, _, step in states] == [1, 2, 3, 4, 5]
    assert [s for _, s, _ in states] == [2.0**16] * 2 + [2.0**15] * 3
    # The averages are told of steps 1, 2, 4, 5; noise, images and learning rate go on with the step.
    assert module.told == [1, 2, 4, 5]
    same = [all(torch.equal(a, b) for a, b in zip(x[0], y[0])) for x, y in pairwise(states)]
    assert same == [False, True, False, False]
    assert all(bool(v.isfinite().all()) for v in states[-1][0])


def test_gradients_that_always_overflow_end_the_run():
    with pytest.raises(InputError, match=r"^trainer\.precision=.*overflow float16 whatever the loss scale"):
        overflow_at("student", range(100), scale=4.0, steps=10)


@pytest.mark.sensitive
@ROLES
def test_a_float16_run_stays_near_the_float32_run(role):
    weights = []
    for precision in ("32-true", "16-mixed"):
        module = support.fit(make(role, lr_schedule="constant"), 10, plugins=plugin(precision))
        weights.append(support.flat_weights(module.raw.network))
    assert 0 < rms(weights[0] - weights[1]) < 0.003 * rms(weights[0])


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true", "transformer-engine", "16"])
def test_low_precision_beyond_the_network_is_refused(precision):
    with pytest.raises(InputError, match=r"^trainer\.precision=.*only the network"):
        check_precision(precision)


def test_float16_without_a_gpu_is_refused(monkeypatch):
    """Lightning would train in bfloat16 instead, under a folder that says float16."""
    for accelerator in ("cpu", "auto", "gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(InputError, match="float16 needs a GPU"):
            check_precision("16-mixed", accelerator)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        if accelerator != "cpu":
            check_precision("16-mixed", accelerator)
    for fine in (None, "32-true", 32, "bf16-mixed"):
        check_precision(fine, "cpu")


def test_a_plugin_does_not_get_around_it():
    with pytest.raises(InputError, match="only the network"):
        support.fit(support.make_student(), 1, precision="bf16-true")
