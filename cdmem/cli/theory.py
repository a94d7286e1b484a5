"""``python -m cdmem theory LABORATORY [--config FILE] [--out DIR] [--KEY VALUE ...]``: the papers' theory, computed.

  random-features   the random-feature network, its spectrum and its distillation
  two-gaussians     a small network on two Gaussians: when do copies begin, as n and width grow?
  edge              the Gaussian-mixture laboratory: at which capacity does a denoiser memorise?
  decomposition     trajectories split into target and initial noise
  bridge RUN        do a trained teacher and its student show the random features' mechanism?

Every laboratory writes results.json, report.html and figures/ (PNG and CSV) into DIR, by default
runs/theory/LABORATORY. Settings come from FILE (YAML) and from flags; LABORATORY --help lists them.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import math
import os
import shlex
import typing
from collections.abc import Sequence
from contextlib import redirect_stderr
from itertools import pairwise
from pathlib import Path
from typing import Any

from cdmem.errors import InputError
from cdmem.io.paths import possible_path, usable_path
from cdmem.io.text import parse_yaml, read_text
from cdmem.study.parsing import check_numbers

LABORATORIES = {
    "random-features": "cdmem.theory.random_features.laboratory",
    "two-gaussians": "cdmem.theory.two_gaussians.laboratory",
    "edge": "cdmem.theory.edge.laboratory",
    "decomposition": "cdmem.theory.decomposition.laboratory",
    "bridge": "cdmem.theory.bridge.laboratory",
}
WITH_RUN = ("bridge",)
FILES = ("results.json", "report.html", "figures")
OURS = ("out", "overwrite", "quiet")


def read_settings(laboratory: str, args: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Settings of a laboratory from the command line, and our own options ``out``, ``overwrite``, ``quiet``.

    Raises:
        InputError: an unknown key, a value of another type, or a config that cannot be read.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    kind = importlib.import_module(LABORATORIES[laboratory]).Settings
    parser = ArgumentParser(
        prog=f"python -m cdmem theory {laboratory}", exit_on_error=False, default_env=False, description=kind.__doc__
    )
    parser.add_argument("--config", action="config", help="YAML of these settings")
    parser.add_argument("--out", type=str, default=f"runs/theory/{laboratory}", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier call there")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_class_arguments(kind, None)
    rest = list(args)
    if laboratory in WITH_RUN and rest and not rest[0].startswith("-"):
        rest[0] = f"--run={rest[0]}"
    _plain_configs(rest)
    try:
        with redirect_stderr(io.StringIO()):
            found = vars(parser.parse_args(rest))
    except (ArgumentError, ValueError, TypeError, OSError, ArithmeticError, RecursionError) as error:
        names = [f.name for f in dataclasses.fields(kind)]
        raise InputError("theory", laboratory, _line(error), f"its settings are {', '.join(names)}") from None
    names = {field.name for field in dataclasses.fields(kind)}
    settings = kind(**{name: found[name] for name in names})
    _usable(settings)
    return settings, {name: found[name] for name in OURS}


def _plain_configs(args: Sequence[str]) -> None:
    """Raises InputError for a config that is no plain YAML of usual size, before the parser writes its aliases out."""
    for word, following in pairwise([*args, ""]):
        name, equals, value = word.partition("=")
        if name == "--config":
            file = usable_path("config", value if equals else following)
            try:
                parse_yaml(read_text(file))
            except OSError as error:
                raise InputError("config", file, f"cannot be read ({error.strerror})", "give a YAML file") from None
            except ValueError as error:
                raise InputError("config", file, str(error), "give a YAML file of settings") from None


def _line(error: BaseException) -> str:
    """What is wrong, without the parser's advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:240] or type(error).__name__


def _usable(settings: Any) -> None:
    check_numbers(dataclasses.asdict(settings))
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is None and type(None) not in typing.get_args(hints[field.name]):
                raise InputError(field.name, None, "is no value", "leave it out for the default")
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(field.name, number, "is no finite number", f"e.g. {field.default}")
    seed = getattr(settings, "seed", 0)
    if not 0 <= seed < 2**32:
        raise InputError("seed", seed, "is no seed", "use a whole number from 0 to 4294967295")


def check_out(given: str, overwrite: bool) -> Path:
    """The folder for results. They take minutes: that they cannot be written is said before.

    Raises:
        InputError: the folder holds results already, is a file, or cannot be written.
    """
    out = possible_path("out", given)
    if out.exists() and not out.is_dir():
        raise InputError("out", out, "is a file", "give a folder")
    there = [name for name in FILES if os.path.lexists(out / name)]
    if there and not overwrite:
        raise InputError("out", out, f"holds {', '.join(there)} already", "give another --out, or --overwrite")
    return out


def run_theory(args: Sequence[str]) -> int:
    """``python -m cdmem theory``."""
    if not args or args[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    laboratory, rest = args[0], list(args[1:])
    if laboratory not in LABORATORIES:
        raise InputError("theory", laboratory, "is no laboratory", f"use one of {', '.join(LABORATORIES)}")
    settings, ours = read_settings(laboratory, rest)
    out = check_out(ours["out"], ours["overwrite"])
    from cdmem.theory.frame import Progress
    from cdmem.theory.page import write_outcome

    module = importlib.import_module(LABORATORIES[laboratory])
    outcome = module.run(settings, Progress(ours["quiet"]))
    record = {"laboratory": laboratory, "settings": dataclasses.asdict(settings), **outcome.results}
    outcome = dataclasses.replace(outcome, results=record)
    page = write_outcome(outcome, out, shlex.join(["python", "-m", "cdmem", "theory", *args]))
    for line in outcome.lead:
        print(line)
    print(f"page: {page}")
    return 0
