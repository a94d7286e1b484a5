"""The table and the sentences that end a study or an audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cdmem.audit.result import AuditResult
from cdmem.metrics.comparison.paired import TRANSFER
from cdmem.metrics.comparison.verdict import points
from cdmem.report.rows import CONTROLS, NOTHING, Cell, Estimate, model_table, p_value, second_opinions


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as aligned lines, a rule under the first."""
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _names(result: AuditResult, *others: str) -> list[list[str]]:
    """``teacher (heun)`` and its NFE for every model, then the others."""
    methods = ["" if m["method"] in ("consistency", "given") else f" ({m['method']})" for m in result.models]
    names = [[m["name"] + method, str(m["nfe"] or NOTHING)] for m, method in zip(result.models, methods)]
    return names + [[other, ""] for other in others]


def _plain(cell: Cell) -> str:
    """Per cent stand below each other."""
    return f"{cell.text:>7} {cell.interval}" if isinstance(cell, Estimate) else cell


def table(result: AuditResult) -> list[str]:
    """One row a model, then the controls."""
    head, rows = model_table(vars(result))
    lines = [[*name, *map(_plain, row)] for name, row in zip(_names(result, *CONTROLS), rows)]
    # What was not measured needs no room.
    kept = [k for k in range(2 + len(head)) if k < 3 or any(line[k] not in ("", NOTHING) for line in lines)]
    return _columns([[line[k] for k in kept] for line in [["model", "NFE", *head], *lines]])


def transfer(result: AuditResult) -> list[str]:
    """The fate of every seed from teacher to student; empty without pairs."""
    head = [*(fate.replace("_", " ") for fate in TRANSFER), "lost, but nearest to the same (chance)"]
    rows = [["student", "NFE", *head, "difference [95 %]", "Holm p"]]
    for m in (m for m in result.models if m.get("paired")):
        counts, difference = m["paired"]["transfer"], m["paired"]["difference"]
        cells = [*(str(counts[fate]) for fate in TRANSFER), _still_near(m["paired"].get("lost_seeds"))]
        cells += [points(difference), p_value(difference["p_holm"])]
        rows.append([m["name"], str(m["nfe"]), *cells])
    return _columns(rows) if rows[1:] else []


def _still_near(lost: Mapping[str, Any] | None) -> str:
    """``72.9 % (6.7 %)``: of the seeds that the teacher alone copies those that are nearest to the very same image."""
    if not lost or not lost["nearest_to_same"]:
        return NOTHING
    return f"{100 * lost['nearest_to_same']['value']:.1f} % ({100 * lost['chance']:.1f} %)"


def opinions(result: AuditResult) -> list[str]:
    """Other metrics of every model, one line each, each beside its own baseline; empty where none was measured."""
    rows = second_opinions(vars(result))
    names = [["model", "NFE"], *_names(result, "copies of T", "held-out images")]
    return _columns([[*name, *cells] for name, cells in zip(names, zip(*rows))]) if rows else []


def sentences(result: AuditResult) -> list[str]:
    """What may be said of each student, and what may not: the verdicts, and the comparison at equal NFE."""
    said = []
    for m in (m for m in result.models if m.get("verdict")):
        said += [m["verdict"]["statement"], m["verdict"].get("equal_nfe")]
    return [sentence for sentence in said if sentence]


def print_summary(result: AuditResult) -> None:
    """Print the tables, the sentences and the notes."""
    t, about = result.training_set, result.models[0]
    source = " ".join(str(t["source"]).split())  # a file name may hold line breaks
    print(
        f"\nT: {t['n']} unique images of {source} ({t['rows']} rows, {t['hash'][:12]}), H: {t['held_out']}; "
        f"{about['samples']} samples a model, seeds {about['seeds'][0]} to {about['seeds'][1]}\n"
    )
    blocks = [table(result), transfer(result), opinions(result), sentences(result)]
    blocks.append([f"note: {note}" for note in result.notes])
    print("\n\n".join("\n".join(block) for block in blocks if block))
