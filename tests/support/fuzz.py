"""Broken input for the command line: a sandbox with one of everything, and what every command may do in it."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from PIL import Image

import cdmem.audit.auditor
import cdmem.training.module
from cdmem.audit.auditor import Auditor
from cdmem.diffusion import sampling
from support.settings import nested
from support.untrusted import main, tree

NETWORK = {"class_path": "cdmem.networks.UNet", "init_args": {"channels": [4], "layers": 1, "norm_groups": 2}}
MODEL = nested("teacher", network=NETWORK, ema_half_lives=[2], sampler_points=3)
DATA = {
    "source": "digits",
    "n": 8,
    "held_out": 12,
    "batch_size": 4,
    "subset_seed": 0,
    "classes": [0, 1, 2],
    "duplication": [{"fraction": 0.25, "copies": 2}],
}
CALLBACKS = [
    {"class_path": "callbacks.MemorizationCallback", "init_args": {"cadence": {"samples": 4, "points": 2}}},
    {"class_path": "callbacks.OnsetCallback"},
    {"class_path": "cdmem.training.RunCheckpoint", "init_args": {"every_n_steps": 1}},
]
TRAINER = {"accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False, "enable_model_summary": False}
TEACHER = {
    "threads": 1,
    "wandb": False,
    "data": DATA,
    "model": {"class_path": "cdmem.training.DiffusionTeacher", "init_args": MODEL},
    "trainer": {**TRAINER, "callbacks": CALLBACKS},
}
STUDENT = {
    "class_path": "cdmem.training.Student",
    "init_args": nested("student", teacher="run/teacher", points=4, ema_half_lives=[2]),
}
STUDY = {"seed": 0, "threads": 1, "teacher": "teacher.yaml", "students": {"student": "student.yaml"}}
STUDY |= {"audit": {"samples": 8, "metrics": ["memorization"]}, "wandb": False}


class Reached(Exception):
    """Every check was passed, and training would begin."""


def furnish(folder: Path) -> None:
    """Configs, a finished study, images and an audit, in ``folder``, which is the working directory."""
    (folder / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
    (folder / "student.yaml").write_text(yaml.safe_dump({**TEACHER, "model": STUDENT}))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    assert main("study", "--config", "study.yaml", "--run_dir", "run") == 0
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images)
    np.save(folder / "images.npy", images)
    (folder / "pictures").mkdir()
    for k, image in enumerate(images[:4]):
        Image.fromarray(image).save(folder / "pictures" / f"{k}.png")
    (folder / "edge.yaml").write_text(yaml.safe_dump({"n": [4], "widths": [4], "steps_per_point": 3, "points": 3}))


def furnish_more(folder: Path) -> None:
    """What others hand over: an exported student and teacher, multiplicities; a link that leads to itself."""
    assert main("export", "--checkpoint", "run/student", "--out", "exported") == 0
    assert main("export", "--checkpoint", "run/teacher", "--out", "exported_teacher") == 0
    np.save(folder / "copies.npy", np.arange(1, 9))
    (folder / "copies.json").write_text("[1, 2, 3, 4, 5, 6, 7, 8]")
    (folder / "loop").symlink_to("loop")


def reached(*args: object, **kwargs: object) -> None:
    """In place of what takes long."""
    raise Reached


SLOW = (
    "training.teacher.DiffusionTeacher.training_step",
    "training.student.Student.training_step",
    "theory.two_gaussians.laboratory.train",
    "theory.edge.laboratory.isotropic",
    "theory.edge.laboratory.scaling",
    "theory.edge.laboratory.image_model",
    "theory.random_features.laboratory.constants",
    "theory.bridge.laboratory.one_draw",
    "theory.decomposition.laboratory.paths",
)
MANY = 64


@contextlib.contextmanager
def untrained() -> Iterator[None]:
    """Training steps, the laboratories' computations and more than :data:`MANY` samples are replaced by Reached."""
    audit, batches = cdmem.audit.auditor.Auditor.run, sampling.in_batches

    def few(self: Auditor, *args: object) -> object:
        return audit(self, *args) if self.samples <= MANY else reached()

    def few_batches(sampler: object, seeds: range, *args: object) -> object:
        return batches(sampler, seeds, *args) if len(seeds) <= MANY else reached()

    with pytest.MonkeyPatch.context() as patch:
        for name in SLOW:
            patch.setattr(f"cdmem.{name}", reached)
        patch.setattr("cdmem.audit.auditor.Auditor.run", few)
        patch.setattr("cdmem.cli.sample.in_batches", few_batches)
        yield


