"""Leading eigenpairs of the denoiser's symmetrised Jacobian at many points at once.

An exact denoiser's Jacobian is symmetric and positive: the posterior covariance over sigma^2. A trained one is nearly
so; its symmetric part (J + J^T) / 2 is what has real eigenvalues, and the antisymmetric rest is reported.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

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
