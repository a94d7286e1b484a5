"""Checks of averages, optimizer, sampling and data."""

from __future__ import annotations

import math

import torch
from torch import nn

from cdmem.data import subset
from cdmem.data.pixels import ImagePool
from cdmem.diffusion import sampling
from cdmem.diffusion import step_noise as randomness
from cdmem.images import to_float
from cdmem.networks.mlp import MLP
from cdmem.training import ema, student, teacher
from support.parts import (
    EPS32,
    SIGMA_MIN,
    Seen,
    fit,
    flat_weights,
    make_data,
    make_student,
    make_teacher,
    rng,
    scramble,
)

# ---- averages and optimizer -----------------------------------------------------------------------------------------


class Tracked:
    """Mixin: the raw weights after every optimizer step and the step numbers that the averages were told."""

    def setup(self, stage):
        super().setup(stage)
        self.trail, self.told = [flat_weights(self.raw.network)], []

    def on_train_batch_end(self, *_):
        if (_[-1] + 1) % self.trainer.accumulate_grad_batches == 0:
            self.trail.append(flat_weights(self.raw.network))

    def after_optimizer_step(self, step):
        self.told.append(step)
        super().after_optimizer_step(step)


class TrackedStudent(Tracked, student.Student):
    pass


class TrackedTeacher(Tracked, teacher.DiffusionTeacher):
    pass


def check_averages(accumulate=1, steps=4, role="student"):
    """One update per optimizer step, after it: the average is the closed form of the weights' trail."""
    options = {"ema_half_lives": [2], "ema_ramp": 0.0}
    optimizer = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    if role == "student":
        module = make_student(TrackedStudent, mu=0.75, **options)
    else:
        module = make_teacher(TrackedTeacher, **options, **optimizer)
    fit(module, steps, accumulate_grad_batches=accumulate)
    assert module.told == list(range(1, steps + 1))
    assert len(module.trail) == steps + 1
    assert not torch.equal(module.trail[0], module.trail[-1])
    checked = [(2**-0.5, module.ema.copies[0])]
    if role == "student":
        checked.append((0.75, module.target))
    for beta, network in checked:
        average = module.trail[0].double()
        for weights in module.trail[1:]:
            average = beta * average + (1 - beta) * weights.double()
        # Each update rounds once or twice to float32, at numbers of the size of the weights.
        bound = 4 * steps * EPS32 * float(torch.stack(module.trail).abs().max())
        assert float((flat_weights(network) - average).abs().max()) <= bound


def check_averages_forget_the_start():
    """With the ramp a short run's average does not remember the initial weights (0.9999^200 = 0.98 would)."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    average = ema.EMA(network, [100_000], ramp=0.05)
    nn.init.ones_(network.weight)
    for step in range(1, 201):
        average.update(network, step)
    # The remaining share is prod 2^(-1/(0.05 k)) = 2^(-20 H_200), H_200 = 5.88: 4e-36.
    assert abs(float(average.copies[0].weight) - 1) < 200 * EPS32


def check_who_is_optimised():
    """The optimizer holds exactly the student's network; nobody else has gradients; no teacher among the weights."""
    module = fit(make_student(mu=0.5), 1)
    inside = {id(p) for group in module.optimizers().param_groups for p in group["params"]}
    assert inside == {id(p) for p in module.raw.network.parameters()}
    assert all(p.requires_grad for p in module.raw.network.parameters())
    for frozen in (module.ema, module.target, module.teacher_denoiser):
        assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    assert not module.ema.training and not any(m.training for m in module.ema.modules())
    size = sum(p.numel() for p in module.raw.network.parameters())
    assert sum(p.numel() for p in module.ema.parameters()) == size
    # raw, one average, target: the teacher is not saved again.
    assert sum(p.numel() for p in module.parameters()) == 3 * size


def check_shared_dropout():
    """Same weights, same input, p = 1/2: student and target drop the same units."""
    module = make_student(points=2, mu=0.0, dropout=0.5, network=MLP(width=16, depth=2))
    seen = Seen(module, steps=2)
    call = seen.calls[-1]
    x, sigma = torch.randn(6, *module.shape, generator=rng()), torch.full((6,), 5.0)
    scramble(module.raw.network)
    module.train()
    with torch.no_grad():
        online, target = call.online(x, sigma), call.target(x, sigma)
        other = module.raw(x, sigma)
    assert torch.equal(online, target)
    assert not torch.equal(online, other), "dropout must be on for this to mean anything"


