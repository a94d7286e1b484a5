"""The teacher's half of a student's next step, computed while the student's half of this one runs.

It depends on images, noise and the frozen teacher only, so the numbers are those of one after the other, to the bit: on
a CPU in a second thread, with as many threads an operation as the first; on CUDA on a second stream.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Ahead:
    """One result computed ahead, under a key.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.key: Any = None
        self._future: Future[Any] | None = None
        self._value: Any = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._worker = None if self._stream else ThreadPoolExecutor(1, "teacher")

    @staticmethod
    def pays(device: torch.device, processes: int) -> bool:
        """Whether there is something to compute it on beside the student.

        Args:
            device: of the tensors.
            processes: of the run on this machine.
        """
        return device.type == "cuda" or (device.type == "cpu" and cores() >= 2 * torch.get_num_threads() * processes)

    def begin(self, key: Any, compute: Callable[[], Any]) -> None:
        """Start ``compute`` and return at once."""
        self.key = key
        if self._worker is not None:
            self._future = self._worker.submit(_as_here(compute))
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._value = compute()

    def settle(self) -> None:
        """Wait for what was begun; its error is kept for :meth:`take`."""
        if self._future is not None:
            self._future.exception()

    def take(self, key: Any) -> Any:
        """What was begun under this key, once; None if it was another. Raises what its computation raised."""
        begun, self.key = self.key, None
        future, value, self._future, self._value = self._future, self._value, None, None
        if begun is None or begun != key:
            return None
        if future is not None:
            return future.result()
        here = torch.cuda.current_stream()
        here.wait_stream(self._stream)
        for tensor in tree_leaves(value):
            if isinstance(tensor, torch.Tensor):
                tensor.record_stream(here)  # its memory is not given away before this stream has used it
        return value

    def close(self) -> None:
        """Forget what was begun and end the thread."""
        self.key = self._future = self._value = None
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)


def _as_here(compute: Callable[[], Any]) -> Callable[[], Any]:
    """``compute`` under this thread's modes: torch keeps them by thread."""
    grad, dtype = torch.is_grad_enabled(), torch.get_autocast_dtype("cpu")
    autocast, threads = torch.is_autocast_enabled("cpu"), torch.get_num_threads()

    def call() -> Any:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=dtype, enabled=autocast):
            return compute()

    return call
