r"""Samples as pure functions of their integer seed, for teachers (ODE) and students (consistency steps).

A sample's noise comes from a CPU generator of its own, so the picture of seed 7 does not depend on the batch it was
made in, on the device count, or on how many network evaluations are spent. Teacher and student share the first noise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from cdmem.diffusion.noise import expand
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.solvers import SolverStep, euler_step
from cdmem.seeds import Stream, sample_seed


class NoiseSource:
    """Noise and labels of the given sample seeds, drawn in a fixed order per seed.

    Args:
        seeds: integer sample seeds, length B.
        shape: (C, H, W).
        device: where the draws end up; they are always *made* on the CPU.
        stream: of the noise.
    """

    def __init__(
        self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu", stream: Stream = "samples"
    ) -> None:
        self.seeds, self.shape, self.device = [int(s) for s in seeds], tuple(shape), device
        self.generators = [torch.Generator().manual_seed(sample_seed(s, stream)) for s in self.seeds]

    def next(self) -> Tensor:
        """The next unit Gaussian draw of every seed: (B, C, H, W) float32."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)

    def labels(self, num_classes: int, classes: Sequence[int] = ()) -> Tensor | None:
        """Class labels (B,), functions of the seeds alone; None without classes.

        Uniform, from a stream of their own (never the global one); or ``classes`` in turn: seed s has number s modulo
        their count.
        """
        if num_classes == 0:
            return None
        if classes:
            return torch.tensor([classes[s % len(classes)] for s in self.seeds], device=self.device)
        drawn = [
            torch.randint(num_classes, (), generator=torch.Generator().manual_seed(sample_seed(s, "labels")))
            for s in self.seeds
        ]
        return torch.stack(drawn).to(self.device)


@torch.no_grad()
def ode_states(
    denoiser: DenoiserLike, x: Tensor, sigmas: Tensor, step: SolverStep, labels: Tensor | None = None
) -> Iterator[Tensor]:
    """Walk the probability-flow ODE down ``sigmas`` (M,), decreasing: the state at each of them, float64, x first.

    Args:
        x: starting point at sigmas[0], (B, C, H, W).
        step: :func:`~cdmem.diffusion.solvers.heun_step` or ``euler_step``.
    """
    state = x.double()
    yield state
    for sigma, sigma_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist()):
        hi = torch.full((len(x),), sigma, dtype=torch.float64, device=x.device)
        lo = torch.full_like(hi, sigma_next)
        state = step(denoiser, state, hi, lo, labels)
        yield state


def sample_ode(
    denoiser: DenoiserLike, x: Tensor, sigmas: Tensor, step: SolverStep, labels: Tensor | None = None
) -> Tensor:
    """The end of :func:`ode_states`, whose ``sigmas`` usually end in 0: float32, not clamped."""
    (end,) = deque(ode_states(denoiser, x, sigmas, step, labels), maxlen=1)
    return end.float()


@torch.no_grad()
def sample_consistency(
    consistency: DenoiserLike,
    x: Tensor,
    sigmas: Sequence[float],
    sigma_min: float,
    noise: Callable[[], Tensor],
    labels: Tensor | None = None,
) -> Tensor:
    """Multi-step consistency sampling (Song et al. 2023, alg. 1): x at sigmas[0], then re-noised to each later sigma.

    Args:
        sigmas: sigma_max followed by the mid levels, strictly decreasing, all above sigma_min.
        noise: the next unit Gaussian draw, shaped like x; the added std is sqrt(tau^2 - sigma_min^2).

    Returns:
        the last call's output: noise-free, float32, not clamped.

    Raises:
        ValueError: the levels do not decrease or touch sigma_min (the picture would come back with noise on it).
    """
    levels = [float(s) for s in sigmas]
    if any(a <= b for a, b in pairwise(levels)) or levels[-1] <= sigma_min:
        raise ValueError(f"sampling levels must decrease and stay above sigma_min={sigma_min}, got {levels}")
    for k, level in enumerate(levels):
        if k > 0:
            x = x + (level**2 - sigma_min**2) ** 0.5 * noise()
        sigma = torch.full((len(x),), level, device=x.device)
        x = consistency(x, sigma, labels)
    return x.float()


@dataclass
class OdeSampler:
    """Seed -> image through the teacher's ODE.

    Args:
        denoiser: D(x; sigma).
        sigmas: grid ending in 0, see :func:`~cdmem.diffusion.noise.sampler_sigmas`.
        step: solver step.
        classes: given in turn; empty draws them.
    """

    denoiser: DenoiserLike
    sigmas: Tensor
    step: SolverStep
    shape: tuple[int, ...]
    num_classes: int = 0
    classes: Sequence[int] = ()

    @property
    def nfe(self) -> int:
        """Network evaluations per sample: Heun costs 2 a step except the last one, to 0."""
        steps = len(self.sigmas) - 1
        return steps if self.step is euler_step else 2 * steps - int(self.sigmas[-1] == 0)

    def __call__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        noise = NoiseSource(seeds, self.shape, device)
        x = noise.next().double() * float(self.sigmas[0])
        labels = noise.labels(self.num_classes, self.classes)
        return sample_ode(self.denoiser, x, self.sigmas, self.step, labels)


@dataclass
class ConsistencySampler:
    """Seed -> image through the student in ``1 + len(mid_sigmas)`` evaluations."""

    consistency: DenoiserLike
    sigma_max: float
    sigma_min: float
    shape: tuple[int, ...]
    mid_sigmas: Sequence[float] = field(default_factory=tuple)
    num_classes: int = 0
    classes: Sequence[int] = ()

    @property
    def nfe(self) -> int:
        return 1 + len(self.mid_sigmas)

    def __call__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        noise = NoiseSource(seeds, self.shape, device)
        levels = [self.sigma_max, *self.mid_sigmas]
        return sample_consistency(
            self.consistency,
            noise.next() * self.sigma_max,
            levels,
            self.sigma_min,
            noise.next,
            noise.labels(self.num_classes, self.classes),
        )


Sampler = OdeSampler | ConsistencySampler


def in_batches(
    sampler: Sampler, seeds: Sequence[int], batch_size: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (seeds int64 (b,), images float32 (b, C, H, W) on the CPU), ``batch_size`` at a time."""
    for start in range(0, len(seeds), batch_size):
        chunk = list(seeds[start : start + batch_size])
        yield torch.tensor(chunk), sampler(chunk, device).cpu()


def renoise(x0: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    """x0 + sigma eps with one sigma per sample, in float32 (bfloat16 could not tell neighbouring levels apart)."""
    return x0.float() + expand(sigma.float(), x0) * eps.float()
