"""``python -m cdmem fit|validate|test|predict --config FILE``: one model trained, measured or sampled by Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cdmem.study.resume import with_own_settings
from cdmem.study.stage import build
from cdmem.tracking.wandb import SafeWandbLogger, finish_wandb


def run_trainer_command(command: str, args: Sequence[str]) -> int:
    """One of Lightning's subcommands from parsing to its end."""
    stage = build(command, with_own_settings(command, args), said=[command, *args])
    stage.execute()
    if command == "fit" and stage.trainer.is_global_zero and not stage.trainer.fast_dev_run:
        print(f"run folder: {stage.settings.run_dir}")
        for logger in stage.trainer.loggers:
            if isinstance(logger, SafeWandbLogger) and (viewer := logger.viewer()):
                print(f"curves:     {viewer}")
    finish_wandb()
    return 0


run_fit = partial(run_trainer_command, "fit")
run_validate = partial(run_trainer_command, "validate")
run_test = partial(run_trainer_command, "test")
run_predict = partial(run_trainer_command, "predict")
