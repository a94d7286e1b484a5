"""The run folder: where a run's settings, provenance, metrics and results live. Nobody else creates folders.

::

    runs/<name>/
      config.yaml            every setting, resolved; usable as --config
      environment.json       versions, git state, threads, command
      training_set.json      which images, how often, content hash
      finished.json          how training ended
      changes.json           settings that changed on the way, with their steps
      metrics.jsonl          one line per logging event
      checkpoints/           last.ckpt and snapshots
      evaluations/           per-seed rows of every evaluation (.npz)
      panels/                sample grids (.png)
      audit/  samples/       results of an audit; generated images
"""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from cdmem.errors import InputError
from cdmem.io.atomic import keep_inside, replacing
from cdmem.io.secrets import redact
from cdmem.io.text import LIMIT, parse_json, read_text, read_yaml
from cdmem.run.ending import Ending, read_ending

CONFIG = "config.yaml"
MAX_RECORD = 2**26  # bytes; training_set.json with its lists is the largest
WANDB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # W&B makes a folder of that name
FINISHED = "finished.json"
CHANGES = "changes.json"  # settings that changed on the way, each with its step
DISTILLED = "distilled.json"  # students that need a teacher's weights as they are


class RunFolder:
    """One run's folder; created by the first write.

    Args:
        path: for example ``runs/quickstart``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def file(self, name: str) -> Path:
        """Path of a file inside the folder, with its parents made; not through a link that leaves it."""
        target = self.path / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("run_dir", self.path, f"cannot be created ({error.strerror})", "choose another") from None
        return keep_inside(self.path, target)

    def write_text(self, name: str, text: str) -> Path:
        """Write a file that a crash leaves old or new, never torn; the user's W&B key is in none."""
        target = self.file(name)
        with replacing(target) as temporary:
            temporary.write_text(redact(text), encoding="utf-8")
        return target

    def write_json(self, name: str, value: Any) -> Path:
        """Write plain types as indented JSON."""
        return self.write_text(name, json.dumps(value, indent=2, sort_keys=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the folder."""
        file = self.path / name
        try:
            return parse_json(read_text(file, MAX_RECORD))
        except FileNotFoundError:
            raise InputError("run_dir", self.path, f"has no {name}", "give the folder of a run") from None
        except (OSError, ValueError):
            raise InputError("run_dir", self.path, f"{name} is torn", "remove the file and run again") from None

    def read_config(self) -> dict[str, Any]:
        """The settings that the run was made with.

        Raises:
            InputError: :data:`CONFIG` is missing, torn, or no mapping of usual size.
        """
        return read_yaml(self / CONFIG, "run_dir", "give another --run_dir")

    def write_arrays(self, name: str, **arrays: np.ndarray) -> Path:
        """Write an ``.npz``, old or new after a crash."""
        target = self.file(name)
        with replacing(target) as temporary:
            np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # numpy's stub: all for allow_pickle
        return target

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    def ending(self) -> Ending | None:
        """How training ended, by :data:`FINISHED`; None while it goes on, or after a kill."""
        if not (self.path / FINISHED).is_file():
            return None
        try:
            return read_ending(self.read_json(FINISHED))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"{FINISHED} is invalid ({error})"
            raise InputError("run_dir", self.path, problem, "remove the file and run again") from None

    def wandb_id(self) -> str:
        """The W&B run id of this folder, a new one if it has none yet; :meth:`keep_wandb_id` makes it the folder's."""
        return read_wandb_id(self.path) or uuid.uuid4().hex[:12]

    def keep_wandb_id(self, run_id: str) -> None:
        """Write the id down, so that a resumed run continues the same W&B run."""
        if read_wandb_id(self.path) != run_id:
            self.write_text("wandb_id", run_id + "\n")


def read_wandb_id(folder: Path) -> str | None:
    """The W&B run id that a run folder names; None without one, or where it could not be one."""
    try:
        text = read_text(folder / "wandb_id", LIMIT).strip()
    except (OSError, ValueError):
        return None
    return text if WANDB_ID.fullmatch(text) else None
