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
from support.faults.frame import fault

# ---- averages, optimizer, random streams ----------------------------------------------------------------------------


@fault(support.check_averages)
def averages_updated_before_the_step(m):
    real = module.LightningModule.optimizer_step

    def wrong(self, *a, **k):
        self.after_optimizer_step(self.trainer.global_step + 1)
        real(self, *a, **k)

    m.setattr(module.DiffusionModule, "optimizer_step", wrong)


@fault(support.check_averages, 2)
def averages_updated_per_micro_batch(m):
    real = module.DiffusionModule.training_step

    def wrong(self, batch, batch_idx):
        self.after_optimizer_step(self.trainer.global_step + 1)
        return real(self, batch, batch_idx)

    m.setattr(module.DiffusionModule, "training_step", wrong)


@fault(support.check_averages)
def averages_count_from_zero(m):
    """Lightning counts a step only after the hook."""
    real = module.LightningModule.optimizer_step

    def wrong(self, *a, **k):
        real(self, *a, **k)
        self.after_optimizer_step(self.trainer.global_step)

    m.setattr(module.DiffusionModule, "optimizer_step", wrong)


@fault(support.check_averages)
def rate_and_its_complement_swapped(m):
    real = ema.ema_beta
    m.setattr(ema, "ema_beta", lambda *a: 1 - real(*a))


@fault(support.check_averages_forget_the_start)
def constant_decay_on_a_short_run(m):
    m.setattr(ema, "ema_beta", lambda *a: 0.9999)


@fault(support.check_who_is_optimised)
def averages_in_the_optimizer(m):
    real = Student.configure_optimizers

    def wrong(self):
        made = real(self)
        made["optimizer"].add_param_group({"params": list(self.ema.parameters())})
        made["lr_scheduler"]["scheduler"] = torch.optim.lr_scheduler.LambdaLR(made["optimizer"], lambda step: 1.0)
        return made

    m.setattr(Student, "configure_optimizers", wrong)


@fault(support.check_who_is_optimised)
def target_receives_gradients(m):
    real = Student.prepare

    def wrong(self, *a):
        real(self, *a)
        self.target.requires_grad_(True)

    m.setattr(Student, "prepare", wrong)


@fault(support.check_who_is_optimised)
def averages_contain_the_teacher(m):
    real = Student.assemble

    def wrong(self, record, network, function):
        real(self, record, network, function)
        both = nn.ModuleDict({"network": network, "teacher": nn.Linear(3, 3)})
        self.ema = ema.EMA(both, self.averaging.half_lives, self.averaging.ramp)
        self.ema.update = lambda network, step: None

    m.setattr(Student, "assemble", wrong)


@fault(support.check_shared_dropout)
def dropout_streams_not_shared(m):
    m.setattr(Student, "_seeded", lambda self, function, seed: function)


@fault(support.check_streams_restored)
def dropout_seed_leaks(m):
    @contextmanager
    def leaking(device, seed):
        torch.manual_seed(seed)
        yield

    m.setattr(randomness, "dropout_seed", leaking)


@fault(support.check_curriculum_follows_the_step)
def curriculum_from_a_counter_of_its_own(m):
    calls = []

    def wrong(self, step, total_steps):
        calls.append(step)
        return curriculum.num_points(len(calls) - 1, total_steps, self.curriculum, self.start_points, self.points)

    m.setattr(ConsistencyTraining, "points_at", wrong)


@fault(support.check_curriculum_values)
def curriculum_without_its_last_stage(m):
    real = curriculum.num_points
    m.setattr(curriculum, "num_points", lambda k, total, *a: real(k, total * 8 // 7, *a))


# ---- sampling -------------------------------------------------------------------------------------------------------


def wrong_sampler(std, renoise_last=False):
    @torch.no_grad()
    def sample(consistency, x, sigmas, sigma_min, noise, labels=None):
        for k, level in enumerate(sigmas):
            if k:
                x = x + std(level, sigma_min) * noise()
            x = consistency(x, torch.full((len(x),), float(level)), labels)
        return x + sigma_min * torch.ones_like(x) if renoise_last else x

    return sample


@fault(support.check_multistep_noise)
def noise_of_the_full_level_added(m):
    m.setattr(sampling, "sample_consistency", wrong_sampler(lambda tau, low: tau))


@fault(support.check_multistep_noise)
def noise_of_the_difference_added(m):
    m.setattr(sampling, "sample_consistency", wrong_sampler(lambda tau, low: tau - low))


@fault(support.check_last_output_is_returned)
def noise_after_the_last_step(m):
    m.setattr(
        sampling, "sample_consistency", wrong_sampler(lambda tau, low: math.sqrt(tau**2 - low**2), renoise_last=True)
    )


@fault(support.check_last_output_is_returned)
def samples_clamped(m):
    real = sampling.sample_consistency
    m.setattr(sampling, "sample_consistency", lambda *a: real(*a).clamp(-1, 1))


@fault(support.check_labels_from_the_seed)
def labels_from_the_global_stream(m):
    m.setattr(sampling.NoiseSource, "labels", lambda self, n: torch.randint(n, (len(self.seeds),)))


@fault(support.check_labels_from_the_seed)
def labels_from_the_pixels_stream(m):
    m.setattr(
        sampling.NoiseSource,
        "labels",
        lambda self, n: torch.stack([torch.randint(n, (), generator=g) for g in self.generators]),
    )


# ---- data -----------------------------------------------------------------------------------------------------------


@fault(support.check_sigma_data_is_measured)
def sigma_data_assumed(m):
    m.setattr(subset.TrainingSet, "sigma_data", 0.5)


@fault(support.check_sigma_data_is_measured, [{"fraction": 0.25, "copies": 9}])
def sigma_data_of_unique_images(m):
    def wrong(self):
        return float(to_float(self.images).double().std(correction=0))

    m.setattr(subset.TrainingSet, "sigma_data", property(wrong))


@fault(support.check_flips_are_grouped)
def flips_trained_but_not_grouped(m):
    real = subset.content_digests
    m.setattr(subset, "content_digests", lambda images, flip=False: real(images, False))


@fault(support.check_flips_are_grouped)
def flips_not_part_of_the_training_set(m):
    real = subset._set_hash
    m.setattr(subset, "_set_hash", lambda images, copies, flip: real(images, copies, False))
