"""Settings of a run: flat keys, and which of them may change when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cdmem.errors import InputError

# Settings that change where or how long a run executes, not what it computes.
FREE_KEYS = (
    "run_dir",
    "ckpt_path",
    "weights_only",
    "threads",
    "wandb",
    "model.init_args.teacher",  # a path; the teacher itself is compared by the digest of its weights
    "trainer.default_root_dir",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.accelerator",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_autolog_hparams",
    "trainer.max_time",
    "trainer.profiler",
)
# Settings that a run takes up where it goes on; each change is recorded with its step.
APPLIED_KEYS = (
    "model.init_args.averaging.weights",
    "model.init_args.compile",
    "model.init_args.mid_sigmas",
    "model.init_args.optimization",
    "model.init_args.sampling",
    "trainer.benchmark",
    "trainer.callbacks",
    "trainer.detect_anomaly",
    "trainer.deterministic",
    "trainer.gradient_clip_algorithm",
    "trainer.gradient_clip_val",
    "trainer.limit_test_batches",
    "trainer.limit_val_batches",
    "trainer.log_every_n_steps",
    "trainer.max_steps",
    "trainer.min_steps",
    "trainer.precision",
    "trainer.val_check_interval",
)
OTHER_STATE = "model.init_args.optimization.optimizer.class_path"  # whose state another optimizer cannot take up
# Settings that folders of earlier versions lack, with the value that leaves everything as it was there.
LATER_KEYS = {
    "model.init_args.compile": False,
    "model.init_args.label_dropout": 0.0,
    "model.init_args.optimization.cooldown_steps": 0,
    "model.init_args.optimization.cooldown_to": 0.1,
}


class Change(NamedTuple):
    """A setting that is another one from some step on."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; lists stay whole."""
    if isinstance(value, dict) and value:
        flat: dict[str, Any] = {}
        for key, inner in value.items():
            flat.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    return {prefix: value}


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, flat, without those that change where or how long a run executes."""
    return {key: value for key, value in flatten(settings).items() if not _is_one_of(key, FREE_KEYS)}


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], made: str, hint: str) -> list[Change]:
    """What a run that goes on does otherwise than before.

    Args:
        old: settings that it was made with.
        new: settings that it is to go on with.
        made: what was made with the old ones, for the message.
        hint: how to get what was wanted where a change cannot be applied.

    Raises:
        InputError: naming the first setting that cannot change on the way.
    """
    a, b = flatten(old), flatten(new)
    changes = []
    for key in sorted({*a, *b}):
        was, now = a.get(key, LATER_KEYS.get(key)), b.get(key)
        if was == now or _is_one_of(key, FREE_KEYS):
            continue
        if key == OTHER_STATE or not _is_one_of(key, APPLIED_KEYS):
            raise InputError(key, now, f"{made} was made with {key}={was}", hint)
        changes.append(Change(key, was, now))
    return changes


def _is_one_of(key: str, keys: tuple[str, ...]) -> bool:
    return any(key == known or key.startswith(known + ".") for known in keys)
