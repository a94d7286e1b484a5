"""The image model: templates in random colours, N(0, s^2 I_3) times a template; the trained model learns M templates.

An image is x = c (outer) T_k with three colour channels. A model of capacity M has M templates, M mean colours and one
shared colour variance; it starts from M random samples (their true templates and their colours, s^2 = 1e-6).

Published templates are FashionMNIST, resized bicubically. It comes with no dependency; here they are handwritten digits
of scikit-learn, or grey CIFAR-10 images from a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdmem.data.sources import load_source
from cdmem.errors import InputError
from cdmem.theory.edge.capacity_sweep import Problem, Trainer
from cdmem.theory.edge.denoisers import low_rank
from cdmem.theory.edge.mixture import grid
from cdmem.theory.edge.training import INITIAL_VAR, AveragedAdam, Schedule, batch, noise_loss, padding, starts

SIDE = 15
Source = Literal["digits", "cifar10"]


def templates(source: Source, count: int, folder: str | None, rng: np.random.Generator) -> Tensor:
    """(count, 225) templates of different classes, float64.

    Raises:
        InputError: more templates than classes, or CIFAR-10 without a folder.
    """
    if not 1 <= count <= 10:
        raise InputError("image_k", count, "is no number of classes", "give 1 to 10")
    pool = load_source(source, folder if source == "cifar10" else None, grayscale=True)
    pictures, labels = pool.images[:, 0], pool.labels.numpy()
    classes = rng.permutation(10)[:count]
    chosen = [pictures[rng.choice(np.flatnonzero(labels == c))].numpy() for c in classes]
    return torch.from_numpy(np.stack([_resized(p) for p in chosen]).reshape(count, -1))


def _resized(picture: np.ndarray) -> np.ndarray:
    """Bicubic to 15 x 15, then stretched to [0, 1]."""
    small = Image.fromarray(picture.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = np.asarray(small, dtype=float)
    return (values - values.min()) / (values.max() - values.min())


CHANNELS = 3


@dataclass(frozen=True)
class LearnedImages:
    """A trained model: templates (M, P), colours (M, 3), and the variance of the colours."""

    templates: Tensor
    colours: Tensor
    var: float

    @property
    def means(self) -> Tensor:
        """Mean images, (M, 3, P)."""
        return self.colours[..., None] * self.templates[:, None]

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Its denoiser."""
        return low_rank(x, t, self.templates, self.colours, self.var)


def image_problem(templates: Tensor, n: int, fresh: int, samples: int, seed: int) -> tuple[Problem, Tensor]:
    """Data of the image model with colour mean 0 and variance 1, and the template of each training image.

    Returns:
        the problem, points are (3, P); labels (N,).
    """
    rng = np.random.default_rng(seed)
    zeros = torch.zeros(len(templates), CHANNELS, dtype=templates.dtype)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.from_numpy(rng.integers(len(templates), size=count))
        colours = torch.from_numpy(rng.standard_normal((count, CHANNELS)))
        return colours[..., None] * templates[labels][:, None], labels

    def true(x: Tensor, t: float) -> Tensor:
        return low_rank(x, t, templates, zeros, 1.0)

    data, labels = draw(n)
    held, _ = draw(fresh)
    noise = torch.from_numpy(rng.standard_normal((samples, CHANNELS, templates.shape[1])))
    # The mixture's means are all 0: a learned mean is near the truth or a sample by distance to 0 and to the samples.
    true_means = zeros[:1, :, None] * templates[:1, None]
    return Problem(data, held, true_means, true, noise, draw(4096)[0], seed), labels


def colours_of(data: Tensor, templates: Tensor) -> Tensor:
    """Colours (N, 3) of images (N, 3, P) made of the templates (N, P)."""
    return data.sum(-1) / templates.sum(-1, keepdim=True)


def image_trainer(
    templates: Tensor, labels: Tensor, schedule: Schedule, draws: int, tick: Callable[[], None] = lambda: None
) -> Trainer:
    """Trains the image model on data whose n-th image shows ``templates[labels[n]]``."""

    def run(data: Tensor, capacities: Sequence[int], seed: int) -> list[LearnedImages]:
        return train_images(data, templates[labels], capacities, schedule, draws, seed, tick)

    return run


def train_images(
    data: Tensor,
    shown: Tensor,
    capacities: Sequence[int],
    schedule: Schedule,
    draws: int,
    seed: int,
    tick: Callable[[], None],
) -> list[LearnedImages]:
    """As :func:`cdmem.theory.edge.training.train`, for images (N, 3, P) of the templates ``shown`` (N, P).

    Raises:
        InputError: the training diverged.
    """
    generator = torch.Generator().manual_seed(seed)
    small, times, mask = data.float(), grid().float(), padding(capacities)
    start_colours = colours_of(data, shown).float()
    shape = len(capacities), max(capacities)
    # Padding is a template of ones: a zero template has no direction, and its weight is -inf anyway.
    pictures = torch.ones(*shape, data.shape[2])
    colours = torch.zeros(*shape, CHANNELS)
    for e, m in enumerate(capacities):
        rows = starts(len(data), m, seed)
        pictures[e, :m], colours[e, :m] = shown[rows].float(), start_colours[rows]
    std = torch.full((len(capacities),), INITIAL_VAR**0.5)
    parameters = [p.requires_grad_() for p in (pictures, colours, std)]
    optimiser = AveragedAdam(parameters, schedule)
    for step in range(schedule.steps):
        clean, t, x = batch(small.flatten(1), times, draws, generator)
        estimate = low_rank(x.unflatten(1, data.shape[1:]), t, pictures, colours, std**2, mask)
        loss = noise_loss(estimate.flatten(-2), clean, t)
        optimiser.step(torch.autograd.grad(loss, parameters))
        if (step + 1) % 100 == 0:
            tick()
    if not all(torch.isfinite(p).all() for p in parameters):
        raise InputError("image_peak_lr", schedule.peak, "made the training diverge", "give a smaller one")
    made = []
    for e, m in enumerate(capacities):
        found = [p[e].detach().double() for p in parameters]
        made.append(LearnedImages(found[0][:m], found[1][:m], float(found[2]) ** 2))
    return made
