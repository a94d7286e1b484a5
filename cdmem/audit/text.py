"""The table and the sentences that end a study or an audit."""

from __future__ import annotations

from typing import Any

from cdmem.audit.result import AuditResult
from cdmem.metrics.comparison.verdict import points

MAX_REACH = 3.0  # an extrapolation over more than this many times the range seen is not printed


def percent(f_mem: dict[str, Any] | None) -> str:
    """``93.1 % [91.9, 94.1]``."""
    if f_mem is None:
        return "-"
    low, high = (100 * x for x in f_mem["ci95"])
    return f"{100 * f_mem['value']:5.1f} % [{low:.1f}, {high:.1f}]"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; ``-`` where there is nothing to show."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.1e}"


def _columns(rows: list[list[str]]) -> list[str]:
    """Rows of equal length as aligned lines, a rule under the first."""
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def model_name(m: dict[str, Any]) -> str:
    """``teacher (heun)``, ``student``."""
    return m["name"] if m["method"] in ("consistency", "given") else f"{m['name']} ({m['method']})"


def quality_keys(result: AuditResult) -> tuple[str, str]:
    """Keys of the Frechet and the kernel distance to show: the first extractor's."""
    name = result.settings["features"]
    return ("fid", "kid") if name == "inception" else (f"fd_{name}", f"kid_{name}")


def table(result: AuditResult) -> list[str]:
    """One row a model, then the controls."""
    fd, kid = quality_keys(result)
    paired = any(m.get("rmse_to_teacher") is not None for m in result.models)
    head = ["model", "NFE", "f_mem [95 %]", f"{fd} to H", f"{fd} to T", kid, "unique"]
    head += ["variance ratio", "rmse to teacher", "same basin"] if paired else []
    rows = []
    for m in result.models:
        q = m["quality"]
        row = [model_name(m), str(m["nfe"]) if m["nfe"] else "-", percent(m["f_mem"])]
        row += [number(q.get(fd)), number(q.get(f"{fd}_train")), number(q.get(kid), 4), str(m["unique"])]
        if paired:
            row += [number(m["variance_ratio"]), number(m["rmse_to_teacher"]), number(m["same_basin"])]
        rows.append(row)
    held, copycat = result.control["heldout_f_mem"], result.control["copycat"]
    q, blank = copycat["quality"], [""] * (len(head) - 7)
    rows.append(["held-out images", "", percent(held), "", "", "", "", *blank])
    shown = [number(q.get(fd)), number(q.get(f"{fd}_train")), number(q.get(kid), 4)]
    rows.append(["copies of T", "", percent(copycat["f_mem"]), *shown, "", *blank])
    return _columns(_without_empty([head, *rows]))


def _without_empty(rows: list[list[str]]) -> list[list[str]]:
    """Without the columns that show nothing for any model: what was not measured needs no room."""
    kept = [k for k in range(len(rows[0])) if k < 3 or any(r[k] not in ("", "-") for r in rows[1:])]
    return [[r[k] for k in kept] for r in rows]


TRANSFER_HEAD = [
    "student",
    "NFE",
    "kept same",
    "kept other",
    "lost",
    "gained",
    "neither",
    "difference [95 %]",
    "Holm p",
]


def transfer(result: AuditResult) -> list[str]:
    """The fate of every seed from teacher to student; empty without pairs."""
    rows = []
    for m in result.models:
        if m.get("paired"):
            t, d = m["paired"]["transfer"], m["paired"]["difference"]
            counts = [str(t[k]) for k in ("kept_same", "kept_other", "lost", "gained", "neither")]
            rows.append([m["name"], str(m["nfe"]), *counts, points(d), f"{d['p_holm']:.2g}"])
    return _columns([TRANSFER_HEAD, *rows]) if rows else []


def _more(result: AuditResult) -> list[str]:
    """Second opinions of each model, one line each: extraction, HOG, authenticity, C_T, FLD gap, train preference."""
    name = result.settings["features"]
    wanted = [
        ("adaptive extraction", "adaptive_extraction", "extracted"),
        ("HOG copies", "copy_detection_hog", "copied"),
        ("authentic", f"authenticity_{name}", "authenticity"),
        ("C_T", f"copy_test_{name}", "c_t"),
        ("FLD gap", f"likelihood_{name}", "fld_gap"),
        ("nearer T than H", f"train_preference_{name}", "train_preference"),
        ("1-NN accuracy", f"two_sample_{name}", "two_sample"),
        ("precision", f"manifold_{name}", "precision"),
        ("coverage", f"manifold_{name}", "coverage"),
        ("Chao1", "coverage", "chao1"),
        ("dup. slope", "coverage", "duplication_slope"),
    ]
    models = [(model_name(m), str(m["nfe"]) if m["nfe"] else "-", m.get("metrics") or {}) for m in result.models]
    models.append(("copies of T", "", result.control["copycat"].get("metrics") or {}))
    have = [w for w in wanted if any(isinstance(m.get(w[1], {}).get(w[2]), float) for _, _, m in models)]
    if not have:
        return []
    rows = [["model", "NFE", *(title for title, _, _ in have)]]
    for who, nfe, m in models:
        cells = [number(m.get(metric, {}).get(key), 0 if key == "chao1" else 3) for _, metric, key in have]
        rows.append([who, nfe, *cells])
    return _columns(rows)


def sentences(result: AuditResult) -> list[str]:
    """What may be said of each student, and what may not: the verdicts, and the comparison at equal NFE."""
    said = []
    for m in result.models:
        verdict = m.get("verdict")
        if verdict:
            said.append(verdict["statement"])
            record = result.distillation.get(m["name"], {}).get("extrapolation") or {}
            found = record.get(str(m["nfe"]))
            if found:
                said.append(f"{m['name']}, {m['nfe']} NFE: {extrapolated(found)}")
            if verdict.get("equal_nfe"):
                said.append(verdict["equal_nfe"])
    return said


def extrapolated(found: dict[str, Any]) -> str:
    """The straight line of f_mem against rmse at rmse 0, or that it is too far away."""
    low, high = found["rmse"]
    span = f"rmse {low:.3f} to {high:.3f} were seen"
    if found["reach"] > MAX_REACH:
        return f"no extrapolation of f_mem to rmse 0, which is {found['reach']:.0f} times the seen range away ({span})."
    interval = "{:.0f} % [{:.0f}, {:.0f}]".format(*(100 * x for x in (found["f_mem"], *found["ci95"])))
    return f"extrapolated to rmse 0 in a straight line, f_mem {interval} ({span})."


def print_summary(result: AuditResult) -> None:
    """Print the tables, the sentences and the notes."""
    t, models = result.training_set, result.models[0]
    source = " ".join(str(t["source"]).split())  # a file name may hold line breaks
    print(
        f"\nT: {t['n']} unique images of {source} ({t['rows']} rows, {t['hash'][:12]}), H: {t['held_out']}; "
        f"{models['samples']} samples a model, seeds {models['seeds'][0]} to {models['seeds'][1]}\n"
    )
    blocks = [table(result), transfer(result), _more(result), sentences(result)]
    blocks.append([f"note: {note}" for note in result.notes])
    print("\n\n".join("\n".join(block) for block in blocks if block))
