"""``python -m cdmem audit``: what a generator, or a set of images made elsewhere, reproduces of a training set.

Exit code 0: audited; 1: the upper 95 % bound of a copy detector is above ``--fail_above``; 2: bad input.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cdmem.audit.auditor import Auditor
from cdmem.audit.gate import check_names, detectors, judge_gate
from cdmem.audit.generators import Generator
from cdmem.audit.given_images import GivenImages
from cdmem.audit.opening import open_generators
from cdmem.audit.reference_sets import is_record, load_references
from cdmem.audit.settings import SAMPLES, AuditSettings
from cdmem.audit.text import print_summary
from cdmem.cli.arguments import new_file, parse
from cdmem.data.pixels import PixelOptions
from cdmem.errors import InputError
from cdmem.io.paths import usable_path
from cdmem.run.folder import RunFolder
from cdmem.seeds import SAMPLES_PER_RUN


@dataclass(frozen=True, kw_only=True)
class AuditCommand(AuditSettings):
    """Options of audit.

    Attributes:
        generator: checkpoint, run folder, diffusers pipeline folder, or images.
        training_set: run folder, training_set.json, or images (folder, .zip, .npz, .npy, .parquet, idx).
        held_out: the same forms; images that were not trained on.
        teacher: the student's teacher, for the paired comparison; looked for if null. Of images that were made
            already: the teacher's images, paired by the `seeds` in both files, or else row by row.
        converged: take the student as converged, on your word: what is seen now counts as the limit.
        parameterization: vp or edm, of a diffusers network without a scheduler.
        seed: sampling seed, which chooses the first sample seed.
        weights: raw or ema_<half-life>; the checkpoint's choice if null.
        flip: training mirrored images, so that a mirrored copy is a copy.
        data_path: where the pixels of a run's data source lie now.
        resolution: side in pixels that images are resized to, as in training; those of a run have its own.
        crop: side in pixels of a centre crop before that.
        grayscale: images as one channel.
        skip_unreadable: leave out pictures that cannot be read, and count them, instead of an error.
        fail_above: exit 1 when the upper 95 % bound of any copy detector exceeds this fraction.
        gate: detectors that fail_above looks at, of f_mem, tolerant, hog, efficientnet, inception; all measured ones
            if null.
        out: JSON file to write.
        quiet: no progress bars.
        allow_code: files may name code to run: networks and data sources of one's own.
    """

    generator: str
    training_set: str
    held_out: str | None = None
    teacher: str | None = None
    converged: bool = False
    parameterization: Literal["vp", "edm"] | None = None
    seed: int = 0
    weights: str | None = None
    flip: bool = False
    data_path: str | None = None
    resolution: int | None = None
    crop: int | None = None
    grayscale: bool = False
    skip_unreadable: bool = False
    fail_above: float | None = None
    gate: list[str] | None = None
    out: str | None = None
    quiet: bool = False
    allow_code: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fail_above is not None and not 0 <= self.fail_above <= 1:
            raise InputError("fail_above", self.fail_above, "is a fraction", "e.g. 0.01 for 1 %")
        if self.gate is not None:
            check_names(self.gate)
            if self.fail_above is None:
                raise InputError("gate", self.gate, "gates nothing without a limit", "add --fail_above 0.01")
        for name in ("generator", "training_set", "held_out", "teacher", "data_path"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(usable_path(name, getattr(self, name))))
        _ = self.pixels
        if self.out is not None:
            new_file("out", self.out, ".json")

    @property
    def pixels(self) -> PixelOptions:
        """What is done to images that no record describes."""
        try:
            return PixelOptions(self.crop, self.grayscale, self.resolution, self.skip_unreadable)
        except InputError as error:
            raise InputError(error.key.removeprefix("data."), error.value, error.problem, error.hint) from None

    def refuse_idle_options(self, generators: Sequence[Generator]) -> None:
        """Refuse options for images where none were given: a run's and a model's are what they are."""
        sets = [self.training_set] if self.held_out is None else [self.training_set, self.held_out]
        if not all(map(is_record, sets)) or any(isinstance(g.sampler, GivenImages) for g in generators):
            return
        for name in ("resolution", "crop", "grayscale", "skip_unreadable"):
            if getattr(self, name):
                problem = "every image comes from a run or a model, which say themselves how images are read"
                raise InputError(name, getattr(self, name), problem, f"leave --{name} out")


def with_samples(command: AuditCommand, generators: Sequence[Generator]) -> AuditCommand:
    """The same command with a number of samples that these generators can give."""
    given = [len(g.sampler.images) for g in generators if isinstance(g.sampler, GivenImages)]
    samples = command.samples or (given[0] if given else SAMPLES)
    if given and samples > given[0]:
        raise InputError("samples", samples, f"only {given[0]} images are given", "ask for fewer")
    if not given and samples > SAMPLES_PER_RUN:
        problem = f"a sampling seed has {SAMPLES_PER_RUN:,} samples; more would repeat those of the next seed"
        raise InputError("samples", samples, problem, "ask for fewer, under several --seed")
    return replace(command, samples=samples)


def run_audit(args: Sequence[str]) -> int:
    """Audit, print, write, and say by the exit code whether the gate holds."""
    command = parse(AuditCommand, args, "audit", about=__doc__ or "")
    training_set, notes = load_references(
        command.training_set, command.held_out, command.flip, command.data_path, command.pixels
    )
    try:
        generators, distillation, more = open_generators(
            command.generator,
            training_set,
            command,
            command.weights,
            command.teacher,
            command.pixels,
            command.parameterization,
        )
    except InputError as error:  # the stages of a study are read as checkpoints
        key = "generator" if error.key == "checkpoint" else error.key
        raise InputError(key, error.value, error.problem, error.hint) from None
    command.refuse_idle_options(generators)
    command = with_samples(command, generators)
    auditor = Auditor(training_set, command, command.seed, None, not command.quiet, command.converged)
    held_out = len(training_set.held_out_images)
    looked = detectors(command.gate, auditor.suite, held_out)
    result = auditor.run(generators, distillation)
    result.notes += [*notes, *more]
    print_summary(result)
    gate = None if command.fail_above is None else judge_gate(result.models, held_out, looked, command.fail_above)
    if gate is not None:
        print("\n" + "\n".join(gate.lines()))
    if command.out is not None:
        out = Path(command.out).expanduser()
        record = json.loads(result.to_json()) | {
            "gate": {"fail_above": None, "failed": []} if gate is None else gate.record(),
            "command": ["python", "-m", "cdmem", "audit", *args],
        }
        RunFolder(out.parent).write_json(out.name, record)
        print(f"\nwritten: {out}")
    return 1 if gate is not None and gate.failed else 0
