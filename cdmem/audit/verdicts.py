"""The verdict of every student of an audit, from its comparison with the teacher, its distillation and its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cdmem.metrics.comparison.paired import difference
from cdmem.metrics.comparison.specific import Control, specific_record
from cdmem.metrics.comparison.verdict import AMPLITUDE, Evidence, judge

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Audited:
    """One model of the audit.

    Attributes:
        entry: its record, see `cdmem.audit.auditor.Auditor.measure`.
        copies: which of its samples are copies, bool (m,), in seed order.
        recipe: how a student was made; None where nobody knows, and of a teacher.
    """

    entry: Record
    copies: Tensor
    recipe: str | None = None

    @property
    def makes_images(self) -> bool:
        """Whether what it makes are images at all, by their variance."""
        ratio = self.entry["variance_ratio"]
        return ratio is not None and AMPLITUDE[0] <= ratio <= AMPLITUDE[1]


@dataclass(frozen=True)
class Verdicts:
    """Judges the students of one audit.

    Attributes:
        models: of the audit, the teacher at full cost first where there is one.
        held_out: f_mem of the held-out images, or None without them.
        distillation: per student the record of `cdmem.audit.distillation_curve`.
        converged: taken as given by the user.
        frechet: keys of the Frechet distances to H in ``quality``, the one that decides equal quality first.
    """

    models: Sequence[Audited]
    held_out: Record | None
    distillation: Mapping[str, Record]
    converged: bool = False
    frechet: Sequence[str] = ()

    def of(self, student: Audited) -> dict[str, Any]:
        """A student's record of `cdmem.metrics.comparison.verdict.Verdict`."""
        entry, teacher = student.entry, self.models[0].entry
        record = self.distillation.get(entry["name"]) or {}
        nfe, paired = str(entry["nfe"]), entry.get("paired")
        equal, limit = (paired or {}).get("equal_nfe"), record.get("limit", {}).get(nfe)
        evidence = Evidence(
            variance_ratio=entry["variance_ratio"],
            teacher_ci95=tuple(teacher["f_mem"]["ci95"]) if teacher["role"] == "teacher" else None,
            control_ci95=tuple(self.held_out["ci95"]) if self.held_out else None,
            pair=paired,
            limit=limit,
            ceiling=self._ceiling(student),
            slow_phase=record.get("slow_phase", {}).get(nfe),
            rmse_trend=record.get("rmse_trend", {}).get(nfe),
            converged=self.converged,
            as_real=self._as_real(entry["quality"], teacher["quality"]),
            equal_nfe=equal["difference"] if equal else None,
            specific=specific_record((limit or {}).get("strict"), self._controls(student)),
            distillation=record.get("length", ""),
            who=f"{entry['name']}, {entry['nfe']} NFE" if entry["nfe"] else entry["name"],
        )
        return judge(evidence).record()

    def _ceiling(self, student: Audited) -> dict[str, Any] | None:
        """The perfect student of this recipe against the teacher, or None if it was not sampled."""
        named = ("ceiling", f"ceiling of {student.entry['name']}", student.entry["nfe"])
        found = next((m for m in self.models if tuple(m.entry[k] for k in ("role", "name", "nfe")) == named), None)
        return None if found is None else difference(self.models[0].copies, found.copies)

    def _controls(self, student: Audited) -> list[Control]:
        """Students of other recipes at the same NFE; the teacher of few steps, and the one stopped at equal quality."""
        if student.recipe is None:  # images of unknown training
            return []
        found, nfe = [], student.entry["nfe"]
        for m in self.models:
            entry, change = m.entry, difference(m.copies, student.copies)
            if entry["role"] == "student" and entry["nfe"] == nfe and m.recipe != student.recipe:
                limit = (self.distillation.get(entry["name"]) or {}).get("limit", {}).get(str(nfe), {}).get("strict")
                limit = limit if m.makes_images else "not distilled"  # a failed control shows nothing
                found.append(Control(entry["name"], change, limit, trained=True))
            elif entry["role"] == "teacher" and entry["method"] == "euler" and entry["nfe"] == nfe and m.makes_images:
                found.append(Control(f"the teacher at {nfe} NFE", change))
        stopped = self._stopped(student)
        if stopped is not None:
            name = f"the {stopped.entry['name']}, of equal quality"
            found.append(Control(name, difference(stopped.copies, student.copies)))
        return found

    def _stopped(self, student: Audited) -> Audited | None:
        """Of the teachers stopped early the one whose Frechet distance to H is nearest to the student's."""
        key = next(iter(self.frechet), None)
        own = student.entry["quality"].get(key)
        rungs = [m for m in self.models if m.entry["role"] == "teacher_ladder"]
        known = [m for m in rungs if m.entry["quality"].get(key) is not None]
        if own is None or not known:
            return None
        return min(known, key=lambda m: abs(m.entry["quality"][key] - own))

    def _as_real(self, student: Record, teacher: Record) -> bool | None:
        """Whether no extractor's Frechet distance to H is above the teacher's; None without H or quality."""
        pairs = [(student.get(f"{k}_low"), teacher.get(f"{k}_high")) for k in self.frechet]
        known = [s <= t for s, t in pairs if s is not None and t is not None]
        return all(known) if known else None
