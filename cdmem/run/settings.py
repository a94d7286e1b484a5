"""Settings of a run: flat keys, and which of them may change when it goes on."""

from __future__ import annotations

from typing import Any

from cdmem.errors import InputError
from cdmem.run.folder import RunFolder

# Settings that change where or how a run executes, not what it computes.
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
    "trainer.profiler",
)
# Settings that folders of earlier versions lack, with the value that leaves everything as it was there.
LATER_KEYS = {"model.init_args.compile": False, "model.init_args.label_dropout": 0.0}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; lists stay whole."""
    if isinstance(value, dict) and value:
        flat: dict[str, Any] = {}
        for key, inner in value.items():
            flat.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    return {prefix: value}


def check_same_settings(folder: RunFolder, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to continue a folder that was made with other settings.

    Raises:
        InputError: naming the first key that differs and both values.
    """
    a, b = flatten(old), flatten(new)
    for key in sorted(set(a) | set(b)):
        if any(key == free or key.startswith(free + ".") for free in FREE_KEYS):
            continue
        if a.get(key, LATER_KEYS.get(key)) != b.get(key):
            problem = f"the run folder {folder.path} was made with {key}={a.get(key)}"
            raise InputError(key, b.get(key), problem, "use that value, or give another --run_dir")
