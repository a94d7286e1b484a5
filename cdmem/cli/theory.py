"""``python -m cdmem theory LABORATORY [--config FILE] [--out DIR] [--KEY VALUE ...]``: the papers' theory, computed.

  random-features   the random-feature network, its spectrum and its distillation
  two-gaussians     a small network on two Gaussians: when do copies begin, as n and width grow?
  edge              the Gaussian-mixture laboratory: at which capacity does a denoiser memorise?
  decomposition     trajectories split into target and initial noise
  bridge RUN        do a trained teacher and its student show the random features' mechanism?

Every laboratory writes results.json, report.html and figures/ (PNG and CSV) into DIR, by default
runs/theory/LABORATORY. Settings come from FILE (YAML) and from flags, those in groups as --GROUP.KEY VALUE;
LABORATORY --help lists them.
"""

from __future__ import annotations

import dataclasses
import importlib
import shlex
from collections import ChainMap
from collections.abc import Sequence
from typing import Any

from cdmem.cli.arguments import parse, settings_of
from cdmem.errors import InputError
from cdmem.study.parsing import options

LABORATORIES = {
    "random-features": "cdmem.theory.random_features.laboratory",
    "two-gaussians": "cdmem.theory.two_gaussians.laboratory",
    "edge": "cdmem.theory.edge.laboratory",
    "decomposition": "cdmem.theory.decomposition.laboratory",
    "bridge": "cdmem.theory.bridge.laboratory",
}
WITH_RUN = ("bridge",)
OPTIONS = """
        config: YAML of these settings; flags go over it.
        out: folder to write.
        overwrite: replace the results of an earlier call there.
        quiet: no progress.
        allow_code: files may name code to run: networks and data sources of one's own.
"""


def read_settings(laboratory: str, args: Sequence[str]) -> tuple[Any, Any]:
    """Settings of a laboratory, and the same with the command's own options.

    Raises:
        InputError: an unknown key, a value of another type or outside its range, or a config that cannot be read.
    """
    from cdmem.theory.settings import check_settings

    kind = importlib.import_module(LABORATORIES[laboratory]).Settings
    own = [("config", str | None, None), ("out", str, f"runs/theory/{laboratory}")]
    own += [(name, bool, False) for name in ("overwrite", "quiet", "allow_code")]
    words = {"__doc__": kind.__doc__.rstrip() + OPTIONS}
    command = dataclasses.make_dataclass("Command", own, bases=(kind,), frozen=True, namespace=words)
    base = [settings_of(words[-1]) for key, words in options(args) if key == "config" and words]
    positional = "run" if laboratory in WITH_RUN else ""
    given = parse(command, args, f"theory {laboratory}", positional, base=dict(ChainMap(*reversed(base))))
    settings = kind(**{field.name: getattr(given, field.name) for field in dataclasses.fields(kind)})
    check_settings(settings)
    return settings, given


def run_theory(args: Sequence[str]) -> int:
    """``python -m cdmem theory``."""
    if not args or args[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    laboratory = args[0]
    if laboratory not in LABORATORIES:
        raise InputError("theory", laboratory, "is no laboratory", f"use one of {', '.join(LABORATORIES)}")
    settings, command = read_settings(laboratory, args[1:])
    from cdmem.theory.experiment import Progress, output_folder, write_outcome

    out = output_folder(command.out, command.overwrite)
    outcome = importlib.import_module(LABORATORIES[laboratory]).run(settings, Progress(command.quiet))
    record = {"laboratory": laboratory, "settings": dataclasses.asdict(settings), **outcome.results}
    outcome = dataclasses.replace(outcome, results=record)
    page = write_outcome(outcome, out, shlex.join(["python", "-m", "cdmem", "theory", *args]))
    for line in outcome.lead:
        print(line)
    print(f"page: {page}")
    return 0
