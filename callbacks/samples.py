"""Sample grids at fixed seeds, so that memorisation can be watched as it appears."""

from __future__ import annotations

from callbacks.evaluation import Cadence, Evaluation, EvaluationCallback
from callbacks.panels import pairs_panel
from cdmem.images import to_uint8
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
        if evaluation.is_writer:
            t, shown = evaluation.training_set, to_uint8(images)
            nearest = t.images[group_index(t).query(shown, 1).nearest]
            evaluation.send_picture("samples/grid", pairs_panel(shown, nearest, self.columns))
        return {}
