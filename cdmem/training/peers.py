"""When one process of a distributed run dies, the others say so and end; nobody waits for ever."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer

from cdmem.errors import RunFailure

LOST = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed? ?out|nccl|gloo|connection refused|abort", re.IGNORECASE
)


@contextmanager
def watching_peers(trainer: Trainer) -> Iterator[None]:
    """Turn a failed exchange between processes into one line.

    gloo notices a dead peer at once, NCCL by its watchdog; both give up after the process group's timeout (30 minutes
    unless ``trainer.strategy.init_args.timeout`` says otherwise). Lightning's own launcher ends all processes within
    seconds of the death of one.

    Raises:
        RunFailure: another process ended or did not answer.
    """
    # The launcher's own words, when it ends everybody because one process died, are at level INFO.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    try:
        yield
    except RuntimeError as error:
        if trainer.world_size == 1 or not LOST.search(str(error)):
            raise
        reason = " ".join(str(error).split())[:120]
        raise RunFailure(
            f"rank {trainer.global_rank} lost another process of the run ({reason}): see that one's message; "
            "the same command goes on from the last checkpoint"
        ) from None
