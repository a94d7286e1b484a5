"""The network s_A(x) = A sigma(W x / sqrt d) / sqrt p, its data, and the Gaussian moments of its activation, on which
spectrum and losses depend (Bonnaire et al. 2025, eq. 2.7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import erf

from cdmem.theory.settings import number

Activation = Callable[[np.ndarray], np.ndarray]
ACTIVATIONS: dict[str, Activation] = {
    "tanh": np.tanh,
    "erf": erf,
    "sin": np.sin,
    "relu": lambda x: np.maximum(x, 0.0),
    "softplus": lambda x: np.logaddexp(0.0, x),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
}
KINKED = frozenset({"relu"})  # not smooth at 0
REACH = 10.0  # standard deviations; beyond it the Gaussian weighs 1e-22
ROWS = 512  # points at a time: what lies between data and features stays in the cache
NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)


def gaussian_rule(mean: np.ndarray, sd: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of E[f(mean + sd g)], each of the broadcast shape + (192,), exact for smooth f and for f with a
    kink at 0: Gauss-Legendre on two panels that meet at 0 where 0 is in reach, else at the mean; sd is positive."""
    mean, sd = np.broadcast_arrays(np.asarray(mean, float), np.asarray(sd, float))
    low, high = mean - REACH * sd, mean + REACH * sd
    cut = np.where((low < 0) & (high > 0), 0.0, mean)
    nodes, weights = [], []
    for a, b in ((low, cut), (cut, high)):
        x = (a + b)[..., None] / 2 + (b - a)[..., None] / 2 * NODES
        g = (x - mean[..., None]) / sd[..., None]
        nodes.append(x)
        weights.append((b - a)[..., None] / 2 * WEIGHTS * np.exp(-(g**2) / 2) / math.sqrt(2 * math.pi) / sd[..., None])
    return np.concatenate(nodes, -1), np.concatenate(weights, -1)


def delta(t: float) -> float:
    """Noise variance Delta_t = 1 - exp(-2t) of the Ornstein-Uhlenbeck process at time t."""
    return -math.expm1(-2 * t)


@dataclass(frozen=True)
class Constants:
    """Constants of eq. (2.7) at OU time t, with noise variance Delta.

    With sigma_x = sqrt(tr Sigma / d), z = e^-t sigma_x u + sqrt(Delta) v for independent standard normal u, v and
    Gamma^2 = Var z:

    Attributes:
        mu_0: E sigma(Gamma u); 0 for odd activations. The published theory assumes 0; with mu_0 != 0 the features keep
            the published structure after their mean is taken off, and U has one more eigenvalue near p mu_0^2.
        a: a_t = E[sigma(z) u] / (e^-t sigma_x).
        b: b_t = E[sigma(z) v].
        v2: v_t^2, less mu_0^2.
        s2: s_t^2, less mu_0^2: the atom.
        norm2: E sigma(Gamma u)^2.
        mu_1: E[sigma(Gamma u) u].
    """

    t: float
    Delta: float
    sigma_x: float
    gamma: float
    mu_0: float
    a: float
    b: float
    v2: float
    s2: float
    norm2: float
    mu_1: float


def constants(t: float, sigma_x: float = 1.0, activation: str = "tanh") -> Constants:
    """The constants, to about 1e-12.

    a_t and b_t follow from one integral by Stein's identity: E[sigma(z) u] = e^-t sigma_x mu_1 / Gamma.
    """
    sigma = ACTIVATIONS[activation]
    signal, noise = math.exp(-t) * sigma_x, math.sqrt(delta(t))
    gamma = math.hypot(signal, noise)
    x, w = gaussian_rule(np.zeros(()), gamma)
    value = sigma(x)
    mu_0, norm2, mu_1 = (float(v) for v in (w @ value, w @ value**2, w @ (value * x) / gamma))
    u, weight = gaussian_rule(np.zeros(()), 1.0)
    inner_x, inner_w = gaussian_rule(signal * u, noise)
    shared = float(weight @ (inner_w * sigma(inner_x)).sum(-1) ** 2)
    a, b = mu_1 / gamma, noise * mu_1 / gamma
    v2 = shared - mu_0**2 - (a * signal) ** 2
    return Constants(t, delta(t), sigma_x, gamma, mu_0, a, b, v2, norm2 - shared - b**2, norm2, mu_1)


@dataclass(frozen=True)
class Network:
    """Sizes of the network and the time.

    Attributes:
        d: dimension of the data.
        psi_p: p / d, features per dimension.
        psi_n: n / d of the spectrum.
        t: Ornstein-Uhlenbeck time.
    """

    d: int = number(30, 2)
    psi_p: float = number(32.0, 2)
    psi_n: float = number(4.0, 0, open=True)
    t: float = number(0.1, 0, 10, open=True)

    @property
    def p(self) -> int:
        """Number of features."""
        return round(self.psi_p * self.d)

    @property
    def n(self) -> int:
        """Number of training points."""
        return round(self.psi_n * self.d)


@dataclass(frozen=True)
class Features:
    """phi(x) = sigma(W x / sqrt d) with frozen, standard normal weights W (p, d)."""

    weights: np.ndarray
    activation: str = "tanh"

    @property
    def d(self) -> int:
        """Dimension of the data."""
        return self.weights.shape[1]

    @property
    def p(self) -> int:
        """Number of features."""
        return self.weights.shape[0]

    @property
    def psi_p(self) -> float:
        """p / d."""
        return self.p / self.d

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Features (N, p) of x (N, d)."""
        weights, apply = self.weights.T / math.sqrt(self.d), ACTIVATIONS[self.activation]
        phi = np.empty((len(x), self.p))
        for k in range(0, len(x), ROWS):
            phi[k : k + ROWS] = apply(x[k : k + ROWS] @ weights)
        return phi


def make_features(p: int, d: int, rng: np.random.Generator, activation: str = "tanh") -> Features:
    """Features with fresh weights."""
    return Features(rng.standard_normal((p, d)), activation)


def gaussian_data(n: int, spectrum: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, d) points of N(0, diag(spectrum)); a rotation would change nothing, as W is isotropic."""
    return rng.standard_normal((n, len(spectrum))) * np.sqrt(spectrum)


def noised(data: np.ndarray, t: float, noise: np.ndarray) -> np.ndarray:
    """x_t = e^-t x + sqrt(Delta) xi; ``noise`` is (..., n, d)."""
    return math.exp(-t) * data + math.sqrt(delta(t)) * noise
