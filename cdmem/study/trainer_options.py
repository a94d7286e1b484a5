"""Every argument of Lightning's ``Trainer``: honoured, without effect on results, or refused before training.

A run shows an endless stream of images, so that a step means the same however often the run was interrupted. Options
that count epochs, or that cut the stream short, would be ignored or would change the training set unnoticed.
"""

from __future__ import annotations

import inspect
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from cdmem.errors import InputError

HONOURED = frozenset(
    {
        "accelerator",
        "accumulate_grad_batches",
        "benchmark",
        "callbacks",
        "detect_anomaly",
        "deterministic",
        "devices",
        "fast_dev_run",
        "gradient_clip_algorithm",
        "gradient_clip_val",
        "limit_predict_batches",
        "limit_test_batches",
        "limit_val_batches",
        "log_every_n_steps",
        "logger",
        "max_steps",
        "max_time",
        "min_steps",
        "num_nodes",
        "plugins",
        "precision",
        "profiler",
        "strategy",
        "sync_batchnorm",
        "val_check_interval",
    }
)
# What is computed and recorded is the same with and without.
HARMLESS = frozenset(
    {
        "enable_autolog_hparams",
        "enable_model_summary",
        "enable_progress_bar",
        "inference_mode",
        "num_sanity_val_steps",
        "use_distributed_sampler",
    }
)
# One batch is 1, all of them are 1.0: typing's cache may have turned the order of the union, and the parser asks in
# that order, so that 1 would be read as 1.0.
for _name in ("train", "val", "test", "predict"):
    Trainer.__init__.__annotations__[f"limit_{_name}_batches"] = int | float | None
# A logger without a folder of its own writes into the run's, see :func:`give_folder`.
for _kind in (CSVLogger, TensorBoardLogger):
    _init = _kind.__init__
    if inspect.signature(_init).parameters["save_dir"].default is inspect.Parameter.empty:
        _init.__defaults__ = (None, *_init.__defaults__)
ENDLESS = "the stream of images never ends"
SUBSET = "would show only a part of the training set, and the record would still say n"
# Argument: (values that leave it alone, problem, what to use instead)
REFUSED: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "barebones": ((False,), "would switch off checkpoints and loggers", "trainer.enable_progress_bar false saves time"),
    "check_val_every_n_epoch": ((None,), ENDLESS, "trainer.val_check_interval counts steps"),
    "default_root_dir": ((None,), "everything lies in the run folder", "use --run_dir"),
    "enable_checkpointing": ((None, True), "a run goes on from its checkpoints", "RunCheckpoint.every_n_steps"),
    "limit_train_batches": ((None, 1.0), SUBSET, "use data.n for fewer images, trainer.max_steps for fewer steps"),
    "max_epochs": ((None, -1), ENDLESS, "use trainer.max_steps"),
    "min_epochs": ((None, 0), ENDLESS, "use trainer.min_steps"),
    "model_registry": ((None,), "would upload weights that may hold training images", "use python -m cdmem export"),
    "overfit_batches": ((0, 0.0), SUBSET, "use data.n"),
    "reload_dataloaders_every_n_epochs": ((0,), ENDLESS, "leave it out"),
}


def give_folder(loggers: Any, folder: str) -> None:
    """Fill in ``save_dir`` of the configured loggers that name none."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        settings = logger.get("init_args") if isinstance(logger, Namespace) else None
        if settings is not None and "save_dir" in settings and settings.save_dir is None:
            settings.save_dir = folder


def check_trainer_options(options: dict[str, Any]) -> None:
    """Refuse what a run cannot do as it was told.

    Args:
        options: the ``trainer`` section as it was parsed.

    Raises:
        InputError: naming the argument and what to use instead.
    """
    for name, (harmless, problem, hint) in REFUSED.items():
        value = options.get(name)
        if not any(type(value) is type(v) and value == v for v in harmless):
            raise InputError(f"trainer.{name}", value, problem, hint)
    clip = options.get("gradient_clip_val")
    if clip is not None and clip < 0:
        raise InputError("trainer.gradient_clip_val", clip, "would not clip", "give a positive bound, or leave it out")
    if clip is None and options.get("gradient_clip_algorithm") is not None:
        problem = "would do nothing without a bound"
        hint = "set trainer.gradient_clip_val"
        raise InputError("trainer.gradient_clip_algorithm", options["gradient_clip_algorithm"], problem, hint)
    least, most = options.get("min_steps"), options.get("max_steps")
    if least is not None and most is not None and 0 < most < least:
        raise InputError("trainer.min_steps", least, f"is more than trainer.max_steps={most}", "raise max_steps")
    interval = options.get("val_check_interval")
    if isinstance(interval, float):
        raise InputError("trainer.val_check_interval", interval, ENDLESS, "give a whole number of steps")
