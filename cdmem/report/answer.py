"""Sections in words and tables: the verdict, the models, what could confound the answer, how it was made."""

from __future__ import annotations

import json
from typing import Any

import yaml

from cdmem.report.html import esc, number, p_value, percent, spread, table
from cdmem.report.run_data import RunData

CHECKS = {
    "amplitude": "variance ratio within 0.9–1.1",
    "rmse_not_rising": "rmse to the teacher not rising",
    "teacher_above_control": "teacher memorises more than held-out images do",
    "converged": "f_mem and rmse had stopped moving",
    "significant": "difference significant (Holm)",
    "below": "below the teacher on the same seeds",
    "below_if_it_went_on": "still below after as much distillation again",
    "below_at_recognition": "below at the threshold at which copies are recognised",
    "below_at_equal_noise": "below the teacher at equal nearest-image noise",
}


def model_label(m: dict[str, Any]) -> str:
    """``teacher, 35 NFE``; Euler teachers are named."""
    method = " (Euler)" if m["method"] == "euler" else ""
    return f"{m['name']}{method}" + (f", {m['nfe']} NFE" if m["nfe"] else "")


def verdicts(run: RunData) -> str:
    """One box a student and NFE: the claim, and the comparison at equal NFE."""
    boxes = []
    for m in run.students:
        v = m.get("verdict") or {}
        claim = str(v.get("claim", "unknown"))
        statement = str(v.get("statement", "")).split(": ", 1)[-1].removeprefix(f"{claim}: ")
        lines = [f'<p><span class="claim">{esc(model_label(m))}: {esc(claim.replace("_", " "))}.</span> ']
        lines.append(f"{esc(statement[:1].upper() + statement[1:])}</p>")
        if v.get("equal_nfe"):
            text = str(v["equal_nfe"]).split(": ", 1)[-1]
            lines.append(f'<p class="soft">Against the teacher at equal NFE: {esc(text)}</p>')
        boxes.append(f'<div class="verdict {esc(claim)}">{"".join(lines)}</div>')
    return "".join(boxes)


def headline(run: RunData) -> str:
    """The answer in one sentence."""
    claims = {(m.get("verdict") or {}).get("claim") for m in run.students}
    if not claims or claims == {None}:
        return "No student was audited beside its teacher."
    if claims == {"reduced"}:
        return "The student sheds memorised training images that its teacher reproduces."
    if claims == {"unchanged"}:
        return "The student reproduces training images as often as its teacher."
    if claims == {"amplified"}:
        return "The student reproduces more training images than its teacher."
    if claims == {"not_distilled"}:
        return "The student was not distilled: nothing can be said about memorisation."
    if claims == {"nothing_to_transfer"}:
        return "The teacher memorises no more than the control: there is nothing to transfer."
    return "No claim can be made yet for every student; the reasons are below."


def models_table(run: RunData) -> str:
    """Teacher, student per NFE and controls."""
    summary = run.summary
    name = summary.get("settings", {}).get("features", "pixels")
    fd, kid = ("fid", "kid") if name == "inception" else (f"fd_{name}", f"kid_{name}")
    head = ["model", "f_mem [95 %]", "unique images", f"{fd} to H", f"{fd} to T", f"{kid} to H", "variance ratio"]
    head += ["rmse to teacher", "same basin"]
    rows = []
    for m in run.models:
        q = m.get("quality") or {}
        rows.append(
            [
                esc(model_label(m)),
                percent(m["f_mem"]),
                esc(m["unique"]),
                number(q.get(fd)),
                number(q.get(f"{fd}_train")),
                number(q.get(kid), 4),
                number(m.get("variance_ratio")),
                number(m.get("rmse_to_teacher")),
                number(m.get("same_basin")),
            ]
        )
    control = summary.get("control") or {}
    floor = (control.get("quality") or {}).get(f"{fd}_floor")
    rows.append(["held-out images (control)", percent(control.get("heldout_f_mem")), "", number(floor), *[""] * 5])
    copycat = control.get("copycat") or {}
    q = copycat.get("quality") or {}
    shown = [number(q.get(fd)), number(q.get(f"{fd}_train")), number(q.get(kid), 4)]
    rows.append(["copies of T (ceiling)", percent(copycat.get("f_mem")), "", *shown, *[""] * 3])
    about = run.models[0]
    text = (
        f"{about['samples']} samples a model, seeds {about['seeds'][0]} to {about['seeds'][1]}, "
        f"weights {about['weights']}. Memorised: d1/d2 below {summary['settings']['threshold']:.3f} over groups of T. "
        f"{fd} of the held-out row is the floor: two halves of H."
    )
    return table(head, rows, caption=text)


