"""Sample grids at fixed seeds, so that memorisation can be watched as it appears."""

from __future__ import annotations

import torch

from callbacks.evaluation import Evaluation, EvaluationCallback, Spacing
from cdmem.images import grid, to_uint8, write_png
from cdmem.metrics.neighbors.index import search_of


class SampleGridCallback(EvaluationCallback):
    """Writes ``panels/step=<step>.png``: each sample of a fixed seed above its nearest training image; sent to W&B too.

    Args:
        samples: pictures in the grid.
        columns: pictures per row.
        points: number of grids during ``fit``.
        spacing: ``log`` or ``linear``.
        batch_size: samples made at once.
    """

    prefix = "samples"

    def __init__(
        self, samples: int = 16, columns: int = 16, points: int = 4, spacing: Spacing = "log", batch_size: int = 256
    ) -> None:
        super().__init__(samples, points, spacing, batch_size)
        self.columns = columns

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        _, images = evaluation.samples(self.samples)
        t = evaluation.training_set
        if not evaluation.is_writer:
            return {}
        shown = to_uint8(images)
        nearest = t.images[search_of(t).query(shown, 1).nearest]
        rows = []
        for k in range(0, len(shown), self.columns):
            rows += [shown[k : k + self.columns], nearest[k : k + self.columns]]
        scale = max(1, 32 // t.shape[1])
        picture = grid(torch.cat(rows), self.columns, scale=scale)
        write_png(evaluation.folder.file(f"panels/step={evaluation.step:08d}.png"), picture)
        for logger in evaluation.trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("samples/grid", [picture], step=evaluation.step)
        return {}
