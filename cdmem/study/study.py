"""``python -m cdmem study``: teacher, student(s) and audit in one run folder; run again, it goes on where it stopped.

A study file names the stages' own config files, so ``fit`` and ``study`` train from the same settings::

    teacher: quickstart/teacher.yaml
    students: {student: quickstart/student.yaml}
    audit: {samples: 2000}

``--teacher.KEY``, ``--<student name>.KEY`` and ``--data.KEY`` on the command line (or as mappings in the file) override
settings of one stage or of all. ``--sweep data.n=32,64 seed=0,1,2`` runs a grid of studies in one folder.
"""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cdmem.audit.auditor import Auditor
from cdmem.audit.distillation_curve import distillation_record
from cdmem.audit.generators import study_subjects
from cdmem.audit.result import AuditResult
from cdmem.audit.suite import EXTRACTORS, GROUPS, SLOW_GROUPS, SuiteOptions, build_features
from cdmem.audit.text import print_summary
from cdmem.errors import InputError
from cdmem.io.atomic import owned
from cdmem.io.paths import usable_path
from cdmem.io.secrets import redact
from cdmem.run.folder import CONFIG, RunFolder
from cdmem.run.provenance import environment
from cdmem.run.settings import check_same_settings, flatten
from cdmem.study.quiet import quiet_libraries
from cdmem.study.stage import CdmemCLI, build, config_name
from cdmem.study.trust import FLAG, admit, split_flag
from cdmem.tracking.wandb import finish_wandb
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher

TOP_KEYS = ("teacher", "students", "audit", "data", "seed", "run_dir", "threads", "wandb")
STAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,60}")  # a student's name is a folder and the start of its overrides
TAKEN = (*TOP_KEYS, "report", "samples", "config")


@dataclass(frozen=True)
class AuditSettings:
    """The ``audit`` section.

    Attributes:
        samples: images per model.
        batch_size: images made at once; changes no number.
        nfe: student evaluations per sample to audit; None takes all that its ``mid_sigmas`` allow.
        threshold: memorised means d1 / d2 below it.
        device: where samples are made; ``auto`` is the GPU if there is one.
        near_duplicates: ``off``, ``auto`` or a ratio: which training images count as one.
        features: extractors of quality and copying: ``pixels``, ``efficientnet``, ``inception``.
        metrics: groups to measure: ``memorization``, ``copying``, ``quality``, ``inside``.
    """

    samples: int = 2000
    batch_size: int = 256
    nfe: list[int] | None = None
    threshold: float = 1 / 3
    device: str = "auto"
    near_duplicates: str | float = "off"
    features: list[str] = field(default_factory=lambda: ["pixels"])
    metrics: list[str] = field(default_factory=lambda: list(GROUPS))


@dataclass
class StudyConfig:
    """A parsed study file.

    Attributes:
        path: of the file; stage files are relative to it.
        run_dir: the study's folder.
        seed: everything derives from it.
        stages: stage name -> (config file, overrides); the teacher first.
        audit: settings of the audit.
        raw: the merged settings, for the record.
        code: configs of run folders may name any class.
    """

    path: Path
    run_dir: str
    seed: int
    stages: dict[str, tuple[Path, dict[str, Any]]]
    audit: AuditSettings
    raw: dict[str, Any]
    code: bool = False


def _unknown(key: str, known: Sequence[str]) -> InputError:
    close = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return InputError(key or repr(key), "...", "no such setting of a study", hint)


def _overrides(args: Sequence[str]) -> tuple[str, list[str]]:
    """Split ``--config FILE`` from ``--key value`` pairs, which become OmegaConf's ``key=value``."""
    config, dotted, k = None, [], 0
    while k < len(args):
        arg = args[k]
        if not arg.startswith("--"):
            raise InputError("arguments", arg, "is not an option", "write overrides as --key value")
        key, equals, value = arg[2:].partition("=")
        if not equals:
            if k + 1 >= len(args):
                raise InputError(key, "", "has no value", f"write --{key} VALUE")
            value, k = args[k + 1], k + 1
        if key == "config":
            config = value
        else:
            dotted.append(f"{key}={value}")
        k += 1
    if config is None:
        raise InputError(
            "config", None, "a study needs a file", "python -m cdmem study --config configs/quickstart.yaml"
        )
    return config, dotted


