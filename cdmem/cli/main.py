"""The command line: picks the subcommand before anything heavy is imported, and turns mistakes into one line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cdmem import __version__
from cdmem.errors import InputError, RunFailure
from cdmem.io.atomic import NO_SPACE
from cdmem.io.own_code import FLAG, consent, split_consent
from cdmem.io.secrets import redact, refuse_secrets

HELP = f"""cdmem {__version__}: does consistency distillation keep or shed a teacher's memorised images?

usage: python -m cdmem COMMAND [options]        (COMMAND --help lists all of its settings)

  study     --config FILE [--run_dir DIR] [--seed N]    teacher -> student(s) -> audit; run again to go on
  fit       --config FILE [--ckpt_path last]            train one model; --model.teacher PATH for a student
  validate  --config FILE [--ckpt_path FILE]            loss on training and held-out images, quick metrics
  test      --config FILE [--ckpt_path FILE]            the same with the test sample counts
  predict   --config FILE [--ckpt_path FILE]            images of a configured model into samples/
  sample    --checkpoint PATH [--samples N] [--nfe K]   images from any checkpoint or run folder
  plan      --config FILE [--tflops X] [--devices N]    parameters, FLOPs, memory and hours before anything is trained
  audit     --generator PATH --training_set PATH        what a model or a set of images reproduces; a release gate
  export    --checkpoint PATH --out DIR                 a folder for diffusers, or for others' cdmem, with a model card
  report    RUN [RUN ...]                               the page of a study; a comparison of several, or of a sweep
  theory    LABORATORY [--config FILE] [--out DIR]      the papers' theory: random-features, edge, decomposition, bridge
  wandb-workspace --project P                           our curves and panels as a view on W&B; needs a login

Settings are given as --key value, --key=value, and lists as --key a b or --key [a,b]; any setting of a config can be
overridden after --config. Files may be somebody else's and name code: --allow_code, with any command that reads a model
or a run folder, admits networks and data sources of one's own that it names, and configs inside run folders.
"""

COMMANDS = {
    "study": "cdmem.cli.study:run_study",
    "fit": "cdmem.cli.fit:run_fit",
    "validate": "cdmem.cli.fit:run_validate",
    "test": "cdmem.cli.fit:run_test",
    "predict": "cdmem.cli.fit:run_predict",
    "sample": "cdmem.cli.sample:run_sample",
    "plan": "cdmem.cli.plan:run_plan",
    "audit": "cdmem.cli.audit:run_audit",
    "export": "cdmem.cli.export:run_export",
    "report": "cdmem.cli.report:run_report",
    "theory": "cdmem.cli.theory:run_theory",
    "wandb-workspace": "cdmem.cli.workspace:run_workspace",
}
NO_CODE = ("report", "wandb-workspace")
HELP_PAGES = Path(__file__).parent / "help"  # by `python -m cdmem.cli.help_pages`


def dispatch(args: Sequence[str]) -> int:
    """Run one subcommand; heavy imports happen inside."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] in ("-V", "--version"):
        print(__version__)
        return 0
    command, rest = args[0], list(args[1:])
    refuse_secrets(rest)
    # Must precede the import of torch: with the default spin barrier, two threads on shared cores can be 30x slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # Weights that do not fit a network are refused in one line of ours; diffusers would tell of them in two before it.
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if command not in COMMANDS:
        raise InputError("command", command, "no such command", "python -m cdmem --help lists them")
    page = HELP_PAGES / f"{command}.txt"
    if {"-h", "--help"} & set(rest) and page.is_file():
        print(page.read_text(encoding="utf-8"), end="")
        return 0
    without, allowed = split_consent(rest)
    if len(without) < len(rest) and command in NO_CODE:
        problem = f"{command} runs no code that a file names"
        raise InputError("allow_code", str(allowed).lower(), problem, f"leave {FLAG} out")
    with consent(allowed):
        return command_function(command)(rest)


def command_function(command: str) -> Callable[[Sequence[str]], int]:
    """What carries out a command; importing it is what takes time."""
    module, _, function = COMMANDS[command].partition(":")
    return getattr(importlib.import_module(module), function)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point; exits 2 with one line on bad input, 1 when something outside ended the run, 143 after SIGTERM."""
    try:
        code = dispatch(sys.argv[1:] if args is None else args)
    except InputError as error:
        print(f"cdmem: error: {redact(str(error))}", file=sys.stderr)  # logs of jobs are shared
        code = 2
    except RunFailure as error:
        print(f"cdmem: error: {error}", file=sys.stderr)
        code = 1
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        what = f"{error.strerror} ({error.filename or 'run folder'})"
        print(f"cdmem: error: {what}: free space, then the same command goes on", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("cdmem: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        code = 130
    except SystemExit as stop:
        # Lightning leaves by SystemExit, with code 0 after SIGTERM: a preempted run must not pass for a finished one.
        if type(stop).__name__ == "SIGTERMException":
            # Lightning's launcher kills the first process when one that it started ends with anything but 0.
            code = 143 if os.environ.get("LOCAL_RANK", "0") == "0" else 0
        elif isinstance(stop.__context__, KeyboardInterrupt):
            code = 130
        else:
            raise
    raise SystemExit(code)
