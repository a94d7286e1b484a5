"""The numbers of an audit as labelled, formatted cells: terminal, page and model card show the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOTHING = "-"
UNBOUNDED = ("inf", "-inf")  # as an audit's JSON has them
CONTROLS = ("held-out images (control)", "copies of T (ceiling)")
# Keys of a model's numbers that need its teacher, with their labels.
PAIR = {"variance_ratio": "variance ratio", "rmse_to_teacher": "rmse to teacher", "same_basin": "same basin"}


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, as text."""

    text: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".rstrip()


Cell = str | Estimate


def number(value: object, digits: int = 3) -> str:
    """Fixed digits, or a power of ten where those would not do; ``-inf`` and ``inf`` where a metric is unbounded;
    :data:`NOTHING` for what is no number."""
    if value in UNBOUNDED:
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return NOTHING
    if value and not 10.0**-digits <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def bounded(record: Mapping[str, Any], key: str, digits: int = 3) -> str:
    """:func:`number`; ``>= 1.027`` or ``<= 0.310`` where a metric is unbounded and one end of its interval is not."""
    for unbounded, end, sign in (("inf", "low", ">="), ("-inf", "high", "<=")):
        bound = number(record.get(f"{key}_{end}"), digits)
        if record.get(key) == unbounded and bound not in (NOTHING, *UNBOUNDED):
            return f"{sign} {bound}"
    return number(record.get(key), digits)


def discoveries(conformal: Mapping[str, Any] | None) -> str:
    """``0 (10.0 %)``: samples nearer to T than held-out images are, and the least share of them that could be seen."""
    if not conformal:
        return NOTHING
    count, least = number(conformal.get("discoveries"), 0), conformal.get("smallest_visible")
    if "smallest_visible" not in conformal:  # a record of before
        return count
    return f"{count} ({'never' if least is None else f'{100 * least:.1f} %'})"


def percent(fraction: Mapping[str, Any] | None) -> Cell:
    """``93.1 % [91.9, 94.1]``."""
    return _estimate(fraction, unit=" %")


def points(difference: Mapping[str, Any] | None) -> Cell:
    """``-64.2 [-66.3, -62.1]``, in percentage points."""
    return _estimate(difference, sign="+")


def _estimate(share: Mapping[str, Any] | None, sign: str = "", unit: str = "") -> Cell:
    if not share:
        return NOTHING
    value, low, high = (f"{100 * x:{sign}.1f}" for x in (share["value"], *share["ci95"]))
    return Estimate(f"{value}{unit}", f"[{low}, {high}]")


def p_value(p: object) -> str:
    """``2.0e-16``; never a bare 0."""
    if not isinstance(p, int | float):
        return NOTHING
    return "< 1e-300" if p < 1e-300 else f"{p:.1e}" if p < 1e-3 else f"{p:.3f}"


def model_label(m: Mapping[str, Any]) -> str:
    """``teacher, 35 NFE``; Euler teachers are named."""
    method = " (Euler)" if m["method"] == "euler" else ""
    return f"{m['name']}{method}" + (f", {m['nfe']} NFE" if m["nfe"] else "")


def features(summary: Mapping[str, Any]) -> str:
    """The features whose numbers are shown: the first extractor's."""
    return summary["settings"].get("features", "pixels")


def distance_keys(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Keys of the Frechet and the kernel distance to show."""
    name = features(summary)
    return ("fid", "kid") if name == "inception" else (f"fd_{name}", f"kid_{name}")


def model_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """Heads, and a row for each model and then for each of :data:`CONTROLS`; both without the column of names."""
    fd, kid = distance_keys(summary)
    control = summary.get("control") or {}
    head = ["f_mem [95 %]", "unique images", f"{fd} to H", f"{fd} to T", f"{kid} to H", *PAIR.values()]

    def measured(m: Mapping[str, Any]) -> list[Cell]:
        q = m.get("quality") or {}
        distances = [number(q.get(fd)), number(q.get(f"{fd}_train")), number(q.get(kid), 4)]
        return [percent(m["f_mem"]), str(m["unique"]), *distances]

    rows = [[*measured(m), *(number(m.get(key)) for key in PAIR)] for m in summary["models"]]
    floor = (control.get("quality") or {}).get(f"{fd}_floor")
    rows.append([percent(control.get("heldout_f_mem")), "", number(floor), "", "", *[""] * len(PAIR)])
    rows.append([*measured({"f_mem": None, **(control.get("copycat") or {}), "unique": ""}), *[""] * len(PAIR)])
    return head, rows


SECOND_OPINIONS = (  # label, metric, its key, key of its value for held-out images, digits
    ("adaptive extraction", "adaptive_extraction", "extracted", None, 3),
    ("tolerant copies", "tolerant_copies", "copied", "heldout_rate", 3),
    ("HOG copies", "copy_detection_hog", "copied", "heldout_rate", 3),
    ("EfficientNet copies", "copy_detection_efficientnet", "copied", "heldout_rate", 3),
    ("Inception copies", "copy_detection_inception", "copied", "heldout_rate", 3),
    ("authentic", "authenticity_{f}", "authenticity", "authenticity_heldout", 3),
    ("C_T", "copy_test_{f}", "c_t", "c_t_heldout", 3),
    ("FLD gap", "likelihood_{f}", "fld_gap", "fld_gap_heldout", 3),
    ("nearer to T than to H", "train_preference_{f}", "train_preference", "train_preference_heldout", 3),
    ("1-NN accuracy", "two_sample_{f}", "two_sample", "two_sample_heldout", 3),
    ("precision", "manifold_{f}", "precision", None, 3),
    ("recall", "manifold_{f}", "recall", None, 3),
    ("coverage", "manifold_{f}", "coverage", None, 3),
    ("Chao1, at least", "coverage", "chao1_low", None, 0),
    ("duplication slope", "coverage", "duplication_slope", None, 3),
)


def second_opinions(summary: Mapping[str, Any]) -> list[list[str]]:
    """A row for each metric that was measured: its label, every model, the copies of T, the held-out baseline."""
    copycat = (summary.get("control") or {}).get("copycat") or {}
    metrics = [m.get("metrics") or {} for m in (*summary["models"], copycat)]
    rows = []
    for label, metric, key, baseline, digits in SECOND_OPINIONS:
        records = [m.get(metric.format(f=features(summary))) or {} for m in metrics]
        cells = [bounded(r, key, digits) for r in records]
        baselines = [number(r.get(baseline)) for r in records if baseline]
        if any(cell != NOTHING for cell in cells):
            rows.append([label, *cells, next((b for b in baselines if b != NOTHING), NOTHING)])
    found = [discoveries(m.get("conformal")) for m in summary["models"]]
    if any(cell != NOTHING for cell in found):
        rows.append(["beyond H (seen from)", *found, NOTHING, NOTHING])
    return rows
