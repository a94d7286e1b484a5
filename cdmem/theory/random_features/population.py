"""The spectrum of Sigma: isotropic, with levels, or of real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cdmem.data.sources import load_source
from cdmem.errors import InputError

Kind = Literal["isotropic", "levels", "digits", "cifar10"]


def spectrum_of(
    kind: Kind, d: int, sigma_x: float | None, levels: Sequence[float], images: str | None, subset: int
) -> np.ndarray:
    """The d eigenvalues of Sigma, descending.

    Args:
        kind: ``isotropic``; ``levels``, each for an equal share of the d directions; or the covariance of the first
            ``subset`` grey images of ``digits`` or ``cifar10``, in its d leading principal directions.
        d: dimension.
        sigma_x: scales the spectrum so that tr Sigma / d = sigma_x^2; None leaves levels as they are, else means 1.
        levels: for ``levels``.
        images: folder of ``cifar10``.
        subset: number of images.

    Raises:
        InputError: levels that do not divide d, more directions than pixels or images, images that cannot be read.
    """
    if kind == "levels":
        if not levels or d % len(levels):
            raise InputError("levels", list(levels), f"do not share d = {d} evenly", "give a divisor of d as many")
        if min(levels) < 0 or max(levels) <= 0:
            raise InputError("levels", list(levels), "are no variances", "give numbers >= 0, one of them > 0")
        spectrum = np.repeat(np.asarray(levels, float), d // len(levels))
        scale = 1.0 if sigma_x is None else sigma_x**2 / spectrum.mean()
        return np.sort(spectrum)[::-1] * scale
    variance = 1.0 if sigma_x is None else sigma_x**2
    if kind == "isotropic":
        return np.full(d, variance)
    pool = load_source(kind, images if kind == "cifar10" else None, grayscale=True)
    pixels = pool.images[:subset].flatten(1).numpy().astype(float)
    largest = min(pixels.shape[1], len(pixels) - 1)
    if d > largest:
        problem = f"{len(pixels)} images of {pixels.shape[1]} pixels span {largest} directions"
        raise InputError("d", d, problem, f"use d <= {largest}")
    spectrum = np.linalg.eigvalsh(np.cov(pixels.T))[::-1][:d]
    return np.clip(spectrum, 0, None) * variance / spectrum.mean()
