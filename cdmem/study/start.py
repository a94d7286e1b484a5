"""Where a stage starts: from nothing, from a checkpoint, or from another run's weights; and what is changed there."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from cdmem.data.counts import report
from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.models.load import load_model
from cdmem.run.folder import CHANGES, CONFIG, DISTILLED, FINISHED, RunFolder
from cdmem.run.provenance import environment
from cdmem.run.settings import Change, changed_settings
from cdmem.training.checkpoint import PREVIOUS, read_checkpoint, resumable_checkpoint, weights_digest
from cdmem.training.module import DiffusionModule
from cdmem.training.record import FORMAT, ModelRecord, read_record
from cdmem.training.student import Student

INVALID = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


@dataclass
class Start:
    """Where a stage starts.

    Attributes:
        path: checkpoint file, None for a fresh start.
        checkpoint: what it holds.
        changes: settings that are other ones from here on.
    """

    path: Path | None = None
    checkpoint: dict[str, Any] | None = None
    changes: list[Change] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.checkpoint["global_step"]) if self.checkpoint else 0


def command_line(said: Sequence[str], **options: str) -> str:
    """The user's command with other options, to be copied from a message."""
    words = list(said)
    for name, value in options.items():
        flag = f"--{name}"
        given = [k for k, word in enumerate(words) if word == flag or word.startswith(f"{flag}=")]
        for k in reversed(given):
            del words[k : k + (1 if "=" in words[k] else 2)]
        words += [flag, value]
    return shlex.join(["python", "-m", "cdmem", *words])


def anew(folder: RunFolder, said: Sequence[str]) -> str:
    """The hint to train in a folder that does not exist yet."""
    free = next(name for k in range(2, 10**6) if not Path(name := f"{folder.path}-{k}").exists())
    return f"to train anew: {command_line(said, run_dir=free)}"


def find_start(command: str, folder: RunFolder, asked: str | None, writes: bool) -> Start:
    """The checkpoint to go on from, read.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        folder: of the run.
        asked: ``ckpt_path``; None and ``last`` are the folder's own.
        writes: the run keeps files.

    Raises:
        InputError: there is none where one is needed; or another one would overwrite the folder's.
    """
    stray = next(iter(folder.path.glob("hpc_ckpt*")), None)
    if stray is not None:
        raise InputError("run_dir", stray, "is no checkpoint of cdmem, and Lightning would prefer it", "remove it")
    if asked not in (None, "last"):
        last = folder.last_checkpoint
        own = [file.resolve() for file in (last, last.with_name(PREVIOUS))]
        if writes and last.is_file() and Path(asked).resolve() not in own:
            hint = "give another --run_dir, or leave --ckpt_path out to go on with what it holds"
            raise InputError("ckpt_path", asked, f"would overwrite the run that {folder.path} holds", hint)
        return Start(Path(asked), read_checkpoint(asked, "ckpt_path"))
    if command == "fit" and asked is None and not writes:
        return Start()
    # The same command again goes on where the run stopped; a trained state is never overwritten.
    last = resumable_checkpoint(folder.path)
    if last is None and command != "fit":
        hint = "train first or give --ckpt_path FILE"
        raise InputError("ckpt_path", "last", f"{folder.path} holds no checkpoint", hint)
    return Start(*last) if last else Start()


def check_record(start: Start, role: str, command: str) -> ModelRecord:
    """What a checkpoint says of itself; raises InputError where that is invalid, or not what the config describes."""
    path, checkpoint = start.path, start.checkpoint
    step = checkpoint.get("global_step")
    try:
        record = read_record(checkpoint["cdmem"])
    except INVALID as error:
        raise InputError("ckpt_path", path, f"its record is invalid ({error})", "use another checkpoint") from None
    if not isinstance(step, int) or step < 0:
        raise InputError("ckpt_path", path, f"its record is invalid (step {step})", "use another checkpoint")
    if record.format != FORMAT and command == "fit":
        problem = f"was written by an earlier cdmem (format {record.format}) and cannot be resumed"
        hint = "sample, audit, export or distil it; train on from its weights by --weights_from, in another --run_dir"
        raise InputError("ckpt_path", path, problem, hint)
    if record.role != role:
        raise InputError(
            "ckpt_path",
            path,
            f"is a {record.role}, the config describes a {role}",
            "give the teacher to a student as --model.teacher; --ckpt_path only resumes the same model",
        )
    return record


def check_state(start: Start, record: ModelRecord, model: DiffusionModule, training_set: TrainingSet) -> None:
    """Raises InputError where a checkpoint is not of this teacher, training set and network."""
    path = start.path
    if record.teacher_digest != model.record.teacher_digest:
        raise InputError(
            "model.teacher",
            getattr(model, "teacher_name", None),
            f"is not the teacher that {path} was distilled from",
            "give that teacher, or another --run_dir",
        )
    if record.training_set != training_set.hash:
        raise InputError(
            "ckpt_path",
            path,
            "was trained on another training set than the data section describes",
            "use the data section of that run (its config.yaml)",
        )
    ours, theirs = ({k: tuple(v.shape) for k, v in d.items()} for d in (model.state_dict(), _tensors(start.checkpoint)))
    other = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
    if other:
        raise InputError(
            "ckpt_path",
            path,
            f"does not hold the network that the config describes ({other[0]} differs)",
            "use the model section of that run (its config.yaml)",
        )


def _tensors(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in checkpoint["state_dict"].items() if isinstance(v, torch.Tensor)}


