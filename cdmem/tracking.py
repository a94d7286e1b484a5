"""Weights & Biases: online with a login, offline otherwise, never a prompt; one W&B run per run folder."""

from __future__ import annotations

import netrc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdmem.run import RunFolder

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger


def has_login() -> bool:
    """An API key in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(Path.home() / ".netrc").authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError, OSError):
        return False


def wandb_logger(folder: RunFolder, config: dict[str, Any]) -> WandbLogger:
    """A logger that continues the folder's own W&B run; nothing is started before the first log."""
    from lightning.pytorch.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    offline = os.environ.get("WANDB_MODE") == "offline" or not has_login()
    if offline:
        # Asked for before wandb is imported anywhere, so that no code path can prompt.
        os.environ.setdefault("WANDB_MODE", "offline")
    run_id = folder.wandb_id()
    return WandbLogger(
        project=os.environ.get("WANDB_PROJECT", "cdmem"),
        name=str(folder.path).removeprefix("runs/"),
        save_dir=str(folder.path),
        id=run_id,
        offline=offline,
        group=folder.path.parent.name,
        config=config,
    )


def finish_wandb() -> None:
    """Close the current W&B run, if W&B was used at all."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()
