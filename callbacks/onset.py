"""When quality is reached and when memorisation sets in, estimated while training; and stopping there.

Bonnaire et al. (2025) call tau_gen the time at which the FID reaches its plateau and tau_mem the onset of f_mem > 0.
They leave open when a fluctuating curve counts as either; the rules here are **ours**:

* onset bar: the upper 95 % bound (Wilson) of f_mem of the held-out images taken as samples, or 0 without them;
* tau_mem: where the lower 95 % bound of f_mem first rises above the bar;
* tau_gen: where the distance to H first comes within 10 % of the smallest distance seen so far. It counts once a later
  evaluation has not moved it: a curve that still falls has no plateau yet.

Both are interpolated, linearly in log step, between the last evaluation before and the first one after the crossing,
and reported with these two: the truth is known no better than the bracket. Times are optimizer steps.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only

from callbacks.evaluation import evaluated, log_values
from callbacks.memorization import MemorizationCallback
from callbacks.quality import QualityCallback
from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.metrics.memorization.ratio import memorized
from cdmem.metrics.neighbors.index import group_index
from cdmem.metrics.statistics import wilson_interval
from cdmem.run.folder import RunFolder
from cdmem.training.module import DiffusionModule

F_MEM, F_MEM_LOW = "memorization/f_mem", "memorization/f_mem_low"
RECORD = "onset.json"
Curve = Sequence[tuple[int, float]]
Crossing = dict[str, Any]


def crossing(curve: Curve, k: int, level: float) -> Crossing:
    """Where a curve passes ``level`` before its evaluation ``k`` (step, value), linearly in log step.

    Returns:
        ``step`` (float) and ``between`` (the two steps; None for a first evaluation that is already past it).
    """
    after = curve[k]
    if k == 0:
        return {"step": float(after[0]), "between": [None, after[0]]}
    before = curve[k - 1]
    # Step 0 has no logarithm: the first optimizer step stands for it.
    a, b = math.log(max(before[0], 1)), math.log(max(after[0], 1))
    share = (level - before[1]) / (after[1] - before[1]) if after[1] != before[1] else 1.0
    return {"step": math.exp(a + min(max(share, 0.0), 1.0) * (b - a)), "between": [before[0], after[0]]}


def memorization_onset(lower_bounds: Curve, bar: float) -> Crossing | None:
    """tau_mem from (step, lower bound of f_mem) in order of steps, or None while no bound is above the bar."""
    k = next((i for i, (_, value) in enumerate(lower_bounds) if value > bar), None)
    return None if k is None else crossing(lower_bounds, k, bar)


def plateau_start(distances: Curve, tolerance: float = 0.1) -> Crossing | None:
    """tau_gen from (step, distance) in order of steps; None while the newest evaluation is the first on the plateau."""
    if not distances:
        return None
    level = (1 + tolerance) * min(value for _, value in distances)
    k = next(i for i, (_, value) in enumerate(distances) if value <= level)
    return None if k == len(distances) - 1 else crossing(distances, k, level)


def held_out_bar(training_set: TrainingSet, threshold: float, near_duplicates: str | float) -> float:
    """Upper 95 % bound of f_mem of the held-out images as if they were samples; 0 without any."""
    images = training_set.held_out_images
    if not len(images):
        return 0.0
    neighbors = group_index(training_set, near_duplicates).query(images, 2)
    hits = memorized(neighbors.squared1, neighbors.squared2, threshold)
    return wilson_interval(int(hits.sum()), len(images))[1]


def _print_line(text: str) -> None:
    """One line on rank zero, on its own line also when a progress bar is drawn."""
    rank_zero_only(print)(f"\n{text}", flush=True)


class _Judge(Callback):
    """Base of callbacks that read what others measured at the same step, so that nothing is sampled twice."""

    def __init__(self) -> None:
        self._bar: float | None = None
        self._last = -1

    def check_run(self, trainer: Trainer, training_set: TrainingSet) -> None:
        """The callbacks that measure must exist and come first; InputError if not."""
        name, callbacks = type(self).__name__, trainer.callbacks
        before = callbacks[: callbacks.index(self)]
        if not any(isinstance(c, MemorizationCallback) for c in before):
            hint = "put MemorizationCallback before it in the list"
            raise InputError("trainer.callbacks", name, "judges f_mem, which nothing has measured", hint)
        if any(isinstance(c, QualityCallback) for c in callbacks[callbacks.index(self) :]):
            raise InputError("trainer.callbacks", name, "stands before QualityCallback", "put it after")

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._bar = None
        self.check_run(trainer, pl_module.data.training_set)

    def bar(self, trainer: Trainer, module: DiffusionModule) -> float:
        """The onset bar of this run: threshold and groups are those of its MemorizationCallback."""
        if self._bar is None:
            measures = next(c for c in trainer.callbacks if isinstance(c, MemorizationCallback))
            self._bar = held_out_bar(module.data.training_set, measures.threshold, measures.near_duplicates)
        return self._bar

    @abstractmethod
    def judge(self, trainer: Trainer, module: DiffusionModule, values: dict[str, float]) -> None:
        """Look at the values of this step; called once per evaluated step."""

    def _look(self, trainer: Trainer, module: DiffusionModule) -> None:
        moment = evaluated(module)
        if moment.step == trainer.global_step > self._last and not trainer.fast_dev_run and moment.values:
            self._last = moment.step
            self.judge(trainer, module, moment.values)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self._look(trainer, pl_module)


class OnsetCallback(_Judge):
    """Logs ``onset/tau_mem`` and ``onset/tau_gen`` (steps) when reached, prints a line, keeps ``onset.json``.

    Stands after `MemorizationCallback` and, for tau_gen, `QualityCallback`; definitions: see the module.

    Args:
        quality: key of the distance to H; None takes the first ``quality/fd_*``.
        tolerance: a distance within this share of the smallest one is on the plateau.
    """

    def __init__(self, quality: str | None = None, tolerance: float = 0.1) -> None:
        super().__init__()
        if not 0 < tolerance < 1:
            raise InputError("OnsetCallback.tolerance", tolerance, "must be in (0, 1)", "0.1 is usual")
        self.quality, self.tolerance = quality, tolerance
        self._lower, self._distances = [], []  # (step, value) of every evaluation
        self._crossings: dict[str, Crossing] = {}

    def judge(self, trainer: Trainer, module: DiffusionModule, values: dict[str, float]) -> None:
        distances = (k for k in values if k.startswith("quality/fd_") and not k.endswith("_train"))
        step, key = trainer.global_step, self.quality or next(distances, None)
        if F_MEM_LOW in values:
            self._lower.append((step, values[F_MEM_LOW]))
        if key in values and math.isfinite(values[key]):
            self._distances.append((step, values[key]))
        bar = self.bar(trainer, module)
        plateau = plateau_start(self._distances, self.tolerance)
        now = {"tau_mem": memorization_onset(self._lower, bar), "tau_gen": plateau}
        fresh = {name: c for name, c in now.items() if c is not None and c != self._crossings.get(name)}
        for name, place in fresh.items():
            about = f"f_mem above the held-out bar {bar:.4f}" if name == "tau_mem" else f"{key} within its plateau"
            first, last = place["between"]
            bracket = f"at or before step {last}" if first is None else f"between steps {first} and {last}"
            _print_line(f"onset: {name} = {place['step']:.0f} steps ({about}; {bracket})")
        # A plateau that turned out to be none is withdrawn: the distance fell on.
        self._crossings = {name: c for name, c in now.items() if c is not None}
        log_values(trainer, module, {f"onset/{name}": c["step"] for name, c in fresh.items()})
        if trainer.is_global_zero:
            record = {"step": step, "bar": bar, "quality": key, "tolerance": self.tolerance, **now}
            RunFolder(trainer.default_root_dir).write_json(RECORD, record)

    def state_dict(self) -> dict[str, Any]:
        return {"lower": self._lower, "distances": self._distances, "crossings": self._crossings, "last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._lower = [(int(s), float(v)) for s, v in state_dict["lower"]]
        self._distances = [(int(s), float(v)) for s, v in state_dict["distances"]]
        self._crossings, self._last = dict(state_dict["crossings"]), int(state_dict["last"])


class MemorizationStopping(_Judge):
    """Stops, or keeps ``checkpoints/onset.ckpt``, at the first evaluation that shows memorisation.

    A stopped run is finished: ``finished.json`` says why, and a study goes on to its next stage.

    Args:
        threshold: act when the lower 95 % bound of f_mem exceeds it; None is the held-out bar of the module.
        action: ``stop`` training there, or only keep a ``checkpoint`` and train on.
    """

    def __init__(self, threshold: float | None = None, action: Literal["stop", "checkpoint"] = "stop") -> None:
        super().__init__()
        if threshold is not None and not 0 <= threshold < 1:
            raise InputError("MemorizationStopping.threshold", threshold, "must be in [0, 1)", "e.g. 0.01, or null")
        if action not in ("stop", "checkpoint"):
            raise InputError("MemorizationStopping.action", action, "no such action", "use stop or checkpoint")
        self.threshold, self.action = threshold, action
        self.reached: str | None = None

    @property
    def stopped(self) -> str | None:
        """Why this run ended before ``max_steps``, or None."""
        return self.reached if self.action == "stop" else None

    def judge(self, trainer: Trainer, module: DiffusionModule, values: dict[str, float]) -> None:
        if self.reached is not None or F_MEM_LOW not in values:
            return
        bar = self.bar(trainer, module) if self.threshold is None else self.threshold
        low = values[F_MEM_LOW]
        if low <= bar:
            return
        above = f"above {'the held-out bar' if self.threshold is None else 'the threshold'} {bar:.4f}"
        found = f"f_mem {values[F_MEM]:.4f}, lower bound {low:.4f} {above}"
        self.reached = f"memorisation onset at step {trainer.global_step}: {found}"
        if self.action == "stop":
            trainer.should_stop = True
            _print_line(f"{self.reached}; training stops here")
            return
        path = Path(trainer.default_root_dir) / "checkpoints" / "onset.ckpt"
        # Every rank takes part in saving; only rank zero writes.
        trainer.save_checkpoint(path)
        _print_line(f"{self.reached}; kept {path}")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if self.stopped:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"reached": self.reached, "last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reached, self._last = state_dict["reached"], int(state_dict["last"])
