r"""U = E[phi phi^T] and V = E[phi xi^T]: exact expectations over the noise, over the population, or by given draws.

For one training point x the pre-activations of the features i and j at x_t are jointly Gaussian with means a_i, a_j,
deviations b_i, b_j and correlation rho_ij = cos(w_i, w_j). With c_k(a, b) = E[sigma(a + b g) h_k(g)] for normalised
Hermite polynomials h_k (Mehler's formula), E[phi_i phi_j] = sum_k c_k(a_i, b_i) c_k(a_j, b_j) rho_ij^k. The diagonal is
exact; off it rho is small and few terms are enough. What is left out is bounded by Cauchy-Schwarz and reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cdmem.data.sources import load_source
from cdmem.errors import InputError
from cdmem.theory.random_features.model import ACTIVATIONS, KINKED, Features, delta, gaussian_rule, noised

CHUNK = 2**13  # pre-activations at a time: they and their nodes stay in the cache
BLOCK = 2**29  # bytes of coefficients at a time
ORDER = 40
G, G_WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
G_WEIGHTS = G_WEIGHTS / math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Moments:
    """U (p, p), V (p, d) and a bound on the error of any entry of U (NaN for given draws)."""

    U: np.ndarray
    V: np.ndarray
    error: float


def hermite_coefficients(
    activation: str, mean: np.ndarray, sd: np.ndarray, order: int
) -> tuple[np.ndarray, np.ndarray]:
    """c_0..c_order, (order + 1, ...), and E[sigma^2], both for every mean and sd (broadcast)."""
    mean, sd = np.broadcast_arrays(mean, sd)
    shape, mean, sd = mean.shape, mean.ravel(), sd.ravel()
    coefficients, second = np.empty((order + 1, mean.size)), np.empty(mean.size)
    basis = np.array(list(_hermite(G, order))) * G_WEIGHTS
    for k in range(0, mean.size, CHUNK):
        part = slice(k, k + CHUNK)
        if activation in KINKED:
            x, w = gaussian_rule(mean[part], sd[part])
            value = ACTIVATIONS[activation](x)
            second[part] = (w * value**2).sum(-1)
            for q, h in enumerate(_hermite((x - mean[part, None]) / sd[part, None], order)):
                coefficients[q, part] = (w * h * value).sum(-1)
        else:
            value = ACTIVATIONS[activation](mean[part, None] + sd[part, None] * G)
            second[part] = value**2 @ G_WEIGHTS
            coefficients[:, part] = basis @ value.T
    return coefficients.reshape(order + 1, *shape), second.reshape(shape)


def _hermite(g: np.ndarray, order: int) -> Iterator[np.ndarray]:
    """Normalised polynomials h_0..h_order at g, each of its shape."""
    before, now = np.zeros_like(g), np.ones_like(g)
    for q in range(order + 1):
        yield now
        before, now = now, (g * now - math.sqrt(q) * before) / math.sqrt(q + 1)


def _order_needed(activation: str, mean: np.ndarray, sd: float, largest: float, tolerance: float) -> int:
    """Terms that the feature with the largest deviation needs, for pre-activations of means (n,) and correlations up to
    ``largest``; coefficients of the others fall faster."""
    c, second = hermite_coefficients(activation, mean, np.full_like(mean, sd), ORDER)
    left = np.clip(second - np.cumsum(c**2, axis=0), 0, None).mean(-1)
    enough = np.flatnonzero(left * largest ** np.arange(1, ORDER + 2) < tolerance / 10)
    return int(enough[0]) + 1 if len(enough) and enough[0] < ORDER else ORDER


def _assemble(
    coefficients: np.ndarray, second: np.ndarray, rho: np.ndarray, tolerance: float
) -> tuple[np.ndarray, float]:
    """Sum of Mehler's series for coefficients (K, p, n) and E[sigma^2] (p, n), averaged over n."""
    n = second.shape[-1]
    np.fill_diagonal(rho, 0.0)
    largest = float(np.abs(rho).max()) if rho.size > 1 else 0.0
    power, total, error = np.ones_like(rho), np.zeros_like(rho), 0.0
    left = second.copy()  # energy not yet summed, per feature and point
    for c in coefficients:
        total += (c @ c.T / n) * power
        left -= c**2
        power = power * rho
        # |sum over the rest| <= (energy left of i * energy left of j)^(1/2) * largest^k; power holds the next k.
        error = float(np.clip(left, 0, None).mean(-1).max() * np.abs(power).max(initial=0.0)) if largest else 0.0
        if error < tolerance:
            break
    np.fill_diagonal(total, second.mean(-1))
    return total, error


