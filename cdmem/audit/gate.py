"""The release gate: whether any copy detector leaves room for more copies than a limit.

Each detector gives a share of copies with its 95 % interval, and the *upper* end counts. A detector that is calibrated
on held-out images fires on some clean ones by construction, so what counts is its excess over H: the difference of both
rates with Newcombe's interval, which holds the uncertainty of H too. All detectors must hold, so looking at more of
them makes a false pass no likelier.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdmem.errors import InputError
from cdmem.metrics.neighbors.tolerant import LEAST_HELD_OUT
from cdmem.metrics.statistics import Estimate, fraction, newcombe_difference

REFERENCES = ("teacher", "teacher_ladder", "ceiling")  # roles of models that others are compared with
CALIBRATION = 99  # held-out images that a false-positive rate of 1 % needs


@dataclass(frozen=True)
class Detector:
    """One way to find copies that an audit has measured.

    Attributes:
        name: for ``--gate``.
        label: as the tables have it.
        metric: its record among a model's ``metrics``; None is f_mem itself.
        share: the record's key of the share of samples found.
        clean: the record's key of the share of held-out images found, by which the detector was calibrated; None for
            a detector without calibration.
        least: held-out images that the calibration needs.
    """

    name: str
    label: str
    metric: str | None
    share: str = "copied"
    clean: str | None = "heldout_rate"
    least: int = 1

    def copies(self, entry: Mapping[str, Any], held_out: int) -> Estimate | None:
        """Share of copies among a model's samples, beyond what is found among clean images; None if not measured."""
        record = {self.share: entry["f_mem"]["value"]} if self.metric is None else entry["metrics"].get(self.metric, {})
        if self.share not in record:
            return None
        samples = entry["samples"]
        found = round(record[self.share] * samples)
        if self.clean is None:
            return fraction(found, samples)
        return newcombe_difference(found, samples, round(record[self.clean] * held_out), held_out)


