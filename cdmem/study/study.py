"""A study: teacher, student(s) and audit in one run folder; run again, it goes on where it stopped."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import yaml

from cdmem.audit.auditor import Auditor
from cdmem.audit.distillation_curve import distillation_record, spent_error
from cdmem.audit.generators import Generator, study_generators
from cdmem.audit.opening import copies_of
from cdmem.audit.result import AuditResult
from cdmem.audit.settings import AuditSettings
from cdmem.data.counts import report
from cdmem.errors import InputError, RunFailure
from cdmem.run.folder import CONFIG, RunFolder
from cdmem.run.settings import deciding
from cdmem.study.config import UNFINISHED, StudyConfig, stage_arguments
from cdmem.study.jobs import Done, Job, run_jobs
from cdmem.study.rounds import Rounds
from cdmem.study.stage import Stage, build
from cdmem.study.start import command_line
from cdmem.study.trial import try_study
from cdmem.study.until import Until
from cdmem.tracking.wandb import finish_wandb
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher


def check_parts(stages: Mapping[str, Stage]) -> None:
    """Raises InputError unless the stages are a teacher and students of one training set."""
    wanted = stages["teacher"].datamodule.training_set.hash
    for name, stage in stages.items():
        kind = DiffusionTeacher if name == "teacher" else Student
        if not isinstance(stage.model, kind):
            part = "teacher" if name == "teacher" else "student"
            raise InputError(name, type(stage.model).__name__, f"is not a {part}", f"use {kind.__name__}")
        if stage.datamodule.training_set.hash != wanted:
            hint = "share one data file between stages; a source of one's own must give the same images every time"
            raise InputError(f"{name}.data", "...", "differs from the teacher's training set", hint)


class Study:
    """Runs the stages of a study, in this process unless students are to run beside each other."""

    def __init__(self, config: StudyConfig) -> None:
        self.config, self.folder = config, RunFolder(config.run_dir)
        # Every stage is parsed and its data are read before anything trains.
        self.stages: dict[str, Stage] = {
            name: build("fit", stage_arguments(config, name), said=config.said) for name in config.stages
        }
        check_parts(self.stages)
        try_study(self.stages, config.audit)
        for stage in self.stages.values():
            stage.leave_distilled = config.unfinished
            stage.check_folder()
        self.rounds = {name: self._rounds(name, until) for name, until in config.until.items()}
        self.record = self._record()
        self._earlier_audit()  # what is none is refused before anything is written

    @property
    def digest(self) -> str:
        """Of all settings of the stages and the audit that decide what comes out: whether the same was asked before."""
        asked = {name: deciding(stage.record) for name, stage in self.stages.items()}
        asked["audit"] = self.config.audit.asked()
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()

    def _record(self) -> dict[str, Any]:
        """The settings as a study file in the run folder, from where its stages' configs are named."""
        raw = copy.deepcopy(self.config.raw)
        for name, (file, _) in self.config.stages.items():
            place = raw if name == "teacher" else raw["students"]
            place[name]["config"] = os.path.relpath(file, self.folder.path)
        return raw | {"seed": self.config.seed}

    def run(self, at_once: int = 1) -> AuditResult:
        """All stages, then the audit; finished parts are skipped.

        Args:
            at_once: students that run at the same time, each in a process of its own if there are several.
        """
        if not (self.folder / CONFIG).is_file():
            self.stages["teacher"].begun = self._write_settings  # for whoever goes on before this stage has ended
        for number, name in enumerate(list(self.stages), 1):
            stage = self.stages[name]
            print(f"[{number}/{len(self.stages) + 1}] {name}", flush=True)
            if name in self.rounds:
                stage = self.stages[name] = self.rounds[name].run()
            else:
                stage.execute()
            finish_wandb()
            self._check_ending(name, stage)
            if number == 1 and stage.trainer.is_global_zero:
                self._write_settings()
                self.folder.write_json("training_set.json", stage.datamodule.training_set.record())
            if number == 1 and at_once > 1:
                self._distil_beside(at_once)
        print(f"[{len(self.stages) + 1}/{len(self.stages) + 1}] audit", flush=True)
        return self.audit()

    def _distil_beside(self, at_once: int) -> None:
        """The students that have a length, each by ``fit`` with the settings that it has here.

        Raises:
            RunFailure: one failed; the others have come to their end.
        """
        names = [name for name in self.stages if name != "teacher" and name not in self.rounds]
        logs, failed = self.folder.path / "logs", dict[str, str]()

        def ended(job: Job, done: Done) -> None:
            if done.error:
                failed[job.name] = done.error

        run_jobs([Job(n, ["fit", *stage_arguments(self.config, n)], logs / f"{n}.log") for n in names], at_once, ended)
        if failed:
            raise RunFailure("; ".join(f"{name}: {error}" for name, error in failed.items()))
        for name in names:
            self.stages[name] = build("fit", stage_arguments(self.config, name), said=self.config.said)

    def _write_settings(self) -> None:
        self.folder.write_text(CONFIG, yaml.safe_dump(self.record, sort_keys=False))

    def _check_ending(self, name: str, stage: Stage) -> None:
        """What comes next builds on a stage that came to its end.

        Raises:
            InputError: it merely ran out of time, and that is not allowed.
        """
        ending = stage.folder.ending()
        if ending is not None and not ending.complete and not self.config.unfinished:
            hint = f"give the same command again, or take it as it is: {command_line(self.config.said)} {UNFINISHED}"
            raise InputError(name, ending.step, f"{ending} of {stage.trainer.max_steps}", hint)

    def _rounds(self, name: str, until: Until) -> Rounds:
        """The rounds of a student that is distilled until its claim is decided."""

        def make(further: Sequence[str]) -> Stage:
            finish_wandb()
            return build("fit", [*stage_arguments(self.config, name), *further], said=self.config.said)

        return Rounds(name, until, self.stages[name], make, lambda error: self._judged(name, error))

    def _judged(self, name: str, error: float) -> dict[str, Any]:
        """Verdicts of a student as it stands, by NFE."""
        settings = replace(self.config.audit, metrics=["quality"])
        generators = study_generators(self.config.run_dir, [name], settings.nfe, settings.torch_device)
        asked = [g for g in generators if g.role in ("teacher", "student")]
        result = self._audited(asked, settings, None, {name: error})
        return {str(m["nfe"]): m["verdict"] for m in result.models if m["name"] == name}

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
        settings, students = self.config.audit, list(self.config.stages)[1:]
        generators = study_generators(self.config.run_dir, students, settings.nfe, settings.torch_device)
        key = [[g.name, g.method, g.sampler.nfe, g.weights, g.step] for g in generators]
        endings = {name: ending for name, s in self.stages.items() if (ending := s.folder.ending())}
        old = self._earlier_audit()
        if old is not None and _generators(old) == key and old.settings.get("asked") == settings.asked():
            return old
        errors = {name: spent_error(RunFolder(self.folder / name)) for name in students}
        result = self._audited(generators, settings, self.folder, errors)
        result.notes += report(teacher.datamodule.training_set.provenance, "training_set", "held_out")
        result.stages = {name: ending.plain() for name, ending in endings.items()}
        short = [(name, ending) for name, ending in endings.items() if ending.ended != "max_steps"]
        result.notes += [f"{name} {ending}" for name, ending in short]
        self.folder.write_text("audit/summary.json", result.to_json())
        return result

    def _audited(
        self,
        generators: Sequence[Generator],
        settings: AuditSettings,
        folder: RunFolder | None,
        errors: Mapping[str, float],
    ) -> AuditResult:
        """Generators of this study, measured; ``errors`` of the intervals by student."""
        teacher = self.stages["teacher"]
        training_set, seed = teacher.datamodule.training_set, teacher.model.sampling_seed
        copies = copies_of(settings, training_set)
        records = {n: distillation_record(RunFolder(self.folder / n), copies, error=e) for n, e in errors.items()}
        return Auditor(training_set, settings, seed, folder, progress=folder is not None).run(generators, records)

    def _earlier_audit(self) -> AuditResult | None:
        """The audit that the folder holds; None without one, or with one of a version that gave no verdicts.

        Raises:
            InputError: what it holds is no audit.
        """
        if not (self.folder / "audit/summary.json").is_file():
            return None
        try:
            old = AuditResult.from_dict(self.folder.read_json("audit/summary.json"))
            _generators(old)
            return old if all(m.get("verdict") for m in old.models if m["role"] == "student") else None
        except (KeyError, TypeError, AttributeError):
            hint = "remove it and run again"
            raise InputError("run_dir", self.folder.path, "audit/summary.json is no audit", hint) from None


def _generators(result: AuditResult) -> list[list[Any]]:
    """Which models an audit measured."""
    return [[m["name"], m["method"], m["nfe"], m["weights"], m["step"]] for m in result.models]