def training_moments(features: Features, data: np.ndarray, t: float, tolerance: float = 1e-9) -> Moments:
    """Exact over the noise, for training points (n, d).

    Memory: five p x p matrices and half a GiB; time: p^2 n per order, of which small t needs few.
    """
    norms = np.linalg.norm(features.weights, axis=1)
    sd = math.sqrt(delta(t)) * norms / math.sqrt(features.d)
    mean = math.exp(-t) * features.weights @ data.T / math.sqrt(features.d)
    directions = features.weights / norms[:, None]
    rho, n, error = directions @ directions.T, len(data), 0.0
    np.fill_diagonal(rho, 0.0)
    widest = int(sd.argmax())
    order = _order_needed(features.activation, mean[widest], float(sd[widest]), float(np.abs(rho).max()), tolerance)
    U, first = np.zeros_like(rho), np.zeros(features.p)
    block = max(int(BLOCK / (8 * (order + 1) * features.p)), 1)
    for k in range(0, n, block):
        c, second = hermite_coefficients(features.activation, mean[:, k : k + block], sd[:, None], order)
        part, worst = _assemble(c, second, rho, tolerance)
        part *= second.shape[1] / n
        U += part
        first += c[1].sum(-1) / n
        error += worst * second.shape[1] / n
    return Moments(U, first[:, None] * directions, error)


@dataclass(frozen=True)
class Population(Moments):
    """Expectations over fresh points of N(0, Sigma) as well; S = E[phi grad log P_t(y)^T] (p, d), score2 = E|grad log
    P_t|^2."""

    S: np.ndarray
    score2: float


def population_moments(features: Features, spectrum: np.ndarray, t: float, tolerance: float = 1e-9) -> Population:
    """Exact, for data N(0, diag(spectrum)): the noisy law is N(0, Sigma_t) with Sigma_t = e^-2t Sigma + Delta."""
    total = math.exp(-2 * t) * spectrum + delta(t)
    scaled = features.weights * np.sqrt(total)
    norms = np.linalg.norm(scaled, axis=1)
    directions = scaled / norms[:, None]
    sd = norms / math.sqrt(features.d)
    c, second = hermite_coefficients(features.activation, np.zeros(len(sd)), sd, ORDER)
    U, error = _assemble(c[:, :, None], second[:, None], directions @ directions.T, tolerance)
    # Stein: E[phi y^T] = E[sigma'] Sigma_t w / sqrt d, and E[sigma'] = c_1 / sd.
    slope = (c[1] / sd)[:, None] * features.weights / math.sqrt(features.d)
    return Population(U, slope * math.sqrt(delta(t)), error, -slope, float((1 / total).sum()))


def drawn_moments(features: Features, data: np.ndarray, t: float, noise: np.ndarray) -> Moments:
    """From given noise (m, n, d): the same draws wherever two moments are compared (common random numbers)."""
    phi = features(noised(data, t, noise).reshape(-1, features.d))
    xi = noise.reshape(-1, features.d)
    return Moments(phi.T @ phi / len(phi), phi.T @ xi / len(phi), math.nan)


Kind = Literal["isotropic", "levels", "digits", "cifar10"]


def spectrum_of(
    kind: Kind, d: int, sigma_x: float | None, levels: Sequence[float], images: str | None, subset: int
) -> np.ndarray:
    """The d eigenvalues of Sigma, descending: ``isotropic``; ``levels``, each for an equal share of the directions; or
    of the covariance of the first ``subset`` grey images of ``digits`` or ``cifar10`` (folder ``images``), in its d
    leading principal directions. Scaled so that tr Sigma / d = sigma_x^2; None leaves levels as they are, else means 1.

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
