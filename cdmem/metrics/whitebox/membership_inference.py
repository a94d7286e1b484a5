r"""White-box membership inference: SecMI (Duan et al. 2023) and PIA (Kong et al. 2024) in noise levels.

Published for DDPM, :math:`x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon`. Divided by
:math:`\sqrt{\bar\alpha_t}` this is x0 + sigma_t eps with :math:`\sigma_t = \sqrt{(1-\bar\alpha_t)/\bar\alpha_t}`, and
one deterministic DDIM step from t to t',

.. math:: x_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat x_0 + \sqrt{1-\bar\alpha_{t'}}\,\hat\epsilon
          \;\Longrightarrow\; \tilde x' = \tilde x + (\sigma_{t'} - \sigma_t)\,\hat\epsilon(\tilde x, \sigma_t),
          \qquad \hat\epsilon = (\tilde x - D) / \sigma,

is an Euler step of the probability-flow ODE, up (inversion) or down. So both attacks need only D:

* SecMI's t-error: invert x0 to sigma_t in steps, one step further and back, :math:`|\tilde x' - \tilde x|^2`.
  Their squared error is in x_t, smaller by the constant abar_t, which changes no ranking.
* PIA: :math:`|\hat\epsilon(x_0, \sigma_0) - \hat\epsilon(x_0 + \sigma_t\hat\epsilon(x_0,\sigma_0), \sigma_t)|_4`.

The published t = 100 of 1000 with interval 10 of the linear schedule (index 0, 10, ..., 100, 110 of abar) gives
sigma 0.0100, 0.0469, ..., 0.342, 0.377. Levels below a model's own sigma_min are raised to it: the network was never
trained there. EDM's 0.002 leaves the published 0.0100 as it is.

Scores are errors, *small for members*. Neither is calibrated: plain images have small errors also when held out.
SecMI measures how bent a path is, so with a perfect memoriser it is right only below half the spacing of T; above,
it turns round, since inversion carries a held-out image into the sole reach of one training image. PIA does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Unpack

import torch
from torch import Tensor

from cdmem.diffusion.ddpm import VPSchedule
from cdmem.diffusion.noise import SIGMA_MIN
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.solvers import euler_step, slope
from cdmem.errors import InputError
from cdmem.metrics.whitebox.loss_gap import BatchOptions, batches
from cdmem.metrics.whitebox.roc import Separation, separation

TIME, INTERVAL = 100, 10


def attack_sigmas(time: int = TIME, interval: int = INTERVAL, sigma_min: float = SIGMA_MIN) -> list[float]:
    """Noise levels of DDPM times 0, interval, ..., time, time + interval (linear schedule of 1000 steps), ascending.

    Args:
        time: the attack's t, a multiple of the interval.
        interval: steps between two levels.
        sigma_min: the model's; lower levels are raised to it, equal ones dropped.

    Raises:
        InputError: t is no multiple of the interval or too large, or fewer than two levels lie above sigma_min.
    """
    if interval < 1 or time < interval or time % interval or time + interval > 999:
        raise InputError("time", time, f"must be a multiple of {interval} with a next step below 1000", "e.g. 100")
    times = torch.arange(0, time + interval + 1, interval, dtype=torch.float64)
    levels = VPSchedule().sigma(times).double().clamp_min(sigma_min).unique().tolist()
    if len(levels) < 3:
        raise InputError("sigma_min", sigma_min, f"lies above the levels of times 0 to {time}", "use a larger time")
    return levels


def _levels(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)


@torch.no_grad()
def secmi(
    denoiser: DenoiserLike,
    images: Tensor,
    sigmas: Sequence[float] | None = None,
    **options: Unpack[BatchOptions],
) -> Tensor:
    """SecMI's t-error, float64 (n,), a sum over pixels; small for members. Deterministic.

    Args:
        denoiser: D.
        images: uint8 (n, C, H, W).
        sigmas: ascending levels, positive: the image counts as one at the first, the attack is at the last but one.
            None: :func:`attack_sigmas`. Costs one evaluation a level.
        options: of :func:`~cdmem.metrics.whitebox.loss_gap.batches`.

    Raises:
        InputError: no images, or fewer than three levels, or levels that do not ascend.
    """
    levels = attack_sigmas() if sigmas is None else [float(s) for s in sigmas]
    if len(levels) < 3 or levels[0] <= 0 or any(a >= b for a, b in pairwise(levels)):
        raise InputError("sigmas", levels, "need three or more ascending levels", "see attack_sigmas")

    def error(x: Tensor, classes: Tensor | None) -> Tensor:
        for low, high in pairwise(levels[:-1]):
            x = euler_step(denoiser, x, _levels(x, low), _levels(x, high), classes)
        here, there = _levels(x, levels[-2]), _levels(x, levels[-1])
        up = euler_step(denoiser, x, here, there, classes)
        back = euler_step(denoiser, up, there, here, classes)
        return (back - x).square().flatten(1).sum(1)

    return _scores(error, images, options)


@torch.no_grad()
def pia(
    denoiser: DenoiserLike,
    images: Tensor,
    sigma: float | None = None,
    sigma_small: float | None = None,
    **options: Unpack[BatchOptions],
) -> Tensor:
    """PIA's distance, float64 (n,): the l4 norm between predicted noises; small for members. Two evaluations.

    Args:
        denoiser: D.
        images: uint8 (n, C, H, W).
        sigma: level of the attack; None is that of t = 100.
        sigma_small: level at which the noise of the clean image is predicted, no less than the model's sigma_min; None
            is that of t = 0, 0.0100.
        options: of :func:`~cdmem.metrics.whitebox.loss_gap.batches`.

    Raises:
        InputError: no images, or not 0 < sigma_small < sigma.
    """
    published = attack_sigmas()
    high = published[-2] if sigma is None else sigma
    low = published[0] if sigma_small is None else sigma_small
    if not 0 < low < high:
        raise InputError("sigma_small", low, f"must lie between 0 and sigma={high}", "e.g. 0.01")

    def error(x: Tensor, classes: Tensor | None) -> Tensor:
        first = slope(denoiser, x, _levels(x, low), classes)
        second = slope(denoiser, x + high * first, _levels(x, high), classes)
        return (first - second).flatten(1).norm(p=4, dim=1)

    return _scores(error, images, options)


def _scores(error: Callable[[Tensor, Tensor | None], Tensor], images: Tensor, options: BatchOptions) -> Tensor:
    return torch.cat([error(x, classes).cpu() for _, x, classes in batches(images, **options)])


def membership(train_scores: Tensor, heldout_scores: Tensor) -> Separation:
    """AUC with interval and TPR at 1 % FPR of errors that are small for members: (n,) of T, (h,) of H.

    Raises:
        InputError: an empty side, or a score that is not finite.
    """
    return separation(-train_scores.double().numpy(), -heldout_scores.double().numpy())
