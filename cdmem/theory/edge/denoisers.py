"""Exact posterior means E[x | x_t] under Gaussian mixtures with equal weights.

All are batched, differentiable and work in the type of their arguments; posteriors are soft-maxes of log weights, so no
density is ever formed. In float64 they hold down to t = 1e-3 and variance 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdmem.theory.edge.mixture import alpha


def isotropic(x: Tensor, t: Tensor | float, means: Tensor, var: Tensor | float, mask: Tensor | None = None) -> Tensor:
    """Under (1/M) sum_i N(mu_i, var I); with var = 0 and data for means, the memorising denoiser.

    Args:
        x: (..., R, d) noisy points.
        t: their times, a number or (..., R).
        means: (..., M, d).
        var: a number or (...).
        mask: log weights to add, (..., M): -inf switches a mean off.

    Returns:
        (..., R, d).
    """
    t = torch.as_tensor(t, dtype=x.dtype)
    a, var = alpha(t), torch.as_tensor(var, dtype=x.dtype)[..., None]
    v = a**2 * var + t**2  # (..., R) or (..., 1)
    # The part of -|alpha mu - x|^2 / 2 that depends on i.
    logits = (x * a[..., None]) @ means.mT - (means**2).sum(-1)[..., None, :] * (a**2)[..., None] / 2
    logits = logits / v[..., None]
    if mask is not None:
        logits = logits + mask[..., None, :]
    centre = torch.softmax(logits, -1) @ means
    return (a * var / v)[..., None] * x + (t**2 / v)[..., None] * centre


def general(x: Tensor, t: Tensor | float, means: Tensor, covariances: Tensor) -> Tensor:
    """Under (1/M) sum_i N(mu_i, Sigma_i), Sigma_i positive semidefinite.

    Args:
        x: (R, d) noisy points.
        t: one time for all.
        means: (M, d).
        covariances: (M, d, d).

    Returns:
        (R, d).
    """
    t = torch.as_tensor(t, dtype=x.dtype)
    a = alpha(t)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    factor = torch.linalg.cholesky(a**2 * covariances + t**2 * eye)  # (M, d, d)
    away = (x[None] - a * means[:, None]).mT  # (M, d, R)
    half = torch.linalg.solve_triangular(factor, away, upper=False)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    weights = torch.softmax(-log_det[:, None] / 2 - (half**2).sum(1) / 2, 0)  # (M, R)
    # mu + alpha Sigma S^-1 (x - alpha mu), which needs no division by alpha.
    solved = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    inner = means[:, :, None] + a * covariances @ solved
    return (weights[:, None] * inner).sum(0).mT


def low_rank(
    x: Tensor, t: Tensor | float, templates: Tensor, colours: Tensor, var: Tensor | float, mask: Tensor | None = None
) -> Tensor:
    """Under templates in random colours: image = c (outer) template_i, c ~ N(u_i, var I), so Sigma_i = var I (x) T T^t.

    By Sherman-Morrison everything happens in the C colour coordinates of each template.

    Args:
        x: (..., R, C, P) noisy images of C channels and P pixels.
        t: their times, a number or (..., R).
        templates: (..., M, P).
        colours: (..., M, C), the u_i.
        var: a number or (...).
        mask: log weights to add, (..., M).

    Returns:
        (..., R, C, P).
    """
    t = torch.as_tensor(t, dtype=x.dtype)[..., None]  # (..., R, 1)
    a, var = alpha(t), torch.as_tensor(var, dtype=x.dtype)[..., None, None]
    size = (templates**2).sum(-1)[..., None, :]  # |T|^2, (..., 1, M)
    wide = t**2 + a**2 * var * size  # (..., R, M): eigenvalue along the template
    channels = colours.shape[-1]
    seen = x.flatten(-3, -2) @ templates.mT  # (..., R C, M)
    seen = seen.unflatten(-2, (-1, channels)).mT  # (..., R, M, C): the image in template coordinates
    mean = a[..., None] * colours[..., None, :, :]
    off = seen - mean * size[..., None]
    # |x - alpha mu|^2 without |x|^2, by Sherman-Morrison.
    far = -2 * (mean * seen).sum(-1) + (mean**2).sum(-1) * size
    far = (far - a**2 * var / wide * (off**2).sum(-1)) / t**2
    logits = -far / 2 - channels / 2 * (wide / t**2).log()
    if mask is not None:
        logits = logits + mask[..., None, :]
    weights = torch.softmax(logits, -1)
    inner = colours[..., None, :, :] + (a * var / wide)[..., None] * off  # posterior colour, (..., R, M, C)
    flat = (weights[..., None] * inner).mT.flatten(-3, -2) @ templates  # (..., R C, P)
    return flat.unflatten(-2, (-1, channels))