DETECTORS = (
    Detector("f_mem", "f_mem", None, "f_mem", clean=None),
    Detector("tolerant", "tolerant copies", "tolerant_copies", least=LEAST_HELD_OUT),
    Detector("hog", "HOG copies", "copy_detection_hog"),
    Detector("efficientnet", "EfficientNet copies", "copy_detection_efficientnet"),
    Detector("inception", "Inception copies", "copy_detection_inception"),
)
NAMES = ", ".join(d.name for d in DETECTORS)


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no detector.

    Raises:
        InputError: naming it.
    """
    for name in names or [""]:
        if name not in [d.name for d in DETECTORS]:
            raise InputError("gate", name, "is no copy detector", f"use {NAMES}")


def detectors(names: Sequence[str] | None, measured: Collection[str], held_out: int) -> list[Detector]:
    """The detectors that a gate looks at, before anything is sampled.

    Args:
        names: the ones asked for; None takes all that are measured.
        measured: names of the audit's metrics.
        held_out: number of held-out images, which calibrated detectors need.

    Raises:
        InputError: one that was asked for and cannot be had.
    """
    kept = []
    for d in DETECTORS:
        missing = None
        if d.metric is not None and d.metric not in measured:
            missing = "is not measured", "add its group to --metrics, its extractor to --features"
        elif d.clean is not None and held_out < d.least:
            problem = f"is calibrated on held-out images, and there are {held_out or 'none'}"
            missing = problem, "give --held_out" if d.least == 1 else f"give --held_out with {d.least} or more"
        if names is not None and d.name in names and missing:
            raise InputError("gate", d.name, *missing)
        if missing is None and (names is None or d.name in names):
            kept.append(d)
    return kept


@dataclass(frozen=True)
class Bound:
    """What one detector says of one model.

    Attributes:
        model: name and NFE.
        detector: which one.
        copies: share of copies with its interval.
    """

    model: str
    detector: Detector
    copies: Estimate

    def exceeds(self, limit: float) -> bool:
        """Whether the samples leave room for more copies than the limit: the upper bound decides."""
        return self.copies.high > limit

    def words(self, limit: float) -> str:
        """``images 0 NFE: f_mem 100 % [94.3, 100] exceeds 1 %``; "may exceed" where the limit lies in the interval."""
        value, low, high = (f"{round(100 * x, 1) + 0.0:g}" for x in self.copies)
        label = self.detector.label + (" (less H's rate)" if self.detector.clean else "")
        verb = "exceeds" if self.copies.low > limit else "may exceed" if self.exceeds(limit) else "is below"
        return f"{self.model}: {label} {value} % [{low}, {high}] {verb} {100 * limit:g} %"


@dataclass(frozen=True)
class Gate:
    """The outcome.

    Attributes:
        limit: largest share of copies that passes.
        looked: detectors that gate.
        bounds: of every model that is judged, by every detector.
        missing: by model why a detector gave no number; such a model does not pass.
        held_out: number of held-out images.
    """

    limit: float
    looked: Sequence[Detector]
    bounds: Sequence[Bound]
    missing: Mapping[str, str]
    held_out: int

    @property
    def exceeded(self) -> list[Bound]:
        """Bounds above the limit."""
        return [b for b in self.bounds if b.exceeds(self.limit)]

    @property
    def failed(self) -> list[str]:
        """Names of the models that did not pass."""
        return list(dict.fromkeys([*(b.model for b in self.exceeded), *self.missing]))

    def lines(self) -> list[str]:
        """For people: the outcome, what decided it, and what looked."""
        limit = f"{100 * self.limit:g} %"
        if self.failed:
            said = [f"gate: FAILED at {limit}", *(f"  {b.words(self.limit)}" for b in self.exceeded)]
            said += [f"  {model}: {reason}" for model, reason in self.missing.items()]
        else:
            largest = max(self.bounds, key=lambda b: b.copies.high)
            said = [f"gate: passed, all below {limit}; the largest upper bound", f"  {largest.words(self.limit)}"]
        if self.held_out < CALIBRATION and any(b.detector.clean for b in self.exceeded):
            said.append(
                f"  {self.held_out} held-out images are few: below {CALIBRATION} more than 1 % of clean images fire"
            )
        said.append(f"  looked at: {', '.join(d.label for d in self.looked)}")
        if [d.metric for d in self.looked] == [None]:
            why = "no other detector was asked for or measured" if self.held_out else "without held-out images"
            said.append(f"  only f_mem gates ({why}): altered copies (brighter, mirrored) pass unseen")
        return said

    def record(self) -> dict[str, Any]:
        """JSON types, see docs/run_folder.md."""
        return {
            "fail_above": self.limit,
            "failed": self.failed,
            "detectors": [d.name for d in self.looked],
            "bounds": [
                {
                    "model": b.model,
                    "detector": b.detector.name,
                    **b.copies.record(),
                    "beyond_clean": b.detector.clean is not None,
                    "bound": b.copies.high,
                    "limit": self.limit,
                    "passed": not b.exceeds(self.limit),
                }
                for b in self.bounds
            ],
            "missing": dict(self.missing),
        }


def judge_gate(models: Sequence[Mapping[str, Any]], held_out: int, looked: Sequence[Detector], limit: float) -> Gate:
    """Judge an audit's models; beside a student its teacher, early or late, and its ceiling do not count."""
    bounds, missing = [], {}
    for m in [m for m in models if m["role"] not in REFERENCES] or models:
        name = f"{m['name']} {m['nfe']} NFE"
        for d in looked:
            copies = d.copies(m, held_out)
            if copies is None:
                reason = m["metrics"].get(d.metric, {}).get("unavailable", "not measured")
                missing[name] = f"no {d.label} ({reason})"
            else:
                bounds.append(Bound(name, d, copies))
    return Gate(limit, looked, bounds, missing, held_out)
