"""The local record of a run as a Lightning logger: one JSON line per logging event, always written."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from cdmem.run.folder import RunFolder
from cdmem.run.metrics_log import MetricsRecord


class JsonlLogger(Logger):
    """Appends to ``metrics.jsonl`` of a run folder.

    Args:
        run_dir: the run folder.
    """

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self.record = MetricsRecord(RunFolder(run_dir))

    @property
    def name(self) -> str:
        return "cdmem"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsRecord:
        return self.record

    @property
    def save_dir(self) -> str:
        return str(self.record.folder.path)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {k: float(v) for k, v in metrics.items() if k != "epoch"}
        if values:
            self.record.append(step or 0, values)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is kept in ``config.yaml``, not here."""
