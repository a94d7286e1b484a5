"""Words, tables and figures of bridge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cdmem.report.charts.curves import Series, curves
from cdmem.theory.frame import Figure, Section, Table

KINDS = ("teacher", "student", "control", "student2", "student3", "student4", "copycat")
Found = dict[str, Any]
Spectrum = tuple[float, list[float], int, list[float]]  # sigma, eigenvalues, stable ones, gains


def span(entry: Found | None, percent: bool = False) -> str:
    """Mean and interval."""
    if entry is None:
        return "-"
    form = (lambda v: f"{v:.1%}") if percent else (lambda v: f"{v:.3f}")
    return f"{form(entry['mean'])} [{form(entry['low'])}, {form(entry['high'])}]"


def lead(found: Found) -> list[str]:
    """The main numbers, made from the results."""
    ends = found["endpoints"]
    lines = [
        f"Suppression of unstable directions: {found['verdict']}. "
        + "; ".join(f"sigma {row['sigma']:g}: contrast {span(row['contrast'])}" for row in found["levels"])
        + "."
    ]
    if ends["difference"] is None:
        said = f"{ends['memorised']} of {ends['samples']} teacher samples are copies: no comparison of the two kinds"
    else:
        said = f"memorised minus other samples {span(ends['difference'])} (Cliff's delta {ends['cliffs_delta']:+.2f})"
    return [*lines, f"Share of the endpoints' change in the Jacobian's {ends['leading']} leading directions: {said}."]


def sections(found: Found, spectra: Sequence[Spectrum]) -> list[Section]:
    """The page's parts."""
    return [_gram(found, spectra), _endpoints(found)]


def _gram(found: Found, spectra: Sequence[Spectrum]) -> Section:
    rows = [
        (
            f"{row['sigma']:g}",
            f"{row['stable']:.1f}",
            span(row["gain_stable"]),
            span(row["gain_unstable"]),
            span(row["contrast"]),
            span(row["share_change"], True),
            span(row["share_teacher"], True),
            span(row["share_null"], True),
        )
        for row in found["levels"]
    ]
    head = ("sigma", "stable directions", "gain, stable", "gain, unstable", "contrast", "change, unstable share",
            "teacher's own", "null")  # fmt: skip
    lines, gains = [], []
    for kind, (sigma, eigenvalues, _, gain) in zip(KINDS, spectra):
        rank = list(range(1, len(eigenvalues) + 1))
        total = sum(eigenvalues)
        held = [sum(eigenvalues[: k + 1]) / total for k in range(len(eigenvalues))]
        lines.append(Series(f"sigma {sigma:g}", kind, rank, held))
        gains.append(Series(f"sigma {sigma:g}", kind, rank, _smoothed(gain)))
    spectrum = curves("spectrum", lines, "eigenvalue, by rank", "share of the trace held", log_x=True, percent=True,
                      alt="cumulated spectrum of the Gram matrix")  # fmt: skip
    gain = curves("gain_by_rank", gains, "direction, by rank of its eigenvalue", "gain, student on teacher", log_x=True,
                  alt="gain by direction")  # fmt: skip
    text = [
        "The teacher's endpoint map (its ODE from a noisy image down to 0) is what the student was trained to return. "
        "Both are functions on noisy training images, and the eigenvectors of the Gram matrix of the teacher's last "
        "features are directions for such functions: large eigenvalues stable, small ones unstable.",
        f"Rule: {found['rule']} Here: {found['verdict']}.",
    ]
    note = f"Mean and 95 % interval over {found['levels'][0]['draws']} independent draws; n = {found['n']}; contrast " \
           "jointly over the levels. Null: the same changes at other inputs."  # fmt: skip
    return Section("Stable and unstable directions", text, [
        Table(head, rows, note),
        Figure(gain, "First draw; running means over neighbouring ranks. 1: carried over, 0: lost."),
        Figure(spectrum, "First draw: how many directions hold the features' variance."),
    ], reconstruction=True)  # fmt: skip


def _smoothed(values: Sequence[float], width: float = 1.25) -> list[float]:
    """Means over ranks within a factor ``width``."""
    out = []
    for k in range(len(values)):
        low, high = int((k + 1) / width) - 1, int((k + 1) * width)
        part = values[max(low, 0) : max(high, k + 1)]
        out.append(sum(part) / len(part))
    return out


def _endpoints(found: Found) -> Section:
    ends = found["endpoints"]
    rows = [
        ("teacher samples that are copies", f"{ends['memorised']} of {ends['samples']}"),
        ("student samples that are copies", f"{ends['student_memorised']:.1%}"),
        ("share in the leading directions, copies", _number(ends["share_memorised"])),
        ("share in the leading directions, others", _number(ends["share_others"])),
        ("copies minus others", span(ends["difference"])),
        ("Cliff's delta", _number(ends["cliffs_delta"])),
        ("share of another seed's change (null)", _number(ends["share_null"])),
        ("own minus null", span(ends["against_null"])),
        ("antisymmetric part of the Jacobian, relative", _number(ends["skew"])),
        ("mean leading eigenvalues", ", ".join(f"{v:.2f}" for v in ends["eigenvalues"])),
    ]
    text = [
        "For each seed: the teacher's endpoint, the student's one step, and the leading eigenvectors (Lanczos), "
        f"{ends['leading']} of them, of the teacher's Jacobian at the endpoint noised to sigma {ends['sigma']:g}. In "
        "these directions the image is still undecided at that level; along the others the teacher contracts.",
    ]
    return Section(
        "Memorised samples", text, [Table(("", "value"), rows, "Intervals: Welch, 95 %.")], reconstruction=True
    )


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
