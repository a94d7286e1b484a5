"""Weights & Biases: online with a login, offline otherwise, never a prompt; one W&B run per run folder.

A dashboard must not end an experiment: whatever W&B raises is caught, told once, and W&B is left alone from then on.
The local record (``metrics.jsonl``, ``panels/``) is complete without it. Keys: ``docs/wandb.md``.
"""

from __future__ import annotations

import netrc
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from cdmem.run.folder import RunFolder, read_wandb_id

STEP, IMAGES = "trainer/global_step", "images_seen"
PAIR_COLUMNS = ["seed", "ratio", "memorized", "sample", "nearest", "second", "nearest_row", "second_row"]
MULTIPLICITY_COLUMNS = ["copies", "images", "p_hit", "p_hit_low", "p_hit_high"]
OWN_DATA_DIR = os.environ.get("WANDB_DATA_DIR")  # the user's wish, before any run set its own
PART = 10_000_000  # first W&B-internal step of each further offline part, beyond what any part logs


def has_login() -> bool:
    """An API key in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(Path.home() / ".netrc").authenticators("api.wandb.ai") is not None
    except (netrc.NetrcParseError, OSError):
        return False


class Ignored:
    """Stands in for a W&B run: takes every call and attribute, does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def guarded(method: Callable[..., None]) -> Callable[..., None]:
    """A logger's method, on rank zero only, whose first failure is told and ends W&B, not the run."""

    @rank_zero_only
    @wraps(method)
    def inner(logger: SafeWandbLogger, *args: Any, **kwargs: Any) -> None:
        if logger.broken:
            return
        try:
            method(logger, *args, **kwargs)
        # Anything at all: network, disk, service process, an API that changed.
        except Exception as error:
            logger.broken = True
            reason = str(error).split("\n")[0][:120]
            warnings.warn(f"W&B failed ({type(error).__name__}: {reason}); the run goes on without it", stacklevel=3)

    return inner


