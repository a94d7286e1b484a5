"""The page of bridge: words, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cdmem.report.charts.curves import Series, curves
from cdmem.theory.experiment import KINDS, Figure, Section, Table, span

Results = dict[str, Any]
Spectrum = tuple[float, list[float], list[float]]  # sigma, eigenvalues, gains


def lead(results: Results) -> list[str]:
    """The main numbers, made from the results."""
    ends = results["endpoints"]
    lines = [
        f"Suppression of unstable directions: {results['verdict']}. "
        + "; ".join(f"sigma {row['sigma']:g}: contrast {span(row['contrast'], '.3f')}" for row in results["levels"])
        + "."
    ]
    if ends["difference"] is None:
        said = f"{ends['memorised']} of {ends['samples']} teacher samples are copies: no comparison of the two kinds"
    else:
        delta = f"Cliff's delta {ends['cliffs_delta']:+.2f}"
        said = f"memorised minus other samples {span(ends['difference'], '.3f')} ({delta})"
    return [*lines, f"Share of the endpoints' change in the Jacobian's {ends['leading']} leading directions: {said}."]


def sections(results: Results, spectra: Sequence[Spectrum]) -> list[Section]:
    """The page's parts."""
    return [_gram(results, spectra), _endpoints(results)]


def _gram(results: Results, spectra: Sequence[Spectrum]) -> Section:
    rows = []
    for row in results["levels"]:
        cells = [span(row[key], ".3f") for key in ("gain_stable", "gain_unstable", "contrast")]
        cells += [span(row[key], ".1%") for key in ("share_change", "share_teacher", "share_null")]
        rows.append((f"{row['sigma']:g}", f"{row['stable']:.1f}", *cells))
    head = ("sigma", "stable directions", "gain, stable", "gain, unstable", "contrast", "change, unstable share",
            "teacher's own", "null")  # fmt: skip
    lines, gains = [], []
    for kind, (sigma, eigenvalues, gain) in zip(KINDS, spectra):
        rank = list(range(1, len(eigenvalues) + 1))
        held = [sum(eigenvalues[:k]) / sum(eigenvalues) for k in rank]
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
        f"Rule: {results['rule']} Here: {results['verdict']}.",
    ]
    draws = results["levels"][0]["draws"]
    note = f"Mean and 95 % interval over {draws} independent draws; n = {results['n']}; contrast jointly over the " \
           "levels. Null: the same changes at other inputs."  # fmt: skip
    return Section("Stable and unstable directions", text, [
        Table(head, rows, note),
        Figure(gain, "First draw; running means over neighbouring ranks. 1: carried over, 0: lost."),
        Figure(spectrum, "First draw: how many directions hold the features' variance."),
    ], reconstruction=True)  # fmt: skip


def _smoothed(values: Sequence[float]) -> list[float]:
    """Means over ranks within a factor of 1.25."""
    ranks = range(1, len(values) + 1)
    parts = [values[max(int(k / 1.25) - 1, 0) : int(k * 1.25)] for k in ranks]
    return [sum(part) / len(part) for part in parts]


def _endpoints(results: Results) -> Section:
    ends = results["endpoints"]
    rows = [
        ("teacher samples that are copies", f"{ends['memorised']} of {ends['samples']}"),
        ("student samples that are copies", f"{ends['student_memorised']:.1%}"),
        ("share in the leading directions, copies", _number(ends["share_memorised"])),
        ("share in the leading directions, others", _number(ends["share_others"])),
        ("copies minus others", span(ends["difference"], ".3f")),
        ("Cliff's delta", _number(ends["cliffs_delta"])),
        ("share of another seed's change (null)", _number(ends["share_null"])),
        ("own minus null", span(ends["against_null"], ".3f")),
        ("antisymmetric part of the Jacobian, relative", _number(ends["skew"])),
        ("mean leading eigenvalues", ", ".join(f"{v:.2f}" for v in ends["eigenvalues"])),
    ]
    text = [
        "For each seed: the teacher's endpoint, the student's one step, and the leading eigenvectors (Lanczos), "
        f"{ends['leading']} of them, of the teacher's Jacobian at the endpoint noised to sigma {ends['sigma']:g}. In "
        "these directions the image is still undecided at that level; along the others the teacher contracts.",
    ]
    table = Table(("", "value"), rows, "Intervals: Welch, 95 %.")
    return Section("Memorised samples", text, [table], reconstruction=True)


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
