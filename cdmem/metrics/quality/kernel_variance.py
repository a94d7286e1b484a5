r"""Unbiased variance of the kernel distance, from sums of the kernel alone.

KID is a U-statistic. With g(x) = E k(x, x') - E k(x, y) and the doubly centred kernels its variance is *exactly*

.. math:: \frac{4 V[g(x)]}{n} + \frac{4 V[g(y)]}{m} + \frac{2 \tau_{xx}}{n (n - 1)} + \frac{2 \tau_{yy}}{m (m - 1)}
   + \frac{4 \tau_{xy}}{n m}

(Hoeffding 1948), and products over *different* rows estimate every part without bias (Sutherland et al. 2017). The
jackknife counts the parts with tau twice, and they are all there is where both sides have one distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Within:
    """Sums of a symmetric kernel over the pairs of one side: over the other rows, float64 (n,), and of squares."""

    rows: Tensor
    squares: float

    def moments(self) -> tuple[float, float, float]:
        """Unbiased E k(a, b)^2, E k(a, b) k(a, c) and E k(a, b) k(c, d) over different rows; at least four."""
        n, total, rows = len(self.rows), float(self.rows.sum()), float(self.rows.square().sum())
        pairs, triples = n * (n - 1), n * (n - 1) * (n - 2)
        apart = total**2 - 4 * rows + 2 * self.squares
        return self.squares / pairs, (rows - self.squares) / triples, apart / (triples * (n - 3))


@dataclass(frozen=True)
class Between:
    """Sums of the kernel between two sides: over the columns (n,), over the rows (m,), and of squares."""

    rows: Tensor
    columns: Tensor
    squares: float


def variance_to_given(within: Within, across: Tensor) -> float:
    """Unbiased variance of KID over samples, to a given distribution with mean kernel ``across`` (n,) at each of them.

    It is that of a one-sample U-statistic with kernel k(a, b) - q(a) - q(b).
    """
    n, total = len(across), across.sum()
    rows = within.rows - (n - 2) * across - total
    both = 2 * (n - 1) * across.square().sum() + 2 * (total**2 - across.square().sum())
    squares = within.squares - 4 * (within.rows * across).sum() + both
    second, first, mean = Within(rows, float(squares)).moments()
    return 4 * (first - mean) / n + 2 * (second - 2 * first + mean) / (n * (n - 1))


def variance_to_sample(x: Within, y: Within, between: Between) -> float:
    """Unbiased variance of KID over the samples of both sides."""
    n, m = len(x.rows), len(y.rows)
    total = float(between.rows.sum())
    rows, columns = (float(sums.square().sum()) for sums in (between.rows, between.columns))
    squares, pairs = between.squares, n * m
    alike = squares / pairs
    along_x, along_y = (rows - squares) / (pairs * (m - 1)), (columns - squares) / (pairs * (n - 1))
    apart = (total**2 - rows - columns + squares) / (pairs * (n - 1) * (m - 1))
    variance = 4 * (alike - along_x - along_y + apart) / pairs
    for side, across, along, other in ((x, between.rows, along_x, m), (y, between.columns, along_y, n)):
        k = len(side.rows)
        second, first, mean = side.moments()
        shared = float((side.rows * across).sum())
        mixed = shared / (k * (k - 1) * other)
        mixed_apart = (float(side.rows.sum()) * total - 2 * shared) / (k * (k - 1) * (k - 2) * other)
        variance += 4 * (first - mean + along - apart - 2 * (mixed - mixed_apart)) / k
        variance += 2 * (second - 2 * first + mean) / (k * (k - 1))
    return variance


def jackknife_variance(left_out: Tensor) -> Tensor:
    """Of a statistic, from its values without each row (n,)."""
    return (len(left_out) - 1) / len(left_out) * (left_out - left_out.mean()).square().sum()