def check_changes(start: Start, folder: RunFolder, settings: Mapping[str, Any], said: Sequence[str]) -> list[Change]:
    """Settings that differ from those that the checkpoint, or else the folder, was made with.

    Raises:
        InputError: one of them cannot change on the way.
    """
    recorded = folder.read_config() if (folder / CONFIG).is_file() else None
    old = (start.checkpoint or {}).get("settings") or recorded
    made = f"the run folder {folder.path}" if start.path is None or folder.path in start.path.parents else start.path
    if not isinstance(old, dict):
        return []
    return changed_settings(old, settings, str(made), f"use that value; {anew(folder, said)}")


def check_length(start: Start, model: DiffusionModule, max_steps: int, folder: RunFolder, said: Sequence[str]) -> None:
    """Raises InputError for changes that no step is left to apply, or a length that what was done does not allow."""
    longer = command_line(said, **{"trainer.max_steps": str(2 * start.step)})
    if start.changes and start.step >= max_steps:
        shown = start.changes[0]
        if shown.key == "trainer.max_steps":
            problem = f"the run has come to step {start.step} of {shown.old}"
            raise InputError(shown.key, shown.new, problem, f"to go on: {longer}; {anew(folder, said)}")
        problem = f"the run is finished at step {start.step} with {shown.key}={shown.old}"
        raise InputError(shown.key, shown.new, problem, f"to go on with it: {longer}; {anew(folder, said)}")
    method = model.method if isinstance(model, Student) else None
    moved = next((c for c in start.changes if c.key == "trainer.max_steps"), None)
    if moved and start.step and method is not None and method.follows_length:
        problem = f"the method's curriculum was laid out for {moved.old} steps"
        raise InputError("trainer.max_steps", max_steps, problem, anew(folder, said))


def start_from_weights(model: DiffusionModule, path: str) -> Change:
    """Give a new model the evaluated weights of another, for its averages and target too.

    Raises:
        InputError: it has another network.
    """
    key = "weights_from"
    weights = load_model(path, key).function().network.state_dict()
    ours = {k: v.shape for k, v in model.raw.network.state_dict().items()}
    other = sorted(k for k in {*ours, *weights} if k not in weights or ours.get(k) != weights[k].shape)
    if other:
        problem = f"holds another network than the config describes ({other[0]} differs)"
        raise InputError(key, path, problem, "use the model section of that run (its config.yaml)")
    networks = [model.raw.network, *(model.ema.get(name) for name in model.ema.names())]
    for network in [*networks, *([model.target] if getattr(model, "target", None) is not None else [])]:
        network.load_state_dict(weights)
    return Change("weights", None, {"path": path, "digest": weights_digest(model.raw.network)})


class StartRecord(Callback):
    """Writes what a run is into its folder once it really starts: a command that is refused before changes nothing.

    Args:
        folder: of the run.
        settings: all of them, resolved.
        training_set: T and H.
        start: where it starts.
        begun: called once it has started.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: dict[str, Any],
        training_set: TrainingSet,
        start: Start,
        begun: Callable[[], object] | None = None,
    ) -> None:
        self.folder, self.settings, self.training_set, self.start = folder, settings, training_set, start
        self.begun = begun

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        folder, start = self.folder, self.start
        (folder / FINISHED).unlink(missing_ok=True)
        folder.write_json("environment.json", environment(torch.get_num_threads()))
        folder.write_json("training_set.json", self.training_set.record())
        for line in report(self.training_set.provenance, "data.path", "data.held_out_path"):
            print(f"      {line}", flush=True)
        if start.changes:
            earlier = folder.read_json(CHANGES) if (folder / CHANGES).is_file() else []
            new = [{"step": start.step, **change._asdict()} for change in start.changes]
            folder.write_json(CHANGES, [e for e in earlier if e["step"] <= start.step] + new)
            for change in start.changes:
                print(f"      from step {start.step} on: {change}", flush=True)
        if start.changes or not (folder / CONFIG).is_file():
            folder.write_text(CONFIG, yaml.safe_dump(self.settings, sort_keys=False))
        if self.begun is not None:
            self.begun()
        if getattr(pl_module, "teacher_name", None):
            mark_distilled(folder, pl_module.teacher_name)
        last = folder.last_checkpoint
        if last.is_file() and start.path == last.with_name(PREVIOUS):
            last.replace(last.with_name("torn.ckpt"))  # or it would become the one to fall back on


# ---- teachers that something was distilled from ---------------------------------------------------------------------


def mark_distilled(student: RunFolder, teacher: str) -> None:
    """Note in a teacher's run folder that this student needs its weights as they are."""
    path = Path(teacher)
    folder = RunFolder(path.parent.parent if path.name in ("last.ckpt", PREVIOUS) else path)
    if not folder.last_checkpoint.is_file() or not os.access(folder.path, os.W_OK):
        return
    known = students_of(folder)
    here = os.path.relpath(student.path, folder.path)
    if here not in known:
        folder.write_json(DISTILLED, [*known, here])


def students_of(teacher: RunFolder) -> list[str]:
    """Run folders, relative to the teacher's, of the students that were distilled from it and still exist."""
    if not (teacher / DISTILLED).is_file():
        return []
    known = teacher.read_json(DISTILLED)
    return [str(k) for k in known if RunFolder(teacher / str(k)).last_checkpoint.is_file()]


def check_not_distilled(folder: RunFolder, start: Start, max_steps: int, said: Sequence[str]) -> None:
    """Raises InputError where training on would overwrite the weights that a student was distilled from."""
    known = students_of(folder)
    if start.step < max_steps and known:
        student = os.path.normpath(folder / known[0])
        other = f"{folder.path}-2"
        hint = f"leave it as it is; {command_line(said, ckpt_path=str(folder.last_checkpoint), run_dir=other)}"
        problem = f"{student} was distilled from its step {start.step}, whose weights would be overwritten"
        raise InputError("run_dir", folder.path, problem, hint)
