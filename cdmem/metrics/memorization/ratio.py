"""d1 / d2 and the predicate on it, from squared distances in torch or numpy; importing this loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Rows = TypeVar("Rows", "Tensor", np.ndarray)


def _double(values: Rows) -> Rows:
    """The same in float64; numpy's arrays have no ``double``."""
    return values.double() if hasattr(values, "double") else values.astype(np.float64)


def _root(values: Rows) -> Rows:
    """Square root; numpy rounds it correctly, torch need not."""
    return values.sqrt() if hasattr(values, "sqrt") else np.sqrt(values)


def memorized(squared1: Rows, squared2: Rows, threshold: float = 1 / 3) -> Rows:
    """d1 / d2 < threshold from exact squared distances, bool (m,); a bit-exact copy is memorised."""
    return _double(squared1) < threshold**2 * _double(squared2)


def ratios(squared: Rows) -> Rows:
    """d1 / d2 from int64 (m, >= 2) squared distances: float64 (m,), 0 for a bit-exact copy."""
    # Groups differ in content, so d2 = 0 cannot happen beside d1 = 0; the clip only keeps 0/0 out of near-groups.
    return _root(_double(squared[:, 0]) / _double(squared[:, 1]).clip(1e-300))
