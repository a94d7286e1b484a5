"""``python -m cdmem export``: a checkpoint as a folder that diffusers, or cdmem, loads by itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdmem.cli.arguments import parse
from cdmem.errors import InputError
from cdmem.io.own_code import FLAG, allows
from cdmem.io.paths import possible_path, usable_path
from cdmem.io.text import read_json
from cdmem.models import export
from cdmem.models.load import load_model, load_record
from cdmem.models.model_card import audit_rows, card, estimate
from cdmem.training.checkpoint import find_checkpoint

SUMMARY = "audit/summary.json"
HINT = "give the JSON of an audit"
MAX_AUDIT = 2**26
UNETS = ("cdmem.networks.UNet", "cdmem.networks.DiffusersUNet")


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """A checkpoint as a folder that diffusers, or cdmem, loads by itself.

    Attributes:
        checkpoint: .ckpt file or run folder of a teacher or student.
        out: folder to write; must not exist.
        weights: raw or ema_<half-life>; the checkpoint's choice if null.
        audit: JSON of audit --out, or a study's audit/summary.json; looked for if null.
        licence: of the weights, for the model card, e.g. apache-2.0.
        allow_code: files may name code to run: networks and data sources of one's own.
    """

    checkpoint: str
    out: str
    weights: str | None = None
    audit: str | None = None
    licence: str | None = None
    allow_code: bool = False


def _read_audit(file: Path, digest: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    summary = read_json(file, "audit", HINT, MAX_AUDIT)
    try:
        rows = audit_rows(summary, digest)
        heldout = (summary.get("control") or {}).get("heldout_f_mem")
        return rows, None if heldout is None or not rows else estimate(heldout)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError("audit", file, f"is no audit ({type(error).__name__}: {error})", HINT) from None


def find_rows(given: str | None, stage: Path, digest: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Rows of the audit about the exported weights, and its held-out control.

    Args:
        given: what the user named, or None to look in the stage's folder and in its study's.
        stage: folder of the run.
        digest: of the weights.

    Raises:
        InputError: a named audit that cannot be read or is about other weights.
    """
    if given:
        rows, heldout = _read_audit(Path(given), digest)
        if not rows:
            problem = f"is about other weights ({digest[:12]} are exported)"
            raise InputError("audit", given, problem, "audit these weights")
        return rows, heldout
    for file in (f for f in (stage / SUMMARY, stage.parent / SUMMARY) if f.is_file()):
        with suppress(InputError):  # nobody asked for this one
            rows, heldout = _read_audit(file, digest)
            if rows:
                return rows, heldout
    return [], None


def known_images(stage: Path, wanted: str) -> int | None:
    """How many unique images the training set has, if the run's own record is about that set."""
    try:
        record = read_json(stage / "training_set.json", "checkpoint")
    except InputError:
        return None
    n = record.get("n")
    return n if record.get("hash") == wanted and type(n) is int else None


def check_network(file: Path) -> None:
    """Raises InputError for a network that diffusers has no form for; one of the user's own needs ``--allow_code``."""
    name = str(load_record(file).network.get("class_path"))
    if name in UNETS or (allows() and not name.startswith("cdmem.")):
        return
    hint = "train a UNet, or share the checkpoint itself"
    if not name.startswith("cdmem."):
        hint = f"share the checkpoint and its module; or add {FLAG} if what it builds is a UNet2DModel"
    raise InputError("checkpoint", name, "is not a UNet2DModel, which is all that diffusers holds", hint)


def run_export(args: Sequence[str]) -> int:
    """Check, then write the folder and say what it is."""
    options = parse(ExportCommand, args, "export")
    out = possible_path("out", options.out)
    audit = None if options.audit is None else str(usable_path("audit", options.audit))
    if os.path.lexists(out):
        raise InputError("out", out, "exists already", "give another --out")
    file = find_checkpoint(usable_path("checkpoint", options.checkpoint))
    check_network(file)
    module = load_model(file)
    stage = file.resolve().parent.parent
    made = export.prepare(module, options.weights, known_images(stage, module.record.training_set))
    rows, heldout = find_rows(audit, stage, made.metadata["digest"])
    made.metadata["audit"] = rows
    export.write(made, card(made, rows, heldout, options.licence), out)
    pipeline = export.PIPELINES.get(made.form)
    print(f"{module.role}: {out} ({f'diffusers.{pipeline[0]}' if pipeline else 'unet/ and cdmem.json, read by cdmem'})")
    print(f"audit:   {len(rows)} rows in its model card" if rows else "audit:   none of these weights was found")
    return 0
