"""The ladder of a run: its evaluated weights at a few steps along training, as if it had stopped there.

A rung is a checkpoint of weights alone, which every command reads as a model; a run cannot go on from it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cdmem.io.atomic import replacing
from cdmem.training.settings import RAW

if TYPE_CHECKING:
    from cdmem.training.module import DiffusionModule

FOLDER = "ladder"
RUNG = re.compile(r"step=\d{8,15}\.ckpt")
SPAN = 64  # the first rung is at this share of the run, as in a logarithmic cadence


def ladder_steps(max_steps: int, rungs: int) -> set[int]:
    """Optimizer steps of so many rungs, spaced by a constant factor from max_steps / 64 on; the run's end is none."""
    if not rungs:
        return set()
    spaced = np.geomspace(max(max_steps / SPAN, 1), max_steps, rungs + 1)[:-1]
    return {round(float(step)) for step in spaced} - {max_steps}


def write_rung(module: DiffusionModule, checkpoints: Path, step: int) -> None:
    """Keep the evaluated weights as ``ladder/step=<step>.ckpt``, whole or not at all."""
    network = module.function().network
    record = replace(module.record, step=step, weights=RAW, half_lives=[])
    content = {
        "cdmem": record.plain(),
        "global_step": step,
        "state_dict": {f"raw.network.{name}": value.detach() for name, value in network.state_dict().items()},
    }
    target = checkpoints / FOLDER / f"step={step:08d}.ckpt"
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        torch.save(content, temporary)


def read_rungs(checkpoints: Path) -> list[Path]:
    """The files of a ladder, the earliest first."""
    return sorted(file for file in (checkpoints / FOLDER).glob("step=*.ckpt") if RUNG.fullmatch(file.name))
