"""A batch in several micro-batches is the batch: same images, noise, gradient, clipping, step and record."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import MixedPrecision

import support
from cdmem.diffusion.step_noise import StepNoise
from cdmem.training.teacher import DiffusionTeacher

ROLES = pytest.mark.parametrize("role", ["teacher", "student"])
BATCH, STEPS = 12, 5


class Follow(pl.Callback):
    """Images shown, and after every optimizer step everything that training moves."""

    def __init__(self):
        self.indices, self.trail = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.indices.append(batch.index)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.trail.append(torch.cat([v.detach().flatten().clone() for v in module.state_dict().values()]))


class Rows(DummyLogger):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append({"step": step, **metrics})


def given(logger):
    """Hands it to the trainer of ``support.fit``, which has none."""
    return LambdaCallback(on_fit_start=lambda trainer, module: setattr(trainer, "loggers", [logger]))


def run(role, parts, **options):
    """``BATCH`` images a step in ``parts`` micro-batches."""
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "warmup_steps": 2}
    grid = {"mu": "adaptive", "curriculum": "sqrt", "points": 20, "start_points": 2}
    module = support.make_teacher(**sgd) if role == "teacher" else support.make_student(**grid, **sgd)
    follow, data, logger = Follow(), support.make_data(n=10, batch_size=BATCH // parts, flip=True), Rows()
    options |= {"accumulate_grad_batches": parts, "log_every_n_steps": 2, "callbacks": [follow, given(logger)]}
    support.fit(module, STEPS, data, **options)
    return module, follow, logger.rows


@pytest.mark.sensitive
@ROLES
@pytest.mark.parametrize("parts", [2, 3, 12])
def test_micro_batches_are_the_batch(role, parts):
    whole, seen, rows = run(role, 1)
    cut, seen_cut, rows_cut = run(role, parts)
    assert len(seen.trail) == len(seen_cut.trail) == STEPS
    assert torch.equal(torch.cat(seen.indices), torch.cat(seen_cut.indices))
    assert len(seen_cut.indices) == parts * STEPS
    for step, (a, b) in enumerate(zip(seen.trail, seen_cut.trail)):
        # Sums in another order: a few float32 roundings a step of numbers of the size of the weights. Six kinds of
        # processors use at most a thousandth of it: the gradients are small.
        assert float((a - b).abs().max()) <= 16 * (step + 1) * support.EPS32 * float(a.abs().max())
    assert float((seen.trail[0] - seen.trail[-1]).abs().max()) > 1e-3
    assert [(r["step"], r["images_seen"]) for r in rows_cut] == [(1, BATCH), (3, 3 * BATCH)]
    for a, b in zip(rows, rows_cut, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    assert whole.images_seen() == cut.images_seen() == STEPS * BATCH


def test_the_logged_loss_is_that_of_the_whole_step():
    losses = []

    class Noted(DiffusionTeacher):
        def loss(self, batch, noise):
            losses.append(super().loss(batch, noise))
            return losses[-1]

    logger = Rows()
    options = {"accumulate_grad_batches": 3, "log_every_n_steps": 2, "callbacks": [given(logger)]}
    support.fit(support.make_teacher(Noted), 4, **options)
    means = torch.stack(losses).detach().reshape(4, 3, -1).mean((1, 2))
    assert [r["train/loss"] for r in logger.rows] == pytest.approx([float(means[1]), float(means[3])], rel=1e-6)


# ---- clipping -------------------------------------------------------------------------------------------------------


def gradient(module, batches, step):
    """Of the mean loss over all images of a step, in float64 sums, by hand."""
    total = 0.0
    for k, batch in enumerate(batches):
        loss = module.loss(batch, StepNoise(module.training_seed, step, len(batch.image), k, len(batches))).mean()
        grads = torch.autograd.grad(loss, list(module.raw.network.parameters()))
        total = total + torch.cat([g.flatten() for g in grads]).double() / len(batches)
    return total


@ROLES
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_whole_gradient_is_clipped_once(role, parts, precision):
    """By norm, after accumulation and, in float16, after the loss scale is taken out: w - lr g min(1, c / |g|)."""
    clip, lr = 1e-3, 0.5
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=lr), "lr_schedule": "constant"}
    module = support.make_teacher(**sgd) if role == "teacher" else support.make_student(mu=0.5, **sgd)
    moves, norms = [], []

    class Check(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx % parts == 0:
                self.start, self.batches = support.flat_weights(module.raw.network).double(), []
                self.expected = None
            self.batches.append(batch)
            if len(self.batches) == parts:
                with torch.autocast("cpu", torch.float16, enabled=precision == "16-mixed", cache_enabled=False):
                    g = gradient(module, self.batches, trainer.global_step)
                norms.append(float(g.norm()))
                self.expected = -lr * g * min(1.0, clip / norms[-1])

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if self.expected is not None:
                moved = support.flat_weights(module.raw.network).double() - self.start
                moves.append((moved, self.expected, float(self.start.norm())))

    options = {"plugins": [MixedPrecision(precision, "cpu")]} if precision == "16-mixed" else {}
    options |= {"gradient_clip_val": clip, "accumulate_grad_batches": parts, "callbacks": [Check()]}
    support.fit(module, 3, support.make_data(batch_size=4), **options)
    assert len(moves) == 3 and min(norms) > 5 * clip
    tolerance = 1e-4 if precision == "32-true" else 2e-2
    for moved, expected, size in moves:
        assert float((moved - expected).norm()) <= tolerance * float(expected.norm()) + support.EPS32 * size


def test_small_gradients_are_left_alone():
    trails = [run("student", 2, gradient_clip_val=clip)[1].trail for clip in (None, 1e6)]
    assert torch.equal(trails[0][-1], trails[1][-1])
