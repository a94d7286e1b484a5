"""``python -m cdmem plan --config FILE``: what a stage or a study will cost, before anything is trained.

FILE is a config of ``fit`` or of ``study``; overrides are theirs. Nothing is read but configs (and images, where the
config does not say their shape), nothing is trained, nothing is written::

    python -m cdmem plan --config configs/cifar10.yaml --devices 8
    python -m cdmem plan --config configs/cifar10/student_cd.yaml --teacher_config configs/cifar10/teacher.yaml

  --tflops X             TFLOP/s that one device sustains; else an assumed one, named in the output
  --devices N            devices in all; else those of the config, where auto counts as one
  --teacher_config FILE  of a lone student whose teacher does not exist yet
  --sweep KEY=V,V ...    of a study: what every cell costs, and all of them
  --json                 every number, for programs
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cdmem.errors import InputError
from cdmem.io.text import parse_yaml, read_text
from cdmem.study.sweep import Cell, cells_of, parse_grid, split_arguments


@dataclass
class PlanOptions:
    """The command line, taken apart.

    Attributes:
        tflops: stated rate, or None.
        devices: in all, or None.
        teacher_config: file, or None.
        json: print JSON.
        rest: arguments of ``fit`` or ``study``.
    """

    tflops: float | None = None
    devices: int | None = None
    teacher_config: str | None = None
    json: bool = False
    rest: list[str] = field(default_factory=list)


def parse(args: Sequence[str]) -> PlanOptions:
    """Separate our options from those of ``fit`` and ``study``.

    Raises:
        InputError: an option without a value, or a value that makes no sense.
    """
    found, k = PlanOptions(), 0
    while k < len(args):
        name, equals, value = args[k].partition("=")
        if name == "--json" and not equals:
            found.json, k = True, k + 1
        elif name in ("--tflops", "--devices", "--teacher_config"):
            if not equals:
                if k + 1 >= len(args):
                    raise InputError(name[2:], "", "has no value", f"write {name} VALUE")
                value, k = args[k + 1], k + 1
            setattr(found, name[2:], _value(name[2:], value))
            k += 1
        else:
            found.rest.append(args[k])
            k += 1
    return found


def _value(name: str, value: str) -> Any:
    if name == "teacher_config":
        return value
    try:
        number = float(value) if name == "tflops" else int(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(name, value, "must be a positive number", "e.g. --tflops 100 --devices 8")
    return number


def config_files(args: Sequence[str]) -> list[str]:
    """Files given as ``--config``."""
    pairs = zip(args, [*args[1:], ""])
    return [b for a, b in pairs if a in ("--config", "-c")] + [a[9:] for a in args if a.startswith("--config=")]


def kind_of(file: str) -> str:
    """``study`` or ``stage``.

    Raises:
        InputError: no file, no YAML mapping, or a mapping of another kind.
    """
    try:
        content = parse_yaml(read_text(Path(file)))
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({type(error).__name__ if isinstance(error, OSError) else error})"
        raise InputError("config", file, problem, "give a config of fit or study") from None
    keys = set(content) if isinstance(content, dict) else set()
    if keys & {"teacher", "students"}:
        return "study"
    if "model" in keys:
        return "stage"
    mend = "give a config of a stage (model: ...) or of a study (teacher: ..., students: ...)"
    raise InputError("config", file, f"has keys {sorted(map(str, keys))[:6]}, so it is neither", mend)


def run_plan(args: Sequence[str]) -> int:
    """``python -m cdmem plan``."""
    if not args or {"-h", "--help"} & set(args):
        print(__doc__)
        return 0
    options = parse(args)
    files = config_files(options.rest)
    if not files:
        raise InputError("config", None, "a plan needs a file", "python -m cdmem plan --config configs/quickstart.yaml")
    from cdmem.plan.text import record, sweep_record, sweep_text, text

    study = kind_of(files[-1]) == "study"
    arguments, swept = split_arguments(options.rest)
    if swept is not None:
        if not study:
            raise InputError("sweep", " ".join(swept), "a sweep is one of studies", "give the config of a study")
        cells = cells_of(parse_grid(swept))
        found = [_cell(cell, replace(options, rest=arguments)) for cell in cells]
        print(json.dumps(sweep_record(found), indent=2) if options.json else sweep_text(found), end="")
        return 0
    stages, audit = _study(options) if study else (_lone(options), None)
    if options.json:
        print(json.dumps(record(stages, audit, options.tflops), indent=2, allow_nan=False))
    else:
        print(text(stages, audit, options.tflops), end="")
    return 0


def _cell(cell: Cell, options: PlanOptions) -> tuple[str, dict[str, Any]]:
    """Folder and plan of one cell of a sweep."""
    from cdmem.plan.text import record

    swept = [part for key, value in cell.settings.items() for part in (f"--{key}", value)]
    stages, audit = _study(replace(options, rest=[*options.rest, *swept]))
    return cell.folder, record(stages, audit, options.tflops)


def _study(options: PlanOptions) -> tuple[Any, Any]:
    from cdmem.plan.study import plan_study
    from cdmem.study.config import read_study

    if options.teacher_config is not None:
        mend = "use --teacher.config FILE, or leave it out"
        raise InputError("teacher_config", options.teacher_config, "a study names its teacher itself", mend)
    # The audit's device need not be in this machine.
    return plan_study(read_study([*options.rest, "--audit.device", "auto"]), options.devices)


def _lone(options: PlanOptions) -> list[Any]:
    from cdmem.plan.build import build_stage
    from cdmem.plan.stage import Stage
    from cdmem.training.teacher import DiffusionTeacher

    args, teacher = list(options.rest), None
    if options.teacher_config is not None:
        own = build_stage(["--config", options.teacher_config])
        if not isinstance(own.model, DiffusionTeacher):
            problem = f"describes a {type(own.model).__name__}"
            raise InputError("teacher_config", options.teacher_config, problem, "give the config of a teacher")
        teacher = Stage("teacher", own)
        if not any(a.split("=")[0] in ("--model.teacher", "--model.init_args.teacher") for a in args):
            args += ["--model.teacher", options.teacher_config]
    try:
        cli = build_stage(args)
    except InputError as error:
        if error.key == "model.teacher" and error.value is None:
            mend = "add --teacher_config FILE, the teacher's config, or --model.teacher with its checkpoint"
            raise InputError("model.teacher", None, "the teacher's network is part of the cost", mend) from None
        raise
    role = cli.model.role
    return [Stage(role, cli, teacher if role == "student" else None, options.devices).plan()]
