"""Bugs of averages, optimizer, sampling and data."""

from __future__ import annotations

import torch
from torch import nn

import support
from cdmem.data import subset
from cdmem.diffusion import curriculum, sampling
from cdmem.diffusion.step_noise import dropout_seed
from cdmem.distillation import ConsistencyTraining
from cdmem.training import ema, module
from cdmem.training.student import Student
from support.faults.frame import fault, patch, plant, slip

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
    dropout_streams_not_shared=slip(Student._seeded, "with dropout_seed(self.device, seed):", "if True:"),
)


plant(
    support.check_streams_restored,
    dropout_seed_leaks=slip(dropout_seed, "with torch.random.fork_rng(devices=devices):", "if True:"),
)


@fault(support.check_curriculum_follows_the_step)
def curriculum_from_a_counter_of_its_own(m):
    calls = []

    def wrong(self, step, total_steps):
        calls.append(step)
        return curriculum.num_points(len(calls) - 1, total_steps, self.curriculum, self.start_points, self.points)

    m.setattr(ConsistencyTraining, "points_at", wrong)


plant(
    support.check_curriculum_values,
    curriculum_without_its_last_stage=slip(curriculum.num_points, "max(end // start, 1)) + 1", "max(end // start, 1))"),
)

# ---- sampling -------------------------------------------------------------------------------------------------------


plant(
    support.check_multistep_noise,
    noise_of_the_full_level_added=slip(sampling.sample_consistency, "level**2 - sigma_min**2", "level**2"),
    noise_of_the_difference_added=slip(
        sampling.sample_consistency, "level**2 - sigma_min**2", "(level - sigma_min) ** 2"
    ),
)
plant(
    support.check_last_output_is_returned,
    noise_after_the_last_step=slip(sampling.sample_consistency, "x.float()", "x.float() + sigma_min"),
    samples_clamped=slip(sampling.sample_consistency, "x.float()", "x.float().clamp(-1, 1)"),
)
OF_THE_SEED = 'torch.Generator().manual_seed(sample_seed(s, "labels"))'
plant(
    support.check_labels_from_the_seed,
    labels_from_the_global_stream=slip(sampling.NoiseSource.labels, OF_THE_SEED, "None"),
    labels_from_the_pixels_stream=slip(
        sampling.NoiseSource.labels, OF_THE_SEED, "self.generators[self.seeds.index(s)]"
    ),
)

# ---- data -----------------------------------------------------------------------------------------------------------


plant(support.check_sigma_data_is_measured, sigma_data_assumed=patch(subset.TrainingSet, "sigma_data", lambda _: 0.5))
plant(
    support.check_sigma_data_is_measured,
    [{"fraction": 0.25, "copies": 9}],
    sigma_data_of_unique_images=slip(subset.TrainingSet.sigma_data.func, "copies * np.bincount", "np.bincount"),
)
plant(
    support.check_flips_are_grouped,
    flips_trained_but_not_grouped=slip(subset.choose, "(pool.images, spec.flip)", "(pool.images, False)"),
    flips_not_part_of_the_training_set=slip(subset._set_hash, "{bool(flip)}", ""),
)
