"""Warnings of libraries about things that are so on purpose."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Hide warnings about things that are so on purpose; everything else stays visible."""
    # Device banners and advertisements; warnings and errors still come through.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for pattern in (
        ".*does not have many workers.*",
        ".*IterableDataset.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*GPU available but not used.*",
        ".*isinstance.treespec.*",
        ".*in eval mode at the start of training.*",
        ".*Trainer already configured with model summary.*",
        ".*You called `self.log.*",
        ".*anonymous.*",
        ".*args parameter is intended to run from within Python.*",
        ".*lr_scheduler.step.*",
    ):
        warnings.filterwarnings("ignore", pattern)
