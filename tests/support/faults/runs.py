"""Bugs of averages, optimizer, sampling and data."""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch
from torch import nn

import support
from cdmem.data import subset
from cdmem.diffusion import curriculum, sampling
from cdmem.diffusion import step_noise as randomness
from cdmem.distillation import ConsistencyTraining
from cdmem.images import to_float
from cdmem.training import ema, module
from cdmem.training.student import Student
from support.faults.frame import fault, patch, plant

# ---- averages, optimizer, random streams ----------------------------------------------------------------------------


def averaged(self, ahead):
    self.after_optimizer_step(self.trainer.global_step + ahead)


def before(real):
    """The averages are updated before what should come first."""

    def wrong(self, *a, **k):
        averaged(self, 1)
        return real(self, *a, **k)

    return wrong


def one_behind(real):
    """Lightning counts a step only after the hook."""

    def wrong(self, *a, **k):
        real(self, *a, **k)
        averaged(self, 0)

    return wrong


def optimizer_step(make):
    return lambda m: m.setattr(module.DiffusionModule, "optimizer_step", make(module.LightningModule.optimizer_step))


plant(
    support.check_averages,
    averages_updated_before_the_step=optimizer_step(before),
    averages_count_from_zero=optimizer_step(one_behind),
    rate_and_its_complement_swapped=patch(ema, "ema_beta", lambda real: lambda *a: 1 - real(*a)),
)
plant(
    support.check_averages, 2, averages_updated_per_micro_batch=patch(module.DiffusionModule, "training_step", before)
)
plant(
    support.check_averages_forget_the_start,
    constant_decay_on_a_short_run=patch(ema, "ema_beta", lambda _: lambda *a: 0.9999),
)


def with_averages(real):
    def wrong(self):
        made = real(self)
        made["optimizer"].add_param_group({"params": list(self.ema.parameters())})
        made["lr_scheduler"]["scheduler"] = torch.optim.lr_scheduler.LambdaLR(made["optimizer"], lambda step: 1.0)
        return made

    return wrong


def trained_target(real):
    def wrong(self, *a):
        real(self, *a)
        self.target.requires_grad_(True)

    return wrong


def averaged_teacher(real):
    def wrong(self, record, network, function):
        real(self, record, network, function)
        both = nn.ModuleDict({"network": network, "teacher": nn.Linear(3, 3)})
        self.ema = ema.EMA(both, self.averaging.half_lives, self.averaging.ramp)
        self.ema.update = lambda network, step: None

    return wrong


plant(
    support.check_who_is_optimised,
    averages_in_the_optimizer=patch(Student, "configure_optimizers", with_averages),
    target_receives_gradients=patch(Student, "prepare", trained_target),
    averages_contain_the_teacher=patch(Student, "assemble", averaged_teacher),
)
plant(
    support.check_shared_dropout,
    dropout_streams_not_shared=patch(Student, "_seeded", lambda _: lambda self, function, seed: function),
)


@contextmanager
def leaking(device, seed):
    torch.manual_seed(seed)
    yield


plant(support.check_streams_restored, dropout_seed_leaks=patch(randomness, "dropout_seed", lambda _: leaking))


@fault(support.check_curriculum_follows_the_step)
def curriculum_from_a_counter_of_its_own(m):
    calls = []

    def wrong(self, step, total_steps):
        calls.append(step)
        return curriculum.num_points(len(calls) - 1, total_steps, self.curriculum, self.start_points, self.points)

    m.setattr(ConsistencyTraining, "points_at", wrong)


plant(
    support.check_curriculum_values,
    curriculum_without_its_last_stage=patch(
        curriculum, "num_points", lambda real: lambda k, total, *a: real(k, total * 8 // 7, *a)
    ),
)

# ---- sampling -------------------------------------------------------------------------------------------------------


def wrong_sampler(std, renoise_last=False):
    @torch.no_grad()
    def sample(consistency, x, sigmas, sigma_min, noise, labels=None):
        for k, level in enumerate(sigmas):
            if k:
                x = x + std(level, sigma_min) * noise()
            x = consistency(x, torch.full((len(x),), float(level)), labels)
        return x + sigma_min * torch.ones_like(x) if renoise_last else x

    return patch(sampling, "sample_consistency", lambda _: sample)


def labels_of_pixels(self, n):
    return torch.stack([torch.randint(n, (), generator=g) for g in self.generators])


plant(
    support.check_multistep_noise,
    noise_of_the_full_level_added=wrong_sampler(lambda tau, low: tau),
    noise_of_the_difference_added=wrong_sampler(lambda tau, low: tau - low),
)
plant(
    support.check_last_output_is_returned,
    noise_after_the_last_step=wrong_sampler(lambda tau, low: math.sqrt(tau**2 - low**2), renoise_last=True),
    samples_clamped=patch(sampling, "sample_consistency", lambda real: lambda *a: real(*a).clamp(-1, 1)),
)
plant(
    support.check_labels_from_the_seed,
    labels_from_the_global_stream=patch(
        sampling.NoiseSource, "labels", lambda _: lambda self, n: torch.randint(n, (len(self.seeds),))
    ),
    labels_from_the_pixels_stream=patch(sampling.NoiseSource, "labels", lambda _: labels_of_pixels),
)

# ---- data -----------------------------------------------------------------------------------------------------------


@property
def of_unique_images(self):
    return float(to_float(self.images).double().std(correction=0))


plant(support.check_sigma_data_is_measured, sigma_data_assumed=patch(subset.TrainingSet, "sigma_data", lambda _: 0.5))
plant(
    support.check_sigma_data_is_measured,
    [{"fraction": 0.25, "copies": 9}],
    sigma_data_of_unique_images=patch(subset.TrainingSet, "sigma_data", lambda _: of_unique_images),
)
plant(
    support.check_flips_are_grouped,
    flips_trained_but_not_grouped=patch(
        subset, "content_digests", lambda real: lambda images, flip=False: real(images, False)
    ),
    flips_not_part_of_the_training_set=patch(
        subset, "_set_hash", lambda real: lambda images, copies, flip: real(images, copies, False)
    ),
)
