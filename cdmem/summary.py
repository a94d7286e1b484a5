"""The table and the sentences that end a study."""

from __future__ import annotations

from typing import Any

from cdmem.audit import AuditResult

AMPLITUDE = (0.9, 1.1)


def percent(f_mem: dict[str, Any] | None) -> str:
    """``93.1 % [91.9, 94.1]``."""
    if f_mem is None:
        return "-"
    low, high = (100 * x for x in f_mem["ci95"])
    return f"{100 * f_mem['value']:5.1f} % [{low:.1f}, {high:.1f}]"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; ``-`` where there is nothing to show."""
    return "-" if value is None else f"{value:.{digits}f}"


def table(result: AuditResult) -> list[str]:
    """One row a model, then the controls."""
    fd, kid = (f"{k}_{result.settings['features']}" for k in ("fd", "kid"))
    head = ["model", "NFE", "f_mem [95 %]", fd, kid, "variance ratio", "rmse to teacher", "same basin", "unique"]
    rows = []
    for m in result.models:
        name = m["name"] if m["method"] == "consistency" else f"{m['name']} ({m['method']})"
        quality = m["quality"]
        rows.append(
            [
                name,
                str(m["nfe"]),
                percent(m["f_mem"]),
                number(quality[fd]),
                number(quality[kid], 4),
                number(m["variance_ratio"]),
                number(m["rmse_to_teacher"]),
                number(m["same_basin"]),
                str(m["unique"]),
            ]
        )
    held, copycat = result.control["heldout_f_mem"], result.control["copycat"]
    rows.append(["held-out images", "", percent(held), "", "", "", "", "", ""])
    q = copycat["quality"]
    rows.append(["copies of T", "", percent(copycat["f_mem"]), number(q[fd]), number(q[kid], 4), "", "", "", ""])
    widths = [max(len(r[k]) for r in [head, *rows]) for k in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in [head, *rows]]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def sentences(result: AuditResult) -> list[str]:
    """What may be said of each student, and what may not."""
    teacher = result.models[0]
    said = []
    for m in (m for m in result.models if m["role"] == "student"):
        who = f"{m['name']}, {m['nfe']} NFE"
        ratio = m["variance_ratio"]
        if ratio is None or not AMPLITUDE[0] <= ratio <= AMPLITUDE[1]:
            said.append(
                f"{who}: not distilled (variance ratio {number(ratio)} outside 0.9-1.1): no statement on f_mem."
            )
            continue
        judged = result.distillation.get(m["name"], {}).get("f_mem_trend", {}).get(str(m["nfe"]))
        if judged is None:
            said.append(f"{who}: f_mem was not followed along distillation: no claim about a reduction is made.")
            continue
        change = f"{100 * judged['change']:+.1f} points [{100 * judged['low']:+.1f}, {100 * judged['high']:+.1f}]"
        span = f"from step {judged['from_step']} to {judged['to_step']}"
        if judged["trend"] in ("rising", "undetermined"):
            word = "was still rising" if judged["trend"] == "rising" else "may still have been moving"
            said.append(f"{who}: f_mem {word} ({change} {span}): no claim about a reduction is made.")
            continue
        gap = m["f_mem"]["ci95"][1] < teacher["f_mem"]["ci95"][0]
        word = "lies below" if gap else "does not lie below"
        annealed = result.distillation[m["name"]].get("lr_schedule") == "cosine"
        caveat = (
            " (The learning rate was annealed to 0, which stops any curve: a longer run may go on.)" if annealed else ""
        )
        said.append(
            f"{who}: f_mem had stopped rising ({change} {span}); {percent(m['f_mem']).strip()} {word} "
            f"the teacher's {percent(teacher['f_mem']).strip()}.{caveat}"
        )
    return said


def print_summary(result: AuditResult) -> None:
    """Print the table and the sentences."""
    t = result.training_set
    models = result.models[0]
    print(
        f"\nT: {t['n']} unique images of {t['source']} ({t['rows']} rows, {t['hash'][:12]}), H: {t['held_out']}; "
        f"{models['samples']} samples a model, seeds {models['seeds'][0]} to {models['seeds'][1]}\n"
    )
    for line in [*table(result), "", *sentences(result)]:
        print(line)
