"""Matrix products in float32 proper, whatever the user allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """No TF32 on CUDA, no bfloat16 inside oneDNN, no autocast; everything is restored afterwards."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    # The settings of PyTorch 2.9 and later: the older ones raise an error when both kinds were used.
    saved = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, value in zip(backends, saved):
            backend.fp32_precision = value