class SafeWandbLogger(WandbLogger):
    """Lightning's logger that never fails a run, with our axes and tables.

    Args:
        teacher: what a student knows of its teacher (``run_id``, ``path``, ``digest``), linked when the run starts.
        parts: offline parts that the run folder holds already.
        settings: of Lightning's `WandbLogger`.
    """

    def __init__(self, teacher: dict[str, Any] | None = None, parts: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self._wandb_init.pop("anonymous", None)  # Lightning hands it over as None; W&B warns of it, whatever it is
        self.teacher, self.parts, self.broken = teacher, parts, False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at first use; a stand-in that ignores everything once W&B has failed."""
        if self._experiment is None:
            self._start()
        return Ignored() if self.broken else self._experiment

    def viewer(self) -> str | None:
        """The command that shows this run in a terminal; None unless it was logged offline."""
        if self._experiment is None or self.broken or not self._experiment.offline:
            return None
        leet = "leet" if find_spec("wandb.cli.leet") else "beta leet"
        return f"wandb {leet} run {shlex.quote(str(Path(self.save_dir or '.') / 'wandb/latest-run'))}"

    @guarded
    def _start(self) -> None:
        if OWN_DATA_DIR is None:
            # Pictures of tables wait for the sync outside the run's folder otherwise, in a home that may not last.
            os.environ["WANDB_DATA_DIR"] = str(Path(self.save_dir or ".").resolve() / "wandb")
        # Not before the first log: a command that is refused leaves nothing behind.
        RunFolder(self.save_dir or ".").keep_wandb_id(str(self._id))
        run = WandbLogger.experiment.fget(self)
        # Evaluations may be drawn against either axis; W&B's own counter is neither.
        for axis in (STEP, IMAGES):
            run.define_metric(axis, hidden=True)
        for keys in ("memorization/*", "distillation/*", "quality/*", "internal/*", "panels/*", "samples/*"):
            run.define_metric(keys, step_metric=STEP, step_sync=True)
        run.define_metric("memorization/f_mem", step_metric=STEP, step_sync=True, summary="max,last")
        if self.parts and run.offline:
            # A new part counts from 0 again; after syncing, equal counts would be dropped as logged already.
            run.log({}, step=self.parts * PART)
        if self.teacher is not None:
            run.config.update({"teacher": self.teacher}, allow_val_change=True)
            self._link_teacher(run, self.teacher)

    def _link_teacher(self, run: Any, teacher: dict[str, Any]) -> None:
        """The edge teacher -> student; offline W&B cannot draw it, so it is written down."""
        if not run.offline and teacher["run_id"]:
            try:
                run.use_artifact(f"teacher-{teacher['run_id']}:latest")
                return
            except Exception as error:  # the teacher was never synced: no reason to give W&B up
                reason = str(error).split("\n")[0][:80]
                warnings.warn(
                    f"the teacher's artifact is not on W&B yet ({reason}): linked in the config", stacklevel=2
                )
        run.notes = f"teacher: run {teacher['run_id']}, {teacher['path']}, weights {teacher['digest']}"
        run.summary["teacher/run_id"], run.summary["teacher/digest"] = teacher["run_id"], teacher["digest"]

    log_metrics = guarded(WandbLogger.log_metrics)
    log_hyperparams = guarded(WandbLogger.log_hyperparams)
    log_image = guarded(WandbLogger.log_image)
    finalize = guarded(WandbLogger.finalize)

    @guarded
    def log_panel_data(
        self,
        step: int,
        ratio: np.ndarray,
        cdf: list[tuple[float, float]],
        by_multiplicity: list[list[float]],
        pairs: list[list[Any]],
    ) -> None:
        """Tables and histograms of one evaluation.

        Args:
            step: optimizer step.
            ratio: d1 / d2 of every sample, (m,).
            cdf: (ratio, share of samples below it).
            by_multiplicity: rows of :data:`MULTIPLICITY_COLUMNS`.
            pairs: rows of :data:`PAIR_COLUMNS`; pictures as uint8 (H, W, 3).
        """
        import wandb

        rows = [[wandb.Image(v) if isinstance(v, np.ndarray) else v for v in row] for row in pairs]
        values = {
            "panels/ratio": wandb.Histogram(np_histogram=np.histogram(ratio, bins=50, range=(0.0, 1.0))),
            "panels/ratio_cdf": wandb.Table(columns=["ratio", "share"], data=[list(row) for row in cdf]),
            "panels/hits_by_multiplicity": wandb.Table(columns=MULTIPLICITY_COLUMNS, data=by_multiplicity),
            "panels/pairs_table": wandb.Table(columns=PAIR_COLUMNS, data=rows),
        }
        super().log_metrics(values, step)

    @guarded
    def log_checkpoint(self, path: Path, role: str, about: dict[str, Any]) -> None:
        """The final checkpoint as artifact ``<role>-<run id>``: a reference with its hash; the weights stay here.

        Weights that reproduce training images are not to be uploaded by default.
        """
        import wandb

        artifact = wandb.Artifact(f"{role}-{self._id}", type="model", metadata=about)
        artifact.add_reference(path.resolve().as_uri(), name=path.name)
        self.experiment.log_artifact(artifact)


def group_name(folder: RunFolder) -> str:
    """What a run is filed under: its study, or itself where it stands alone under ``runs/``."""
    parent = folder.path.parent.name
    return folder.path.name if parent in ("", ".", "runs") else parent


def run_tags(config: Mapping[str, Any]) -> list[str]:
    """Source, number of images and distillation method: what runs are looked up by."""
    data, model = config.get("data") or {}, (config.get("model") or {}).get("init_args") or {}
    tags = [str(data[k]) if k == "source" else f"{k}={data[k]}" for k in ("source", "n") if data.get(k) is not None]
    method = (model.get("method") or {}).get("class_path")
    # W&B refuses tags over 64 characters; a source may be a path.
    return [tag[-64:] for tag in [*tags, *([method.rpartition(".")[2]] if method else [])]]


def teacher_link(model: Any) -> dict[str, Any] | None:
    """Run id, path and weights of the teacher of a student, as far as known before training; None without one."""
    name = getattr(model, "teacher_name", None)
    if name is None:
        return None
    path = Path(name)
    folder = path if path.suffix != ".ckpt" else path.parent.parent
    return {"run_id": read_wandb_id(folder), "path": str(name), "digest": getattr(model, "teacher_digest", None)}


def wandb_logger(folder: RunFolder, config: dict[str, Any], model: Any) -> SafeWandbLogger:
    """A logger that continues the folder's own W&B run; nothing is started before the first log."""
    os.environ.setdefault("WANDB_SILENT", "true")
    offline = os.environ.get("WANDB_MODE") == "offline" or not has_login()
    if offline:
        # Asked for before wandb is imported anywhere, so that no code path can prompt.
        os.environ.setdefault("WANDB_MODE", "offline")
    return SafeWandbLogger(
        parts=len(list((folder / "wandb").glob("offline-run-*"))),
        project=os.environ.get("WANDB_PROJECT", "cdmem"),
        name=str(folder.path).removeprefix("runs/"),
        save_dir=str(folder.path),
        id=folder.wandb_id(),
        offline=offline,
        group=group_name(folder),
        job_type=getattr(model, "role", None),
        tags=run_tags(config),
        config=config,
    )


def finish_wandb() -> None:
    """Close the current W&B run, if W&B was used at all."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        try:
            wandb.finish()
        except Exception as error:
            warnings.warn(f"W&B could not close its run ({type(error).__name__})", stacklevel=2)
