"""A study's file and command line: which stages, with which overrides, and what is audited."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cdmem.audit.settings import SAMPLES, AuditSettings
from cdmem.errors import InputError, brief
from cdmem.io.own_code import split_consent
from cdmem.io.paths import usable_path
from cdmem.io.text import parse_settings, read_text
from cdmem.run.settings import flatten
from cdmem.study.consent import check_consent
from cdmem.study.diagnosis import no_setting
from cdmem.study.parsing import config_name, one_value, options, read_settings
from cdmem.study.until import Until, read_until

STAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,60}")  # a student's name is a folder and the start of its overrides


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Settings of a study; its file holds all but ``config``, ``sweep``, ``jobs`` and ``allow_code``.

    Attributes:
        config: the study's file.
        teacher: config file of the teacher, relative to the study's file; --teacher.KEY overrides one of its settings.
        students: config file by name; --NAME.KEY overrides a setting of that student.
        data: settings of the data for all stages, e.g. --data.n 64.
        seed: subset, training and sampling seeds derive from it.
        run_dir: folder of the study; runs/<name of the file> if null.
        threads: CPU threads of all stages; if null what their configs say.
        wandb: log to Weights & Biases; if null what the stages' configs say.
        audit: what is measured at the end.
        allow_unfinished: distil and audit stages that merely ran out of time, as they are.
        sweep: KEY=VALUE,VALUE ...; a study of every combination, in one folder.
        jobs: studies of a sweep, or students of one study, that run at the same time, each in a process of its own.
        allow_code: files may name code to run: configs in run folders, checkpoints, records of data.
    """

    config: str
    teacher: Any = None
    students: Any = None
    data: Any = None
    seed: int = 0
    run_dir: str | None = None
    threads: int | None = None
    wandb: bool | None = None
    audit: AuditSettings = field(default_factory=AuditSettings)
    allow_unfinished: bool = False
    sweep: list[str] | None = None
    jobs: int = 1
    allow_code: bool = False


UNFINISHED = "--allow_unfinished"
FILE_KEYS = tuple(f.name for f in fields(StudySettings) if f.name not in ("config", "sweep", "jobs", "allow_code"))
TAKEN = (*(f.name for f in fields(StudySettings)), "report", "samples")  # files and folders of a study


@dataclass
class StudyConfig:
    """A parsed study file.

    Attributes:
        run_dir: the study's folder.
        seed: everything derives from it.
        stages: stage name -> (config file, overrides); the teacher first.
        audit: settings of the audit.
        until: of the students that are distilled until their claim is decided.
        raw: the merged settings, for the record.
        unfinished: stages that ran out of time are taken as they are.
        said: the command line, as the user gave it.
    """

    run_dir: str
    seed: int
    stages: dict[str, tuple[Path, dict[str, Any]]]
    audit: AuditSettings
    raw: dict[str, Any]
    until: dict[str, Until] = field(default_factory=dict)
    unfinished: bool = False
    said: tuple[str, ...] = ()


def read_study(args: Sequence[str]) -> StudyConfig:
    """Parse the command line of a study.

    Raises:
        InputError: unknown keys, unreadable files, missing stages, a config of a run folder.
    """
    rest, _ = split_consent(args)
    switched = [f"{word}=true" if word == UNFINISHED else word for word in rest]
    given = [(key, one_value(key, values)) for key, values in options(switched)]
    file = next((value for key, value in reversed(given) if key == "config"), None)
    if file is None:
        hint = "python -m cdmem study --config configs/quickstart.yaml"
        raise InputError("config", None, "a study needs a file", hint)
    raw = _merged(file, [(key, value) for key, value in given if key != "config"])
    return replace(_checked(Path(file), raw), said=("study", *args))