def _goes_on(args: list[str]) -> bool:
    """Whether a command trains in ``run`` itself."""
    return args[0] == "study" or args[:3] == ["fit", "--config", "run/teacher/config.yaml"]


MARK = "run/teacher/distilled.json"  # where a teacher's students are noted


class Sandbox:
    """A furnished folder; :meth:`attempt` runs one command on a broken copy of some of its files.

    Args:
        root: what is watched for changes.
        place: the working directory, somewhere below it.
    """

    def __init__(self, root: Path, place: Path) -> None:
        self.root, self.folder, self.before = root, place, tree(root)
        self.prefix = f"{place.relative_to(root)}/"
        self.ends: dict[str, int] = {}
        self.said = ""

    def attempt(self, args: list[str], broken: dict[str, bytes | None]) -> None:
        """Run ``args`` with the contents of some files replaced (None: the file is gone) and demand one of two ends.

        A valid run, or exit 2 with one line on stderr that names a key, the value and a hint. Nothing that was there
        is changed, whatever the end, and after a refusal nothing new is there either.
        """
        kept = {n: (self.folder / n).read_bytes() for n in {*broken, MARK} if (self.folder / n).is_file()}
        for name, content in broken.items():
            (self.folder / name).unlink(missing_ok=True)
            if content is not None:
                (self.folder / name).write_bytes(content)
        aside = self.root.with_name(self.root.name + "-aside")
        if _goes_on(args):
            shutil.copytree(self.folder / "run", aside, symlinks=True)
        start = tree(self.root)
        err = io.StringIO()
        try:
            with (
                untrained(),
                warnings.catch_warnings(action="ignore"),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(err),
            ):
                try:
                    code: int | str = main(*args)
                except Reached:
                    code = "reached"
            self._judge(args, code, err.getvalue(), start)
        finally:
            torch.set_num_threads(1)
            if aside.exists():
                shutil.rmtree(self.folder / "run")
                aside.rename(self.folder / "run")
            self._restore(kept)

    def _judge(self, args: list[str], code: int | str, said: str, start: dict[str, str]) -> None:
        self.said, now = said, tree(self.root)
        changed = {name.removeprefix(self.prefix) for name, digest in start.items() if now.get(name) != digest}
        if code == 0 and args[0] == "report":  # the page is what it writes
            changed = {name for name in changed if not name.startswith(("run/report.html", "run/report/"))}
        if code in (0, "reached"):
            changed.discard(MARK)
        if code in (0, "reached") and _goes_on(args):  # from an older checkpoint if the last is torn
            changed = {name for name in changed if not name.startswith("run/")}
        assert not changed, f"{args} changed {sorted(changed)}"
        self.ends[str(code)] = self.ends.get(str(code), 0) + 1
        if code != 2:
            passed = code in (0, "reached") or (code == 1 and args[0] == "audit")
            assert passed, f"{args} ended with {code}: {said[-2000:]}"
            return
        line = said.removesuffix("\n")
        one = line.startswith("cdmem: error: ") and line.isprintable() and len(line) < 1200
        assert one and "Traceback" not in line, f"{args}: {said[-2000:]}"
        key, _, rest = line.removeprefix("cdmem: error: ").partition("=")
        assert key and ": " in rest and "; " in rest, f"{args} names no key, value and hint: {said}"
        made = set(now) - set(start)
        assert not made, f"{args} left {sorted(made)}"

    def _restore(self, kept: dict[str, bytes]) -> None:
        for name, content in kept.items():
            (self.folder / name).write_bytes(content)
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif str(path.relative_to(self.root)) not in self.before:
                path.unlink()


FILE_KINDS = {"files": 0.2, "records": 0.1, "media": 0.2, "models": 0.2}  # half of what records say stops nothing
ASIDE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]


def attempt_all(sandbox: Sandbox, strategy: Callable[[], SearchStrategy], count: int, least: float = 0.2) -> None:
    """``count`` draws, of which at least this share must be refused."""

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=ASIDE,
              phases=[Phase.generate])  # fmt: skip
    @given(strategy())
    def attempt(case):
        sandbox.attempt(*case)

    attempt()
    print(strategy.__name__, count, sandbox.ends)
    assert sandbox.ends.get("2", 0) >= least * count, "much of what is broken must be refused"
    assert sum(sandbox.ends.values()) >= 0.9 * count
