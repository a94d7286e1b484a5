"""What an audit leaves: plain types, as ``audit/summary.json`` has them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

SCHEMA = 1


def plain(value: Any) -> Any:
    """The same value out of JSON's own types: arrays become lists, what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):  # an array or a tensor
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@dataclass
class AuditResult:
    """What ``audit/summary.json`` holds; later versions add keys and rename none.

    Attributes:
        training_set: ``n``, ``rows``, ``hash``, ``held_out``, ``source``, ``groups``.
        models: one entry per subject, see :meth:`Auditor.measure`.
        control: ``heldout_f_mem`` (held-out images as if they were samples) and ``copycat`` (T itself as samples).
        settings: samples, threshold, features with their digests, grouping.
        distillation: per student, the curve and whether it had stopped moving.
        notes: what was removed or is missing.
        stages: of a study, how training of each stage ended.
    """

    training_set: dict[str, Any]
    models: list[dict[str, Any]]
    control: dict[str, Any]
    settings: dict[str, Any]
    distillation: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stages: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> str:
        return json.dumps(plain(asdict(self)), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> AuditResult:
        """Read back what :meth:`to_json` wrote; keys of later versions are ignored."""
        return cls(**{f.name: record[f.name] for f in fields(cls) if f.name in record})