def check_streams_restored():
    """What happens under a dropout seed leaves the global stream where it was."""
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with randomness.dropout_seed(torch.device("cpu"), 1):
        torch.rand(100)
    assert torch.equal(torch.rand(4), expected)


# ---- sampling -------------------------------------------------------------------------------------------------------


def record_levels(levels, draws, denoise=lambda x, sigma, labels=None: torch.zeros_like(x), sigma_min=SIGMA_MIN):
    """Inputs that a consistency function gets in multi-step sampling; and the result."""
    inputs = []

    def function(x, sigma, labels=None):
        inputs.append((x.clone(), sigma.clone()))
        return denoise(x, sigma, labels)

    source = iter(draws)
    out = sampling.sample_consistency(function, levels[0] * next(source), levels, sigma_min, lambda: next(source))
    return inputs, out


def check_multistep_noise():
    """Noise added at level tau has standard deviation sqrt(tau^2 - sigma_min^2) (visible at small tau)."""
    one = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    for tau, low in ((0.8, 0.002), (0.05, 0.04), (0.003, 0.002)):
        inputs, _ = record_levels([80.0, tau], [one, one], sigma_min=low)
        expected = math.sqrt(tau**2 - low**2)
        torch.testing.assert_close(inputs[1][0], expected * one, rtol=1e-12, atol=0)
        assert float(inputs[1][1][0]) == float(torch.tensor(tau))


def check_last_output_is_returned():
    """The picture is the last network output itself: no noise on it, not clamped; one draw per level."""
    draws = [torch.randn(2, 1, 2, 2, generator=rng(k)) for k in range(3)]
    outputs = []

    def function(x, sigma, labels=None):
        outputs.append(x * 2 + sigma[0])
        return outputs[-1]

    inputs, out = record_levels([80.0, 1.0, 0.3], draws, function)
    assert len(inputs) == 3
    assert torch.equal(out, outputs[-1])


def check_labels_from_the_seed():
    """Labels are a function of the sample seed alone: not of the global stream, the batch, or earlier draws."""
    torch.manual_seed(0)
    first = sampling.NoiseSource(range(50), (1, 2, 2)).labels(10)
    torch.manual_seed(1)
    source = sampling.NoiseSource(range(20, 50), (1, 2, 2))
    source.next()
    assert torch.equal(source.labels(10), first[20:])
    assert len(first.unique()) > 5


# ---- data -----------------------------------------------------------------------------------------------------------


def check_sigma_data_is_measured(duplication=None):
    """sigma_data of the preconditioning is the standard deviation of the training pixels, copies counted."""
    data = make_data(n=4, duplication=duplication)
    module = fit(make_student(), 1, data=data)
    t = data.training_set
    rows = to_float(t.images[t.row_to_group]).double()
    expected = float(rows.std(correction=0))
    assert abs(module.raw.scaling.sigma_data / expected - 1) < 1e-6
    assert abs(expected - 0.5) > 0.01


def check_flips_are_grouped():
    """With flips a picture and its mirror image are one image, so neither is held out when the other is trained on;
    and flipping is part of what a teacher's training set is."""
    generator = rng()
    images = torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8, generator=generator)
    both = torch.cat([images, images.flip(-1)])
    pool = ImagePool(both, torch.zeros(20).long(), (), torch.arange(20), "test", {})
    for seed in range(5):
        chosen = subset.choose(pool, subset.SubsetSpec(n=5, seed=seed, held_out=5, flip=True))
        held = {x.tobytes() for x in chosen.held_out_images.numpy()}
        assert not held & {x.tobytes() for x in chosen.images.flip(-1).numpy()}
    plain = subset.choose(pool, subset.SubsetSpec(n=5, held_out=0, flip=False))
    flipped = subset.choose(pool, subset.SubsetSpec(n=5, held_out=0, flip=True))
    same = subset.TrainingSet(**(vars(plain) | {"flip": True}))
    assert same.hash != plain.hash and flipped.flip