def read_study(args: Sequence[str]) -> StudyConfig:
    """Parse the command line of a study.

    Raises:
        InputError: unknown keys, unreadable files, missing stages.
    """
    code = split_flag(args)[1]
    args = admit(args, study=True)
    file, dotted = _overrides(args)
    try:
        base = OmegaConf.load(file)
        students = list((base.get("students") or {"student": None}).keys())
        # --student.model.lr means students.student.model.lr
        dotted = [f"students.{d}" if d.split("=")[0].split(".")[0] in students else d for d in dotted]
        for name in ("teacher", *(f"students.{s}" for s in students)):
            value = OmegaConf.select(base, name)
            if isinstance(value, str):
                OmegaConf.update(base, name, {"config": value}, merge=False)
        merged = OmegaConf.merge(base, OmegaConf.from_dotlist(dotted))
        raw = OmegaConf.to_container(merged, resolve=True)
    except FileNotFoundError:
        raise InputError("config", file, "no such file", "give the path of a study file") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:  # a folder, a name with a NUL, bytes that are no text
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError("config", file, f"cannot be read ({reason})", "give the path of a study file") from None
    except (OmegaConfBaseException, yaml.YAMLError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError("config", file, f"cannot be read ({reason})", "see configs/quickstart.yaml") from None
    return replace(_checked(Path(file), raw, args), code=code)


def _checked(path: Path, raw: dict[str, Any], args: Sequence[str]) -> StudyConfig:
    for key in raw:
        if key not in TOP_KEYS:
            raise _unknown(str(key), TOP_KEYS)
    for key in ("audit", "students"):
        if raw.get(key) is not None and not isinstance(raw[key], dict):
            raise InputError(key, raw[key], "is no mapping of settings", "see configs/quickstart.yaml")
    audit = raw.get("audit") or {}
    known = [f.name for f in fields(AuditSettings)]
    for key in audit:
        if key not in known:
            raise _unknown(f"audit.{key}", [f"audit.{k}" for k in known])
    stages: dict[str, tuple[Path, dict[str, Any]]] = {}
    shared = {k: raw[k] for k in ("data", "threads", "wandb") if raw.get(k) is not None}
    for name in raw.get("students") or {}:
        if not STAGE.fullmatch(str(name)) or name in TAKEN:
            problem = "is no name of a student, whose folder it becomes"
            raise InputError("students", repr(name), problem, "use letters, digits, _ and -, e.g. student")
    for name, value in {"teacher": raw.get("teacher"), **(raw.get("students") or {})}.items():
        if not isinstance(value, dict) or not value.get("config"):
            raise InputError(name, value, "names no config file", f"write {name}: path/to/file.yaml")
        config = usable_path(f"{name}.config", path.parent / str(value["config"]))
        if not config.is_file():
            raise InputError(
                f"{name}.config", value["config"], f"no file {config}", "paths are relative to the study file"
            )
        own = {k: v for k, v in value.items() if k != "config"}
        stages[name] = (config, {k: v for k, v in {**flatten(shared), **flatten(own)}.items() if k})
    if len(stages) < 2:
        raise InputError("students", raw.get("students"), "a study needs a student", "students: {student: file.yaml}")
    seed = raw.get("seed", 0)
    if not isinstance(seed, int):
        raise InputError("seed", seed, "must be a whole number", "e.g. --seed 1")
    run_dir = str(raw.get("run_dir") or f"runs/{config_name(['--config', str(path)])}")
    return StudyConfig(path, run_dir, seed, stages, _audit_settings(audit), raw)


def _audit_settings(audit: dict[str, Any]) -> AuditSettings:
    settings = AuditSettings(**audit)
    if settings.device == "auto":
        settings = replace(settings, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=settings.device)
    except (RuntimeError, AssertionError):
        raise InputError("audit.device", settings.device, "is not available here", "use auto or cpu") from None
    checks = {
        "samples": isinstance(settings.samples, int) and settings.samples >= 2,
        "batch_size": isinstance(settings.batch_size, int) and settings.batch_size >= 1,
        "threshold": isinstance(settings.threshold, int | float) and 0 < settings.threshold <= 1,
        "nfe": settings.nfe is None
        or (isinstance(settings.nfe, list) and all(isinstance(k, int) and k >= 1 for k in settings.nfe)),
        "near_duplicates": settings.near_duplicates in ("off", "auto")
        or (isinstance(settings.near_duplicates, float) and 0 < settings.near_duplicates < 1),
        "features": isinstance(settings.features, list) and all(f in list(EXTRACTORS) for f in settings.features),
        "metrics": isinstance(settings.metrics, list) and all(m in (*GROUPS, *SLOW_GROUPS) for m in settings.metrics),
    }
    for key, good in checks.items():
        if not good:
            raise InputError(f"audit.{key}", getattr(settings, key), "is out of range", "see configs/quickstart.yaml")
    return settings


def stage_arguments(study: StudyConfig, name: str) -> list[str]:
    """The ``fit`` command line of one stage."""
    config, overrides = study.stages[name]
    args = ["--config", str(config), "--run_dir", f"{study.run_dir}/{name}", "--seed", str(study.seed)]
    if name != "teacher":
        args += ["--model.teacher", f"{study.run_dir}/teacher"]
    args += [FLAG] if study.code else []
    for key, value in overrides.items():
        args.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    return args


class Study:
    """Runs the stages of a study one after the other in this process."""

    def __init__(self, config: StudyConfig) -> None:
        self.config, self.folder = config, RunFolder(config.run_dir)
        # Every stage is parsed and its data are read before anything trains.
        self.stages: dict[str, CdmemCLI] = {name: build("fit", stage_arguments(config, name)) for name in config.stages}
        self._check_stages()

    def _check_stages(self) -> None:
        teacher = self.stages["teacher"]
        if not isinstance(teacher.model, DiffusionTeacher):
            raise InputError("teacher", type(teacher.model).__name__, "is not a teacher", "use DiffusionTeacher")
        wanted = teacher.datamodule.training_set
        for name, cli in self.stages.items():
            if cli.datamodule.training_set.hash != wanted.hash:
                raise InputError(
                    f"{name}.data",
                    "...",
                    "differs from the teacher's training set",
                    "share one data file between stages",
                )
            if name != "teacher" and not isinstance(cli.model, Student):
                raise InputError(name, type(cli.model).__name__, "is not a student", "use Student")
        if (self.folder / CONFIG).is_file():
            mine = redact(self.config.raw | {"seed": self.config.seed})
            check_same_settings(self.folder, self.folder.read_config(), mine)

    def run(self) -> AuditResult:
        """All stages, then the audit; finished parts are skipped."""
        record = self.config.raw | {"seed": self.config.seed}
        for number, (name, cli) in enumerate(self.stages.items(), 1):
            print(f"[{number}/{len(self.stages) + 1}] {name}", flush=True)
            cli.execute()
            finish_wandb()
            if number == 1 and cli.trainer.is_global_zero:
                self.folder.write_text(CONFIG, yaml.safe_dump(record, sort_keys=False))
                self.folder.write_json("training_set.json", cli.datamodule.training_set.record())
        print(f"[{len(self.stages) + 1}/{len(self.stages) + 1}] audit", flush=True)
        return self.audit()

    # ---- audit --------------------------------------------------------------------------------------------------

    def audit(self) -> AuditResult:
        """Measure, or read the summary of an audit of exactly these checkpoints and settings."""
        teacher = self.stages["teacher"]
        if torch.distributed.is_initialized():
            # One process audits; with the group still there, its metrics would wait for the others for ever.
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        if not teacher.trainer.is_global_zero:
            raise SystemExit(0)
        a, students = self.config.audit, list(self.config.stages)[1:]
        subjects = study_subjects(self.config.run_dir, students, a.nfe, a.device)
        key = [[s.name, s.method, s.sampler.nfe, s.weights, s.step] for s in subjects]
        old = self._earlier_audit(key)
        if old is not None:
            return old
        options = SuiteOptions(a.threshold, a.near_duplicates, a.features, a.metrics)
        auditor = Auditor(
            teacher.datamodule.training_set,
            a.samples,
            teacher.model.sampling_seed,
            options,
            a.batch_size,
            a.device,
            [build_features(name) for name in a.features],
            folder=self.folder,
        )
        records = {n: distillation_record(RunFolder(f"{self.config.run_dir}/{n}"), a.threshold) for n in students}
        result = auditor.run(subjects, records)
        self.folder.write_text("audit/summary.json", result.to_json())
        return result

    def _earlier_audit(self, key: list[list[Any]]) -> AuditResult | None:
        """The audit of the same models, if the folder holds one.

        Raises:
            InputError: what it holds is no audit.
        """
        if not (self.folder / "audit/summary.json").is_file():
            return None
        try:
            old = AuditResult.from_dict(self.folder.read_json("audit/summary.json"))
            same = [[m["name"], m["method"], m["nfe"], m["weights"], m["step"]] for m in old.models] == key
            # An audit of an earlier version has no verdict: it is made again.
            return old if same and all(m.get("verdict") for m in old.models if m["role"] == "student") else None
        except (KeyError, TypeError, AttributeError):
            mend = "remove it and run again"
            raise InputError("run_dir", self.folder.path, "audit/summary.json is no audit", mend) from None


def run_one(args: Sequence[str]) -> None:
    """One study from parsing to its page."""
    started = time.time()
    config = read_study(args)
    study = Study(config)
    first = study.stages["teacher"]
    with owned(study.folder.path, first.trainer.is_global_zero):
        result = study.run()
        study.folder.write_json("environment.json", environment(first.settings.threads or 0))
        print_summary(result)
        from cdmem.report.build import write_report

        page = write_report(config.run_dir)
    print(f"\n{time.time() - started:.0f} s; everything is in {config.run_dir}/; open {page}")


def run_study(args: Sequence[str]) -> int:
    """``python -m cdmem study``, alone or with ``--sweep``."""
    if not args or {"-h", "--help"} & set(args):
        print(__doc__)
        return 0
    quiet_libraries()
    from cdmem.study.sweep import run_sweep, split_arguments

    args, items = split_arguments(args)
    if items is None:
        run_one(args)
        return 0
    folder, sweep = run_sweep(args, items, lambda cell: Study(read_study(cell)), run_one)
    from cdmem.report.compare import studies_below, write_comparison

    finished = studies_below(folder.path)
    if finished:
        print(f"comparison: {write_comparison(finished, folder / 'comparison.html')}")
    failed = [cell for cell in sweep.cells if cell.status != "finished"]
    for cell in failed:
        print(f"failed: {cell.folder}: {cell.error}")
    return 1 if failed else 0
