"""``model.compile``: torch.compile of the networks in the training loss, and of nothing else.

Preconditioning, solver and loss stay as they are; so do samples and measurements, which therefore have the bits that
``python -m cdmem sample`` gets from the checkpoint on the same machine. State-dict keys do not change.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil

import torch
from torch import nn

from cdmem.errors import InputError


def check_compiler() -> None:
    """Look for what torch.compile needs here, before anything trains.

    Raises:
        InputError: no C++ compiler, or with CUDA no Triton.
    """
    wanted = [c for c in (os.environ.get("CXX"), os.environ.get("CC"), "g++", "gcc", "clang++", "clang", "cl") if c]
    if not any(shutil.which(c.split()[0]) for c in wanted):
        raise InputError("model.compile", True, "there is no C++ compiler", "install g++, or set it to false")
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        raise InputError("model.compile", True, "Triton is not installed", "pip install triton, or set it to false")


def compile_in_place(network: nn.Module) -> nn.Module:
    """Compile the calls of ``network`` and return it.

    Dropout masks are drawn by torch's own generators, as without compilation: student and target, two programs, drop
    the same units under one seed only so.
    """
    network.compile(options={"fallback_random": True})
    return network


def plain(network: nn.Module) -> nn.Module:
    """``network`` as it runs uncompiled: the same parameters and submodules behind a fresh top."""
    return network if network._compiled_call_impl is None else copy.copy(network)