def confounds(run: RunData) -> str:
    """Every check of the verdict, and the numbers behind it."""
    head = ["check", *(model_label(m) for m in run.students)]
    marks = {True: '<span class="yes">yes</span>', False: '<span class="no">no</span>', None: "–"}
    rows = []
    for key, text in CHECKS.items():
        values = [(m.get("verdict") or {}).get("checks", {}).get(key) for m in run.students]
        rows.append([esc(text), *(marks.get(v, "–") for v in values)])

    def paired(m: dict[str, Any], *path: str) -> Any:
        value: Any = m.get("paired") or {}
        for key in path:
            value = (value or {}).get(key) if isinstance(value, dict) else None
        return value

    numbers = {
        "f_mem against the teacher (points)": lambda m: spread(paired(m, "difference")),
        "Holm p": lambda m: p_value(paired(m, "difference", "p_holm")),
        "against the teacher at equal NFE": lambda m: spread(paired(m, "equal_nfe", "difference")),
        "at recognition (points)": lambda m: spread(paired(m, "matched", "recognised")),
        "copies recognised below d1/d2 =": lambda m: number(paired(m, "matched", "recognised_at")),
        "noise given to the teacher (grey levels)": lambda m: number(paired(m, "matched", "noise"), 1),
        "f_mem of the noisy teacher": lambda m: number(paired(m, "matched", "teacher_f_mem")),
        "against the noisy teacher (points)": lambda m: spread(paired(m, "matched", "difference")),
        "same image where both memorise": lambda m: number(paired(m, "identity", "same")),
        "the same by chance": lambda m: number(paired(m, "identity", "chance")),
        "median log d1/d2, student minus teacher": lambda m: number(paired(m, "log_ratio", "median")),
        "weights": lambda m: esc(m["weights"]),
        "distillation saw": lambda m: esc(_setting(run, m["name"], "data", "same")),
        "preset": lambda m: esc(_setting(run, m["name"], "preset", "–")),
        "learning rate": lambda m: esc(_setting(run, m["name"], "lr_schedule", "–")),
    }
    rows += [[esc(text), *(show(m) for m in run.students)] for text, show in numbers.items()]
    return table(head, rows, sortable=False)


def _setting(run: RunData, stage: str, key: str, default: str) -> str:
    for s in run.stages:
        if s.name == stage:
            return str(s.config.get("model", {}).get("init_args", {}).get(key) or default)
    return default


SECOND = [
    ("adaptive extraction", "adaptive_extraction", "extracted", None),
    ("HOG copies", "copy_detection_hog", "copied", "heldout_rate"),
    ("authentic", "authenticity_{f}", "authenticity", "authenticity_heldout"),
    ("C_T", "copy_test_{f}", "c_t", "c_t_heldout"),
    ("FLD gap", "likelihood_{f}", "fld_gap", "fld_gap_heldout"),
    ("nearer to T than to H", "train_preference_{f}", "train_preference", "train_preference_heldout"),
    ("1-NN accuracy", "two_sample_{f}", "two_sample", "two_sample_heldout"),
    ("precision", "manifold_{f}", "precision", None),
    ("recall", "manifold_{f}", "recall", None),
    ("coverage", "manifold_{f}", "coverage", None),
    ("Chao1", "coverage", "chao1", None),
    ("duplication slope", "coverage", "duplication_slope", None),
]


def second_opinions(run: RunData) -> str:
    """Other metrics of every model, each beside its own baseline from H."""
    features = run.summary.get("settings", {}).get("features", "pixels")
    copycat = (run.summary.get("control") or {}).get("copycat") or {}
    columns = [(model_label(m), m.get("metrics") or {}) for m in run.models]
    columns.append(("copies of T", copycat.get("metrics") or {}))
    rows = []
    for title, metric, key, baseline in SECOND:
        values = [m.get(metric.format(f=features)) or {} for _, m in columns]
        if any(isinstance(v.get(key), int | float) for v in values):
            base = next((v[baseline] for v in values if baseline and isinstance(v.get(baseline), int | float)), None)
            rows.append([esc(title), *(number(v.get(key)) for v in values), number(base)])
    head = ["metric", *(label for label, _ in columns), "held-out baseline"]
    return table(head, rows, caption="What each metric means and where it fails: docs/metrics.md.") if rows else ""


def made(run: RunData) -> str:
    """Config, training set, versions, git state, commands, notes."""
    t, env = run.summary.get("training_set") or {}, run.environment
    git = env.get("git") or {}
    facts = [
        ("training set", f"{t.get('n')} images of {t.get('source')} in {t.get('rows')} rows, {t.get('groups')} groups"),
        ("training set hash", t.get("hash")),
        ("held-out images", t.get("held_out")),
        ("samples", f"{run.models[0]['samples']} a model, seeds {run.models[0]['seeds']}"),
        (
            "extractors",
            ", ".join(f"{k} ({str(v)[:16]})" for k, v in (run.summary["settings"].get("extractors") or {}).items()),
        ),
        ("git", f"{str(git.get('commit'))[:12]}{' with local changes' if git.get('dirty') else ''}"),
        ("python", f"{env.get('python')} on {env.get('platform')}, {env.get('threads')} threads"),
        ("packages", ", ".join(f"{k} {v}" for k, v in (env.get("packages") or {}).items())),
    ]
    facts += [
        (f"trained: {s.name}", f"{s.finished.get('step')} steps in {s.finished.get('seconds')} s")
        for s in run.stages
        if s.finished
    ]
    rows = [[esc(k), esc(v)] for k, v in facts]
    parts = [table(["what", "value"], rows, sortable=False)]
    command = " ".join(str(a) for a in env.get("command") or [])
    if command:
        parts.append(f"<h3>Command</h3><pre>{esc(command)}</pre>")
    notes = [*run.summary.get("notes", []), *run.notes]
    if notes:
        parts.append("<h3>Notes</h3><ul>" + "".join(f"<li>{esc(n)}</li>" for n in notes) + "</ul>")
    for name, config in [("study", run.config), *((s.name, s.config) for s in run.stages)]:
        text = yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False)
        parts.append(f"<details><summary>Settings: {esc(name)}</summary><pre>{esc(text)}</pre></details>")
    return "".join(parts)
