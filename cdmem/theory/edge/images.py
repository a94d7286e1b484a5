"""The image model: templates in random colours, N(0, s^2 I_3) times a template; the trained model learns M templates.

An image is x = c (outer) T_k with three colour channels. A model of capacity M has M templates, M mean colours and one
shared colour variance; it starts from M random samples (their true templates and their colours, s^2 = 1e-6).

Published templates are FashionMNIST, resized bicubically. It comes with no dependency; here they are handwritten digits
of scikit-learn, or grey CIFAR-10 images from a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cdmem.data.sources import load_source
from cdmem.theory.edge.capacity_sweep import Problem
from cdmem.theory.edge.denoisers import low_rank
from cdmem.theory.edge.training import INITIAL_VAR, Learned, Training, minimise, padding, starts
from cdmem.theory.settings import number

SIDE = 15
CHANNELS = 3


@dataclass(frozen=True)
class Images:
    """The image model.

    Attributes:
        n: training images; 0 leaves the image model out.
        k: templates, each of a class of its own.
        seeds: data sets.
        source: digits, or cifar10; the published FashionMNIST comes with no dependency.
        folder: of cifar10.
        training: of the models.
    """

    n: int = number(40, 0, 2000)
    k: int = number(4, 1, 10)
    seeds: int = number(1, 1, 64)
    source: Literal["digits", "cifar10"] = "digits"
    folder: str | None = None
    training: Training = field(default_factory=lambda: Training(1000, 2e-3, 1e-8, 0.05, 0.1, 0.9, 1e3, 2))


def templates(images: Images, rng: np.random.Generator) -> Tensor:
    """(k, 225) templates of different classes, 15 x 15 grey pictures in [0, 1], float64.

    Raises:
        InputError: CIFAR-10 without a folder.
    """
    pool = load_source(images.source, images.folder if images.source == "cifar10" else None, grayscale=True)
    pictures, labels = pool.images[:, 0], pool.labels.numpy()
    classes = rng.permutation(10)[: images.k]
    chosen = [pictures[rng.choice(np.flatnonzero(labels == c))].numpy() for c in classes]
    return torch.from_numpy(np.stack([_resized(p) for p in chosen]).reshape(images.k, -1))


def _resized(picture: np.ndarray) -> np.ndarray:
    """Bicubic to 15 x 15, then stretched to [0, 1]."""
    small = Image.fromarray(picture.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = np.asarray(small, dtype=float)
    return (values - values.min()) / (values.max() - values.min())


@dataclass(frozen=True)
class ImageProblem(Problem):
    """Points are images (3, P); ``shown`` (N, P) is the template of each training image."""

    shown: Tensor


@dataclass(frozen=True)
class LearnedImages(Learned):
    """A trained model of mean images (M, 3, P), templates (M, P), colours (M, 3); ``var`` is that of the colours."""

    templates: Tensor
    colours: Tensor

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Its denoiser."""
        return low_rank(x, t, self.templates, self.colours, self.var)


def image_problem(templates: Tensor, n: int, fresh: int, samples: int, seed: int) -> ImageProblem:
    """Data of the image model with colour mean 0 and variance 1."""
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
    return ImageProblem(data, held, true_means, true, noise, draw(4096)[0], seed, templates[labels])


def train_images(
    problem: ImageProblem, capacities: Sequence[int], seed: int, training: Training
) -> list[LearnedImages]:
    """As :func:`cdmem.theory.edge.training.train`, for images: templates and colours of random samples as a start.

    Raises:
        InputError: the training diverged.
    """
    data, shown, mask = problem.data, problem.shown, padding(capacities)
    start_colours = (data.sum(-1) / shown.sum(-1, keepdim=True)).float()
    rows = [starts(len(data), m, seed) for m in capacities]
    # Padding is a template of ones: a zero template has no direction, and its weight is -inf anyway.
    pictures = pad_sequence([shown[k].float() for k in rows], True, 1.0)
    colours = pad_sequence([start_colours[k] for k in rows], True)
    std = torch.full((len(capacities),), INITIAL_VAR**0.5)
    parameters = [p.requires_grad_() for p in (pictures, colours, std)]

    def estimate(x: Tensor, t: Tensor) -> Tensor:
        return low_rank(x.unflatten(1, data.shape[1:]), t, pictures, colours, std**2, mask).flatten(-2)

    minimise(estimate, parameters, data, training, seed, "images.training.peak_lr")
    done, tints, deviations = (p.detach().double() for p in parameters)
    means = tints[..., None] * done[:, :, None]
    return [
        LearnedImages(means[e, :m], float(deviations[e]) ** 2, done[e, :m], tints[e, :m])
        for e, m in enumerate(capacities)
    ]
