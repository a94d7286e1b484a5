"""The model card of an exported folder: what the model is, what it reproduces, how to sample it, what got lost."""

from __future__ import annotations

import re
from typing import Any

import yaml

from cdmem.models.export import PIPELINES, Export, nearest_indices
from cdmem.report.rows import NOTHING, PAIR, number, percent
from cdmem.training.record import RECORDED

COLUMNS = ("method", "NFE", "samples", "f_mem", *PAIR.values(), "verdict")
# Names that model hubs know; anything else is a licence of its own.
KNOWN_LICENCE = re.compile(
    r"(apache-2\.0|mit|bsd-[23]-clause|cc0-1\.0|cc-by(-[a-z]+)*-[0-9.]+|openrail(\+\+)?|[al]?gpl-[0-9.]+)"
)


def card(export: Export, audit: list[dict[str, Any]], heldout: dict[str, Any] | None, licence: str | None) -> str:
    """README.md as Markdown with a YAML header.

    Args:
        export: what the folder holds.
        audit: rows of :func:`audit_rows`, possibly none.
        heldout: the audit's control: the memorised fraction of held-out images.
        licence: the user's words, or None.
    """
    m = export.metadata
    parts = [
        f"---\n{yaml.safe_dump(_header(export, licence), sort_keys=False)}---",
        f"# {_title(m)}",
        _about(m),
        "## What it reproduces of its training set",
        audit_table(audit, heldout),
        "## Sampling",
        *_sampling(export),
        "## What this folder does not keep",
        _lost(export),
        "## Licence",
        _licence(licence),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _header(export: Export, licence: str | None) -> dict[str, Any]:
    m = export.metadata
    header: dict[str, Any] = {"library_name": "cdmem" if export.form == "network" else "diffusers"}
    if licence:
        known = KNOWN_LICENCE.fullmatch(licence.lower())
        header["license"] = licence.lower() if known else "other"
        header |= {} if known else {"license_name": licence}
    header["tags"] = ["unconditional-image-generation" if not m["num_classes"] else "class-conditional", "memorization"]
    names = ("version", "role", "weights", "digest", "step", "training_set")
    header["cdmem"] = {name: m[name] for name in names}
    if m["role"] == "student":
        header["cdmem"]["teacher_digest"] = m["teacher_digest"]
    return header


def _title(m: dict[str, Any]) -> str:
    kind = "Consistency student" if m["role"] == "student" else "Diffusion teacher"
    return f"{kind}, {'x'.join(map(str, m['shape'][1:]))} pixels"


def _about(m: dict[str, Any]) -> str:
    size, status = "unknown number of" if m["n"] is None else f"{m['n']:,}", m["training_set_status"]
    claimed = "" if status == RECORDED else f" ({status}: stated by whoever distilled it, not recorded)"
    rows = [
        ("role", m["role"]),
        ("training set", f"{size} unique images, content hash `{m['training_set']}`{claimed}"),
        ("weights", f"{m['weights']} at step {m['step']}, SHA-256 `{m['digest']}`"),
        ("images", f"{m['shape'][0]} channels in [-1, 1], {m['num_classes'] or 'no'} classes"),
        (
            "noise",
            f"{m['parameterization']}, sigma {m['sigma_min']:g} to {m['sigma_max']:g}, rho {m['rho']:g}, "
            f"sigma_data {m['sigma_data']:.6g}, c_noise {m['c_noise']}",
        ),
        ("made with", f"cdmem {m['version']}"),
    ]
    if m["role"] == "student":
        rows.insert(2, ("teacher", f"weights SHA-256 `{m['teacher_digest']}`"))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


# ---- audit ----------------------------------------------------------------------------------------------------------


def _word(value: Any) -> str:
    """A name from a file, without anything that Markdown or HTML would read as more than a name."""
    return re.sub(r"[^\w .:+-]", "", str(value))[:60]


def estimate(stored: dict[str, Any]) -> dict[str, Any]:
    """A value and its 95 % interval as numbers, whatever a file holds beside them."""
    low, high = stored["ci95"]
    return {"value": float(stored["value"]), "ci95": [float(low), float(high)]}


def audit_rows(summary: dict[str, Any], digest: str) -> list[dict[str, Any]]:
    """The rows of an audit that are about these very weights.

    Args:
        summary: content of ``audit/summary.json`` or of ``audit --out``.
        digest: of the exported weights.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: not such a file.
    """
    rows = []
    for model in summary["models"]:
        # A ceiling has the teacher's weights, and is no way to sample it.
        if model["digest"] != digest or model.get("role") == "ceiling":
            continue
        row = {name: model.get(name) for name in PAIR}
        row |= {"method": _word(model["method"]), "nfe": int(model["nfe"]), "samples": int(model["samples"])}
        row["f_mem"] = estimate(model["f_mem"])
        claim = (model.get("verdict") or {}).get("claim")
        row["verdict"] = None if claim is None else _word(claim)
        row["audited_against"] = _word(summary["training_set"]["hash"])
        rows.append(row)
    return rows


def audit_table(rows: list[dict[str, Any]], heldout: dict[str, Any] | None) -> str:
    """The rows as a Markdown table with a sentence below it, or that there are none."""
    if not rows:
        return "Not audited when it was exported. `python -m cdmem audit` tells which training images it reproduces."
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for r in rows:
        cells = [r["method"], str(r["nfe"]), f"{r['samples']:,}", str(percent(r["f_mem"]))]
        cells += [*(number(r[name]) for name in PAIR), r["verdict"] or NOTHING]
        lines.append(f"| {' | '.join(cells)} |")
    said = "f_mem: samples whose nearest training image is under a third as far as the second-nearest, 95 % interval; "
    said += f"audited against the set `{rows[0]['audited_against'][:12]}`."
    if heldout:
        said += f" Held-out images read as if they were samples: {percent(heldout)}."
    return "\n".join([*lines, "", said])


# ---- sampling -------------------------------------------------------------------------------------------------------

DIFFUSERS = """```python
import torch
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained(".")  # this folder
generators = [torch.Generator().manual_seed(seed) for seed in range({count})]
images = pipe(batch_size={count}, num_inference_steps={steps}, generator=generators{labels}).images
```"""

OURS = """```python
from cdmem.images import to_uint8
from cdmem.models.load import load_model

model = load_model(".")  # this folder
images = to_uint8(model.sampler({nfe})(range({count})))  # uint8 (count, C, H, W), one picture a seed
```"""
COUNT = 16


def _sampling(export: Export) -> list[str]:
    m = export.metadata
    ours = OURS.format(nfe=m["nfe"][-1] if m["role"] == "student" else "", count=COUNT)
    if export.form == "consistency":
        code = [_consistency(m)]
    elif export.form == "ddpm":
        code = ["Ancestral sampling with diffusers:", _diffusers(export.form, export.scheduler["num_train_timesteps"])]
        code += ["The deterministic sampler that cdmem audits:", ours]
    else:
        code = [ours]
    s = m["sampler"]
    if m["role"] == "teacher":
        code.append(
            f"cdmem's sampler: {s['solver']}, Karras grid of {s['points']} points and 0, {m['nfe'][0]} evaluations."
        )
    return code


def _diffusers(form: str, steps: int, labels: str = "") -> str:
    return DIFFUSERS.format(pipeline=PIPELINES[form][0], count=COUNT, steps=steps, labels=labels)


def _consistency(m: dict[str, Any]) -> str:
    labels, also = (f", class_labels=[0] * {COUNT}", " and labels.") if m["num_classes"] else ("", ".")
    text = _diffusers("consistency", 1, labels)
    text += f"\n\nOne step: the pictures that cdmem makes of these seeds{also}"
    if m["sampler"]["mid_sigmas"]:
        nearest = nearest_indices(m)
        points = ", ".join(f"{level:.4g} (index {k}) for {sigma:g}" for sigma, k, level in nearest)
        indices = sorted({k for _, k, _ in nearest if k}, reverse=True)
        steps = f"`num_inference_steps=None, timesteps={[*indices, 0]}`"
        text += f"\n\nMore steps: {steps} takes the grid's nearest points to cdmem's noise levels: {points}."
    return text


def _lost(export: Export) -> str:
    m = export.metadata
    lost = ["Raw weights, other averages, optimizer and everything needed to go on training."]
    if export.form == "consistency":
        levels, points = m["sampler"]["mid_sigmas"], m["sampler"]["points"]
        lost.append(
            f"cdmem's own noise levels of further steps ({levels}) where they lie between the {points} points of the "
            "pipeline's Karras grid; `num_inference_steps` of 2 or more takes evenly spaced points of that grid."
        )
        lost.append(
            "Pixel values beyond [-1, 1]: cdmem measures them, the pipeline clamps its last output. Between steps "
            "nothing is clamped (`clip_denoised` is off)."
        )
        if m["num_classes"]:
            lost.append("Labels by seed: the pipeline draws missing `class_labels` from the global random stream.")
    if export.form == "ddpm":
        lost.append("The deterministic sampler: `DDPMPipeline` adds noise at every step and makes other pictures.")
    if m["role"] == "student" and export.form == "network":
        lost.append(
            "A pipeline of diffusers: its consistency scheduler has another boundary form or c_noise than this student."
        )
    if m["role"] == "teacher" and export.form == "network":
        lost.append("A pipeline of diffusers: none of them feeds this network its c_noise (or its labels).")
    return "\n".join(f"- {line}" for line in lost)


def _licence(licence: str | None) -> str:
    said = " ".join(licence.split()) if licence else "None was stated by whoever exported this model."
    return f"{said}\n\nA model can reproduce its training images: their licences matter beside that of the weights."
