"""The page of one run: the answer in words and tables, its figures and pictures, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cdmem.report import figures, pictures
from cdmem.report.page import Page, Section, Table, Text, Verdict, write
from cdmem.report.rows import (
    CONTROLS,
    NOTHING,
    model_label,
    model_table,
    number,
    p_value,
    percent,
    points,
    second_opinions,
)
from cdmem.report.run_data import RunData, as_recorded, read_run

PAGE = "report.html"
HEADLINES = {
    None: "No student was audited beside its teacher.",
    "reduced": "The student sheds memorised training images that its teacher reproduces.",
    "transient": "The student reproduces fewer training images than its teacher, but only until it has learnt enough.",
    "unchanged": "The student reproduces training images as often as its teacher.",
    "amplified": "The student reproduces training images more often than its teacher.",
    "amplified, of fewer images": "The student reproduces fewer training images than its teacher, but more often.",
    "not_distilled": "The student was not distilled: nothing can be said about memorisation.",
    "nothing_to_transfer": "The teacher memorises no more than the control: there is nothing to transfer.",
}
CHECKS = {
    "amplitude": "variance ratio of the images within 0.9–1.1",
    "rmse_not_rising": "rmse to the teacher not rising",
    "teacher_above_control": "teacher memorises more than held-out images do",
    "seeds_belong_together": "a seed means the same for student and teacher",
    "difference": "f_mem differs from the teacher's",
    "for_tolerant_copies": "tolerant copies differ in the same direction",
    "limit_of_tolerant_copies": "tolerant copies have the same limit",
    "where_recognised": "differs at the threshold at which copies are recognised",
    "at_equal_noise": "differs at equal noise",
    "as_real_as_teacher": "no farther from held-out images than the teacher",
    "no_damaged_copies": "the difference does not consist of damaged copies",
    "outlasts_a_slow_phase": "still below after a phase at a lower learning rate",
}


def headline(run: RunData) -> str:
    """The answer in one sentence."""
    claims = {(m.get("verdict") or {}).get("claim") for m in run.students} or {None}
    undecided = "No claim can be made yet for every student; the reasons are below."
    return HEADLINES.get(claims.pop(), undecided) if len(claims) == 1 else undecided


def verdicts(run: RunData) -> Iterator[Verdict]:
    """One box for each student and NFE: the claim, and the comparison at equal NFE."""
    for m in run.students:
        v = m.get("verdict") or {}
        claim = str(v.get("claim", "unknown"))
        statement = str(v.get("statement", "")).split(": ", 1)[-1].removeprefix(f"{claim}: ")
        title = f"{model_label(m)}: {claim.replace('_', ' ')}."
        beside = str(v.get("equal_nfe") or "").split(": ", 1)[-1]
        yield Verdict(claim, title, statement[:1].upper() + statement[1:], beside)


def models(run: RunData) -> Table:
    """Teacher, student for each NFE, and controls."""
    about = run.models[0]
    head, rows = model_table(run.summary)
    names = [*map(model_label, run.models), *CONTROLS]
    text = (
        f"{about['samples']} samples a model, seeds {about['seeds'][0]} to {about['seeds'][1]}, "
        f"weights {about['weights']}. Memorised: d1/d2 below {run.threshold:.3f} over groups of T. "
        f"{run.distance} of the held-out row is the floor: two halves of H."
    )
    return Table(["model", *head], [[name, *row] for name, row in zip(names, rows)], text, sortable=True)


def opinions(run: RunData) -> list[Text | Table]:
    """Other metrics of every model, each beside its own baseline from H."""
    rows = second_opinions(run.summary)
    head = ["metric", *map(model_label, run.models), "copies of T", "held-out baseline"]
    text = "What each metric means and where it fails: docs/metrics.md."
    return [Text("Second opinions", "heading"), Table(head, rows, text, sortable=True)] if rows else []


def confounds(run: RunData) -> list[Table]:
    """Every check of the verdict, and the numbers behind it."""
    students = run.students
    rows: list[list[Any]] = []
    for key, text in CHECKS.items():
        values = [(m.get("verdict") or {}).get("checks", {}).get(key) for m in students]
        rows.append([text, *(v if isinstance(v, bool) else NOTHING for v in values)])
    pairs = [m.get("paired") or {} for m in students]
    numbers = {
        "f_mem against the teacher (points)": [points(p.get("difference")) for p in pairs],
        "Holm p": [p_value(_at(p, "difference", "p_holm")) for p in pairs],
        "against the teacher at equal NFE": [points(_at(p, "equal_nfe", "difference")) for p in pairs],
        "at recognition (points)": [points(_at(p, "matched", "recognised")) for p in pairs],
        "copies recognised below d1/d2 =": [number(_at(p, "matched", "recognised_at")) for p in pairs],
        "tolerant copies (points)": [points(p.get("tolerant")) for p in pairs],
        "in the limit (points)": [points(_limit(m)) for m in students],
        "noise given to the sharper side (grey levels)": [number(_at(p, "matched", "noise"), 1) for p in pairs],
        "f_mem of the noised side": [number(_at(p, "matched", "f_mem")) for p in pairs],
        "at equal noise (points)": [points(_at(p, "matched", "difference")) for p in pairs],
        "different images, teacher": [_count(p, "teacher") for p in pairs],
        "different images, student": [_count(p, "student") for p in pairs],
        "seeds lost": [str(_at(p, "lost_seeds", "count") or 0) for p in pairs],
        "of them nearest to the same image": [str(percent(_at(p, "lost_seeds", "nearest_to_same"))) for p in pairs],
        "that by chance": [number(_at(p, "lost_seeds", "chance")) for p in pairs],
        "of them damaged copies": [str(percent(_at(p, "lost_seeds", "damaged"))) for p in pairs],
        "same image where both memorise": [number(_at(p, "identity", "same")) for p in pairs],
        "the same by chance": [number(_at(p, "identity", "chance")) for p in pairs],
        "median log d1/d2, student minus teacher": [number(_at(p, "log_ratio", "median")) for p in pairs],
        "weights": [m["weights"] for m in students],
        "distillation saw": [_setting(run, m, ("data", "images"), "data", "same") for m in students],
        "method": [_setting(run, m, ("method", "class_path"), "preset").rpartition(".")[2] for m in students],
        "learning rate": [_setting(run, m, ("optimization", "schedule"), "lr_schedule") for m in students],
    }
    rows += [[text, *cells] for text, cells in numbers.items()]
    return [Table(["check", *map(model_label, students)], rows)] if students else []


def _limit(m: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A student's limit, if there is one."""
    limit = _at(m.get("verdict"), "limit")
    return limit if limit and "value" in limit else None


