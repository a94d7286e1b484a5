"""Sample grids at fixed seeds, so that memorisation can be watched as it appears."""

from __future__ import annotations

import torch

from callbacks.evaluation import Cadence, Evaluation, EvaluationCallback
from cdmem.images import grid, to_uint8
from cdmem.metrics.neighbors.index import group_index


class SampleGridCallback(EvaluationCallback):
    """Writes ``panels/step=<step>.png``: each sample of a fixed seed above its nearest training image; sent to W&B too.

    Args:
        columns: pictures per row.
        cadence: when, and how many pictures.
    """

    prefix = "samples"

    def __init__(self, columns: int = 16, cadence: Cadence = Cadence(samples=16, points=4)) -> None:
        super().__init__(cadence)
        self.columns = columns

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        _, images = evaluation.samples(self.samples)
        t = evaluation.training_set
        if not evaluation.is_writer:
            return {}
        shown = to_uint8(images)
        nearest = t.images[group_index(t).query(shown, 1).nearest]
        rows = []
        for k in range(0, len(shown), self.columns):
            rows += [shown[k : k + self.columns], nearest[k : k + self.columns]]
        scale = max(1, 32 // t.shape[1])
        evaluation.send_picture("samples/grid", grid(torch.cat(rows), self.columns, scale=scale))
        return {}