def _merged(file: str, overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The study file with the overrides of the command line."""
    try:
        check_consent(file)
        base = OmegaConf.create(parse_settings(read_text(Path(file))))
        students = list((base.get("students") or {"student": None}).keys())
        # --student.model.lr means students.student.model.lr
        dotted = [f"{'students.' * (key.split('.')[0] in students)}{key}={value}" for key, value in _whole(overrides)]
        for name in ("teacher", *(f"students.{s}" for s in students)):
            value = OmegaConf.select(base, name)
            if isinstance(value, str):
                OmegaConf.update(base, name, {"config": value}, merge=False)
        merged = OmegaConf.merge(base, OmegaConf.from_dotlist(dotted))
        return OmegaConf.to_container(merged, resolve=True)
    except (OSError, ValueError) as error:  # a folder, a name with a NUL, bytes that are no text, no mapping
        reason = getattr(error, "strerror", None) or ("it is no text" if isinstance(error, UnicodeError) else error)
        raise InputError("config", file, f"cannot be read ({reason})", "see configs/quickstart.yaml") from None
    except (OmegaConfBaseException, yaml.YAMLError, AttributeError, TypeError) as error:
        reason = brief(error)
        raise InputError("config", file, f"cannot be read ({reason})", "see configs/quickstart.yaml") from None


def _whole(overrides: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """``--x CLASS --x.width 12`` as class path and arguments: merged as they stand, the second would replace the first.

    The class may be a file that names it, see :func:`stage_arguments`.
    """
    keys = [key for key, _ in overrides]
    classes = [k for k in dict.fromkeys(keys) if "." in k and any(other.startswith(f"{k}.") for other in keys)]
    whole = []
    for key, value in sorted(overrides, key=lambda pair: pair[0] not in classes):  # the class before its arguments
        outer = next((k for k in reversed(classes) if key.startswith(f"{k}.")), None)
        if outer is not None:
            key = f"{outer}.init_args.{key.removeprefix(f'{outer}.').removeprefix('init_args.')}"
        whole.append((f"{key}.class_path" if key in classes else key, value))
    return whole


def _checked(path: Path, raw: dict[str, Any]) -> StudyConfig:
    for key, value in raw.items():
        if key not in FILE_KEYS:
            raise no_setting(str(key), value, FILE_KEYS)
        if key in ("audit", "students") and value is not None and not isinstance(value, dict):
            raise InputError(key, value, "is no mapping of settings", "see configs/quickstart.yaml")
    stages = _stages(path, raw)
    own = {key: raw[key] for key in ("seed", "run_dir", "allow_unfinished") if raw.get(key) is not None}
    settings = read_settings(StudySettings, {"config": str(path)} | own)
    given = raw.get("audit") or {}
    if given.get("samples") is None:  # a study's images are always sampled
        given = given | {"samples": SAMPLES}
    audit = read_settings(AuditSettings, given, "audit")
    run_dir = settings.run_dir or f"runs/{config_name(path)}"
    students = {name: raw["students"][name] for name in stages if name != "teacher"}
    until = {name: read_until(s["until"], name) for name, s in students.items() if s.get("until") is not None}
    return StudyConfig(run_dir, settings.seed, stages, audit, raw, until, settings.allow_unfinished)


def _stages(path: Path, raw: dict[str, Any]) -> dict[str, tuple[Path, dict[str, Any]]]:
    students = raw.get("students") or {}
    for name in students:
        if not STAGE.fullmatch(str(name)) or name in TAKEN:
            problem = "is no name of a student, whose folder it becomes"
            raise InputError("students", repr(name), problem, "use letters, digits, _ and -, e.g. student")
    shared = {key: raw[key] for key in ("data", "threads", "wandb") if raw.get(key) is not None}
    stages: dict[str, tuple[Path, dict[str, Any]]] = {}
    for name, value in {"teacher": raw.get("teacher"), **students}.items():
        if not isinstance(value, dict) or not value.get("config"):
            raise InputError(name, value, "names no config file", f"write {name}: path/to/file.yaml")
        config = usable_path(f"{name}.config", path.parent / str(value["config"]))
        if not config.is_file():
            hint = "paths are relative to the study file"
            raise InputError(f"{name}.config", value["config"], f"no file {config}", hint)
        own = {k: v for k, v in value.items() if k not in ("config", "until")}
        stages[name] = (config, {k: v for k, v in {**flatten(shared), **flatten(own)}.items() if k})
    if len(stages) < 2:
        raise InputError("students", raw.get("students"), "a study needs a student", "students: {student: file.yaml}")
    return stages


def _with_whole_distance(overrides: dict[str, Any]) -> dict[str, Any]:
    """The distance of a method as one mapping: the parser takes no dotted class path of a class within a class."""
    key = next((k.removesuffix(".class_path") for k in overrides if k.endswith(".distance.class_path")), None)
    if key is None:
        return overrides
    rest = {k: v for k, v in overrides.items() if not k.startswith(f"{key}.")}
    given = {k.removeprefix(f"{key}."): v for k, v in overrides.items() if k not in rest}
    init = {k.removeprefix("init_args."): v for k, v in given.items() if k != "class_path"}
    return rest | {key: {"class_path": given["class_path"], "init_args": init}}


def stage_arguments(study: StudyConfig, name: str) -> list[str]:
    """The ``fit`` command line of one stage."""
    config, overrides = study.stages[name]
    args = ["--config", str(config), "--run_dir", f"{study.run_dir}/{name}", "--seed", str(study.seed)]
    if name != "teacher":
        args += ["--model.teacher", f"{study.run_dir}/teacher"]
    for key, value in _with_whole_distance(overrides).items():
        if key.endswith(".class_path") and str(value).endswith((".yaml", ".yml")):
            key = key.removesuffix(".class_path")
        args.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    return args
