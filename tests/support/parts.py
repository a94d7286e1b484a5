"""Small parts that the checks are made of."""

from __future__ import annotations

import warnings
from itertools import pairwise
from types import SimpleNamespace
from unittest import mock

import lightning.pytorch as pl
import torch

from cdmem.data.subset import TrainingSet
from cdmem.diffusion import analytic, ddpm, preconditioning
from cdmem.distillation import consistency
from cdmem.errors import InputError
from cdmem.models.load import load_teacher
from cdmem.networks.mlp import MLP
from cdmem.training import student, teacher
from cdmem.training.datamodule import MemorizationDataModule
from support.settings import built

EPS32 = torch.finfo(torch.float32).eps
SIGMA_DATA, SIGMA_MIN = 0.5, 0.002
MEAN, STD = 0.3, 0.5  # the one-dimensional Gaussian whose probability flow is known in closed form


# ---- small parts ----------------------------------------------------------------------------------------------------


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def fill(*shape, value):
    return torch.full(shape, float(value), dtype=torch.float64)


def scramble(network, seed=0):
    """Random weights everywhere (fresh networks end in zeros and so would hide mistakes)."""
    generator = rng(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return network


def small_network(shape=(1, 4, 4), dropout=0.0, seed=0, num_classes=0):
    return scramble(MLP(width=16, depth=1, dropout=dropout).build(shape, num_classes, seed), seed)


def edm(sigma_data=SIGMA_DATA):
    return preconditioning.EDMScaling(sigma_data, SIGMA_MIN)


def vp():
    return preconditioning.VPScaling(ddpm.VPSchedule().sigma_min)


def gaussian():
    """Exact denoiser of N(MEAN, STD^2) for images of one pixel."""
    return analytic.GaussianDenoiser(fill(1, 1, 1, value=MEAN), fill(1, 1, value=STD**2))


def as_images(values):
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def walk(step, denoiser, x, sigmas):
    """All steps of a grid, float64."""
    for hi, lo in pairwise(sigmas.tolist()):
        x = step(denoiser, x, fill(len(x), value=hi), fill(len(x), value=lo))
    return x


def refused(call):
    """Whether bad input is recognised as such; another error is not that."""
    try:
        call()
    except InputError:
        return True
    except Exception:
        return False
    return False


def flat_weights(network):
    return torch.cat([p.detach().flatten().clone() for p in network.parameters()])


# ---- tiny runs ------------------------------------------------------------------------------------------------------


def make_data(**options):
    return MemorizationDataModule(**({"source": "digits", "n": 8, "held_out": 8, "batch_size": 4} | options))


def random_images(n, shape=(3, 8, 8), seed=0, low=0, high=256):
    """Independent grey levels, uint8 (n, C, H, W)."""
    return torch.randint(low, high, (n, *shape), generator=rng(seed), dtype=torch.uint8)


def make_training_set(images, copies=None, held_out=None, flip=False):
    """T from uint8 images (n, C, H, W); ``copies`` int64 (n,), one of each by default."""
    held_out = images[:0] if held_out is None else held_out
    n, h = torch.arange(len(images)), torch.arange(len(held_out))
    copies = torch.ones_like(n) if copies is None else copies
    return TrainingSet(images, n * 0, n, copies, held_out, h * 0, h, flip, (), "test", {}, {})


def make_student(cls=None, **options):
    """A student of the exact empirical denoiser, from scratch."""
    default = {
        "teacher": "analytic:empirical",
        "network": MLP(width=16, depth=1),
        "ema_half_lives": [2],
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.1),
    }
    return (cls or student.Student)(**built("student", **(default | options)))


def make_teacher(cls=None, **options):
    default = {"network": MLP(width=16, depth=1), "ema_half_lives": [2]}
    return (cls or teacher.DiffusionTeacher)(**built("teacher", **(default | options)))


def make_trainer(steps, **options):
    return pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def hand_over(module, training_set):
    """Give a student the teacher that it names, as the command line does; returns the module."""
    if getattr(module, "teacher_name", None) is not None and module.teacher is None:
        module.receive(load_teacher(module.teacher_name, training_set, module.teacher_weights))
    return module


def fit(module, steps=3, data=None, ckpt_path=None, **trainer):
    """Train in this process, handing a student the teacher that it names; returns the module."""
    data = data or make_data()
    hand_over(module, data.training_set)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make_trainer(steps, **trainer)
        made.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


class Seen:
    """Arguments and outputs of every ``consistency_loss`` of a tiny run."""

    def __init__(self, module, steps=2, **options):
        self.calls = []
        real = consistency.consistency_loss

        def spy(online, target, *rest):
            call = SimpleNamespace(**dict(zip(("x_hi", "x_lo", "hi", "lo"), rest)), outputs={})
            call.online, call.target = online, target
            call.loss = real(self.tap(call, "online", online), self.tap(call, "target", target), *rest)
            self.calls.append(call)
            return call.loss

        with mock.patch.object(consistency, "consistency_loss", spy):
            fit(module, steps, **options)

    @staticmethod
    def tap(call, name, function):
        def tapped(x, sigma, labels=None):
            out = function(x, sigma, labels)
            call.outputs[name] = (x, sigma, out)
            return out

        return tapped
