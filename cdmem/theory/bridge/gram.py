r"""Stable and unstable directions of a trained network: the Gram matrix of its last features at noisy training points.

In the random-feature model the readout learns the directions of large eigenvalues first (stable, generalising), those
of small ones last (unstable, memorising), and distillation is said to suppress the latter. A trained network is a
readout (its last linear or convolutional layer) on features phi, so the same directions exist: with inputs x_1..x_m,
the eigenvectors u_i of K_ab = <phi(x_a), phi(x_b)>, centred, are directions in the space of functions on these inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdmem.diffusion.preconditioning import Denoiser


def readout_of(network: nn.Module) -> nn.Module:
    """The last linear or convolutional layer, in order of definition (``conv_out`` of a UNet, the output of an MLP)."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    named = [m for name, m in network.named_modules() if name.endswith("conv_out") and isinstance(m, nn.Conv2d)]
    return named[-1] if named else layers[-1]


@torch.no_grad()
def last_features(denoiser: Denoiser, x: Tensor, sigma: float, labels: Tensor | None, batch: int = 256) -> Tensor:
    """What the readout sees, (m, features), float64."""
    seen: list[Tensor] = []
    hook = readout_of(denoiser.network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
    try:
        for k in range(0, len(x), batch):
            part = x[k : k + batch]
            denoiser(part, torch.full((len(part),), sigma), None if labels is None else labels[k : k + batch])
    finally:
        hook.remove()
    return torch.cat(seen).double()


@dataclass(frozen=True)
class Directions:
    """Eigenvalues of the centred Gram matrix, descending (m,), eigenvectors as columns (m, m), and how many are
    stable."""

    eigenvalues: Tensor
    vectors: Tensor
    stable: int


def directions(features: Tensor, share: float) -> Directions:
    """Directions of features (m, k); stable are the first that hold ``share`` of the trace (assumed: there is no gap in
    a trained network's spectrum to cut at)."""
    centred = features - features.mean(0)
    eigenvalues, vectors = torch.linalg.eigh(centred @ centred.T / features.shape[1])
    eigenvalues, vectors = eigenvalues.flip(0).clamp_min(0), vectors.flip(1)
    rank = max(int((eigenvalues > 1e-12 * eigenvalues[0]).sum()), 1)
    held = eigenvalues.cumsum(0) / eigenvalues.sum().clamp_min(1e-300)
    stable = min(int((held < share).sum()) + 1, max(rank - 1, 1))
    return Directions(eigenvalues[:rank], vectors[:, :rank], stable)


@dataclass(frozen=True)
class Response:
    """Teacher and student compared in the stable and in the unstable directions.

    Attributes:
        gain_stable, gain_unstable: regression of the student's response on the teacher's within the block: 1 is carried
            over, 0 is lost; a change that has nothing to do with the teacher's response leaves it at 1.
        share_change: of |student - teacher|^2 that lies in the unstable directions.
        share_teacher: of the teacher's own response there.
        share_null: of the same changes given to other inputs (the mean over permutations).
        gains: by direction, (rank,).
    """

    gain_stable: float
    gain_unstable: float
    share_change: float
    share_teacher: float
    share_null: float
    gains: Tensor

    @property
    def contrast(self) -> float:
        """gain_unstable - gain_stable: below 0 if the unstable directions are suppressed."""
        return self.gain_unstable - self.gain_stable


def compare(
    found: Directions, teacher: Tensor, student: Tensor, generator: torch.Generator, permutations: int = 50
) -> Response:
    """From responses (m, ...) on the same inputs."""
    T, S = ((r.double().flatten(1) - r.double().flatten(1).mean(0)) for r in (teacher, student))
    change = S - T
    t, s, c = (found.vectors.T @ r for r in (T, S, change))
    cross, energy, moved = (t * s).sum(1), (t**2).sum(1), (c**2).sum(1)
    k = found.stable
    null = []
    for _ in range(permutations):
        other = found.vectors.T @ change[torch.randperm(len(change), generator=generator)]
        weight = (other**2).sum(1)
        null.append(float(weight[k:].sum() / weight.sum()))
    return Response(
        float(cross[:k].sum() / energy[:k].sum()),
        float(cross[k:].sum() / energy[k:].sum()),
        float(moved[k:].sum() / moved.sum()),
        float(energy[k:].sum() / energy.sum()),
        sum(null) / len(null),
        cross / energy.clamp_min(1e-300),
    )
