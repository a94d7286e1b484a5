"""How many different training images two models copy, at equal numbers of copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import gammaln

FEWER = 0.8  # of the teacher's different images, at equal numbers of copies


def expected_distinct(hits: np.ndarray, copies: int) -> float:
    """Different images among ``copies`` of all copies, drawn at random without replacement (Hurlbert 1971).

    Args:
        hits: copies of each image, whole numbers (g,); ``copies`` is at most their sum.
    """
    hits = np.asarray(hits, dtype=np.float64)
    total = hits.sum()
    rest = total - hits
    left = rest >= copies  # otherwise the image is drawn for certain
    logs = gammaln(rest[left] + 1) - gammaln(rest[left] - copies + 1)
    logs += gammaln(total - copies + 1) - gammaln(total + 1)
    return float((hits > 0).sum() - np.exp(logs).sum() + ((hits == 0) & left).sum())


def images_copied(teacher: np.ndarray, student: np.ndarray) -> dict[str, Any]:
    """Different images that each model copies.

    Args:
        teacher: group of every memorised sample, (k,).
        student: the same of the student.

    Returns:
        ``teacher`` and ``student`` (counts), ``ratio`` (student over teacher at equal numbers of copies) and ``fewer``
        (whether it lies below :data:`FEWER`); the last two None where one of them copies nothing.
    """
    counts = [np.unique(groups, return_counts=True)[1] for groups in (teacher, student)]
    record: dict[str, Any] = {"teacher": len(counts[0]), "student": len(counts[1]), "ratio": None, "fewer": None}
    copies = int(min(c.sum() for c in counts))
    if copies:
        of_teacher, of_student = (expected_distinct(c, copies) for c in counts)
        record["ratio"] = of_student / of_teacher
        record["fewer"] = record["ratio"] < FEWER
    return record
