"""What every process of a run saw and did, written beside the run; and several runs in one set of processes.

``python tests/spying.py jobs.json`` runs its list of ``[command, arguments]``: starting processes costs more than the
tiny runs themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch


def digest(module: torch.nn.Module) -> str:
    """Of all weights: network, averages, target."""
    parts = [v.detach().cpu().contiguous().numpy().tobytes() for v in module.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


class Spy(pl.Callback):
    """Writes ``spy/rank=<r>.json`` in the run folder at the end of ``fit``."""

    def __init__(self) -> None:
        self.notes: dict[str, list] = {k: [] for k in ("images", "digests", "losses", "dropout", "measured", "reduced")}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        real, noise, notes = trainer.strategy.reduce, pl_module.step_noise, self.notes

        def reduce(tensor, group=None, reduce_op="mean"):
            if reduce_op == "mean":
                notes["reduced"].append(trainer.global_step)
            return real(tensor, group, reduce_op)

        def step_noise(*args):
            made = noise(*args)
            notes["dropout"].append(made.dropout_seed)
            return made

        trainer.strategy.reduce, pl_module.step_noise = reduce, step_noise

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.notes["images"].append(batch.index.tolist())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        from callbacks.evaluation import evaluated

        self.notes["losses"].append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        self.notes["digests"].append(digest(pl_module))
        self.notes["measured"].append(dict(evaluated(pl_module).values))

    def on_train_end(self, trainer, pl_module) -> None:
        file = Path(trainer.default_root_dir) / "spy" / f"rank={trainer.global_rank}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        found = getattr(trainer.strategy, "cluster_environment", None)
        world = {"world_size": trainer.world_size, "environment": type(found).__name__}
        file.write_text(json.dumps(self.notes | world | {"threads": torch.get_num_threads(), "pid": os.getpid()}))


def spied(folder: Path) -> list[dict]:
    """The notes of all ranks."""
    return [json.loads(p.read_text()) for p in sorted((folder / "spy").glob("rank=*.json"))]


def run_jobs(jobs: Sequence[tuple[str, list[str]]]) -> None:
    """Run trainer commands one after the other in this process."""
    from cdmem.cli.fit import run_trainer_command

    for command, args in jobs:
        assert run_trainer_command(command, args) == 0


if __name__ == "__main__":
    run_jobs(json.loads(Path(sys.argv[1]).read_text()))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
