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
from collections.abc import Sequence
from typing import Any

from cdmem.cli.arguments import parse
from cdmem.errors import InputError
from cdmem.io.paths import usable_path
from cdmem.io.text import parse_yaml, read_text
from cdmem.study.parsing import options as words

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
"""


def read_settings(laboratory: str, args: Sequence[str]) -> tuple[Any, Any]:
    """Settings of a laboratory, and the same with the command's own options ``out``, ``overwrite`` and ``quiet``.

    Raises:
        InputError: an unknown key, a value of another type or outside its range, or a config that cannot be read.
    """
    from cdmem.theory.settings import check_settings

    kind = importlib.import_module(LABORATORIES[laboratory]).Settings
    own = [("config", str | None, None), ("out", str, f"runs/theory/{laboratory}")]
    own += [(name, bool, False) for name in ("overwrite", "quiet")]
    about = {"__doc__": kind.__doc__.rstrip() + OPTIONS}
    command = dataclasses.make_dataclass("Command", own, bases=(kind,), frozen=True, namespace=about)
    positional = "run" if laboratory in WITH_RUN else ""
    options = parse(command, args, f"theory {laboratory}", positional, beneath=read_config(args))
    settings = kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)})
    check_settings(settings)
    return settings, options


def read_config(args: Sequence[str]) -> dict[str, Any]:
    """What the YAML files of ``--config`` say; later ones go over earlier ones.

    Raises:
        InputError: a file that cannot be read, or is no mapping.
    """
    content: dict[str, Any] = {}
    for name in (values[0] for key, values in words(args) if key == "config" and values):
        file = usable_path("config", name)
        try:
            read = parse_yaml(read_text(file))
            if not isinstance(read, dict):
                raise ValueError("is no mapping")
        except (OSError, ValueError) as error:
            problem = f"cannot be read ({getattr(error, 'strerror', None) or error})"
            raise InputError("config", file, problem, "give a YAML file of settings") from None
        content |= {str(key): value for key, value in read.items()}
    return content


def run_theory(args: Sequence[str]) -> int:
    """``python -m cdmem theory``."""
    if not args or args[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    laboratory = args[0]
    if laboratory not in LABORATORIES:
        raise InputError("theory", laboratory, "is no laboratory", f"use one of {', '.join(LABORATORIES)}")
    settings, options = read_settings(laboratory, args[1:])
    from cdmem.theory.experiment import Progress, output_folder, write_outcome

    out = output_folder(options.out, options.overwrite)
    outcome = importlib.import_module(LABORATORIES[laboratory]).run(settings, Progress(options.quiet))
    record = {"laboratory": laboratory, "settings": dataclasses.asdict(settings), **outcome.results}
    outcome = dataclasses.replace(outcome, results=record)
    page = write_outcome(outcome, out, shlex.join(["python", "-m", "cdmem", "theory", *args]))
    for line in outcome.lead:
        print(line)
    print(f"page: {page}")
    return 0
