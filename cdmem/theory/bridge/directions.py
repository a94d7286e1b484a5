r"""Directions of a trained network: eigenvectors of the Gram matrix of its last features at noisy training points, and
leading eigenvectors of the denoiser's symmetrised Jacobian.

In the random-feature model the readout learns the directions of large eigenvalues first (stable, generalising), those
of small ones last (unstable, memorising), and distillation is said to suppress the latter. A trained network is a
readout (its last linear or convolutional layer) on features phi, so the same directions exist: with inputs x_1..x_m,
the eigenvectors u_i of K_ab = <phi(x_a), phi(x_b)>, centred, are directions in the space of functions on these inputs.

An exact denoiser's Jacobian is symmetric and positive: the posterior covariance over sigma^2. A trained one is nearly
so; its symmetric part (J + J^T) / 2 is what has real eigenvalues, and the antisymmetric rest is reported.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdmem.diffusion.preconditioning import Denoiser

PERMUTATIONS = 50


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


def compare(along: Directions, teacher: Tensor, student: Tensor, generator: torch.Generator) -> Response:
    """From responses (m, ...) on the same inputs."""
    T, S = ((r.double().flatten(1) - r.double().flatten(1).mean(0)) for r in (teacher, student))
    change = S - T
    t, s, c = (along.vectors.T @ r for r in (T, S, change))
    cross, energy, moved = (t * s).sum(1), (t**2).sum(1), (c**2).sum(1)
    k = along.stable
    null = []
    for _ in range(PERMUTATIONS):
        other = along.vectors.T @ change[torch.randperm(len(change), generator=generator)]
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


Map = Callable[[Tensor], Tensor]


def products(function: Map, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """J v and J^T v for each point; ``function`` treats points (B, ...) independently."""
    with warnings.catch_warnings():  # torch's own rules for jvp are compiled by its deprecated torch.jit
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.jit")
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
        _, forward = torch.func.jvp(function, (x,), (v,))
    _, pull = torch.func.vjp(function, x)
    return forward, pull(v)[0]


def lanczos(function: Map, x: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``count`` largest Ritz pairs of the symmetric part at each of the points x (B, ...), full reorthogonalisation.

    The Krylov space has up to 4 count + 16 dimensions, so that the leading pairs have converged.

    Returns: eigenvalues (B, count) descending, vectors (B, count, size), and |J v - J^T v| / |J v + J^T v| of the first
        vector.
    """
    size = x[0].numel()
    steps = min(size, 4 * count + 16)
    q = torch.randn(x.shape, generator=generator, dtype=x.dtype).flatten(1)
    q = q / q.norm(dim=1, keepdim=True)
    basis, alphas, betas = [q], [], []
    skew = torch.zeros(len(x))
    for k in range(steps):
        forward, back = (p.flatten(1) for p in products(function, x, basis[-1].reshape(x.shape)))
        if k == 0:
            skew = (forward - back).norm(dim=1) / (forward + back).norm(dim=1).clamp_min(1e-30)
        w = (forward + back) / 2
        alphas.append((w * basis[-1]).sum(1))
        Q = torch.stack(basis, 1)
        for _ in range(2):  # twice is enough (Kahan)
            w = w - torch.einsum("bk,bks->bs", torch.einsum("bks,bs->bk", Q, w), Q)
        beta = w.norm(dim=1)
        if k == steps - 1:
            break
        betas.append(beta)
        fresh = torch.randn(w.shape, generator=generator, dtype=w.dtype)
        fresh = fresh - torch.einsum("bk,bks->bs", torch.einsum("bks,bs->bk", Q, fresh), Q)
        # An invariant subspace: go on in a new direction, unconnected to what is there.
        ended = beta < 1e-7 * (torch.stack(alphas).abs().amax(0) + 1e-30)
        betas[-1] = torch.where(ended, torch.zeros_like(beta), beta)
        w = torch.where(ended[:, None], fresh, w)
        basis.append(w / w.norm(dim=1, keepdim=True).clamp_min(1e-30))
    T = torch.diag_embed(torch.stack(alphas, 1))
    if betas:
        side = torch.stack(betas, 1)
        T = T + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    values, vectors = torch.linalg.eigh(T)
    top = vectors.flip(2)[:, :, :count]
    return values.flip(1)[:, :count], torch.einsum("bks,bkc->bcs", torch.stack(basis, 1), top), skew