def _count(pair: Mapping[str, Any], side: str) -> str:
    """How many different images one side copies."""
    count = _at(pair, "images", side)
    return NOTHING if count is None else str(count)


def _at(record: Any, *path: str) -> Any:
    """What lies at the end of nested keys, or None."""
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _setting(run: RunData, m: dict[str, Any], path: tuple[str, ...], old: str, default: str = NOTHING) -> str:
    """A setting of the stage that made a student; ``old`` is its key in runs of the first format."""
    config = next((s.config for s in run.stages if s.name == m["name"]), {})
    settings = config.get("model", {}).get("init_args", {})
    earlier = settings.get(old)
    return str(_at(settings, *path) or (earlier if isinstance(earlier, str) else None) or default)


def made(run: RunData) -> Iterator[Text | Table]:
    """Training set, versions, git state, command, notes, settings."""
    t, env, about = run.summary.get("training_set") or {}, run.environment, run.models[0]
    git = env.get("git") or {}
    extractors = run.summary["settings"].get("extractors") or {}
    facts = {
        "training set": f"{t.get('n')} images of {t.get('source')} in {t.get('rows')} rows, {t.get('groups')} groups",
        "training set hash": t.get("hash"),
        "held-out images": t.get("held_out"),
        "samples": f"{about['samples']} a model, seeds {about['seeds']}",
        "extractors": ", ".join(f"{k} ({str(v)[:16]})" for k, v in extractors.items()),
        "git": f"{str(git.get('commit'))[:12]}{' with local changes' if git.get('dirty') else ''}",
        "python": f"{env.get('python')} on {env.get('platform')}, {env.get('threads')} threads",
        "packages": ", ".join(f"{k} {v}" for k, v in (env.get("packages") or {}).items()),
    }
    for stage in [s for s in run.stages if s.ending]:
        facts[f"trained: {stage.name}"] = f"{stage.ending}, {stage.finished.get('seconds')} s"
        for c in stage.changes:
            facts[f"changed: {stage.name}, step {c['step']}, {c['key']}"] = f"{c.get('old')} -> {c.get('new')}"
    yield Table(["what", "value"], [[name, str(value)] for name, value in facts.items()])
    command = " ".join(str(a) for a in env.get("command") or [])
    if command:
        yield from (Text("Command", "heading"), Text(command, "code"))
    notes = [*run.summary.get("notes", []), *run.notes]
    if notes:
        yield from (Text("Notes", "heading"), *(Text(note) for note in notes))
    for name, config in [("study", run.config), *((s.name, s.config) for s in run.stages)]:
        text = yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False)
        yield Text(text, "code", f"Settings: {name}")


def render(run: RunData) -> Page:
    """The page of a run."""
    return Page(
        title=f"{run.path.resolve().name}: does the student keep its teacher's memorised images?",
        lead=[headline(run)],
        verdicts=list(verdicts(run)),
        table=models(run),
        sections=[
            Section("training", "Along training", list(figures.along_training(run))),
            Section("seeds", "Seed by seed", list(figures.pairs(run))),
            Section("pictures", "Pictures", list(pictures.walls(run))),
            Section("distributions", "Distributions", [*figures.distributions(run), *opinions(run)]),
            Section("confounds", "What could confound the answer", confounds(run)),
            Section("made", "How it was made", list(made(run))),
        ],
    )


def write_report(path: str | Path) -> Path:
    """Write ``report.html`` into a run's folder, figures (PNG) and data (CSV) into ``report/`` beside it.

    Raises:
        InputError: no finished study there.
    """
    run = read_run(path)
    with as_recorded(run.path):
        files = render(run).files(PAGE)
    for name, content in files.items():
        write(run.path, name, content)
    return run.path / PAGE
