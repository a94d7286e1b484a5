"""Real processes of the command line that die at a chosen moment: ``python tests/killing.py`` serves them.

The server imports everything once and forks one process per request. Each process counts its *moments*: every call of
a function that trains, evaluates or writes. At moment number ``at`` it is killed, told to stop, fails, or runs out of
disk; the same ``at`` is the same moment every time.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Outcome:
    """How a process ended.

    Attributes:
        code: exit code, or minus the signal.
        output: what it printed.
        moments: names of all moments that it reached.
    """

    code: int
    output: str
    moments: list[str] = field(default_factory=list)


class Mortals:
    """A server of mortal processes; use it as a context manager."""

    def __enter__(self) -> Mortals:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stdin.close()
        self.server.wait(30)

    def run(self, *args: object, cwd: Path, at: int | None = None, how: str = "KILL") -> Outcome:
        """Run ``python -m cdmem args``; ``how`` is KILL, TERM, FAIL (an exception) or FULL (the disk)."""
        request = {"args": [str(a) for a in args], "cwd": str(cwd), "at": at, "how": how}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return Outcome(**json.loads(self.server.stdout.readline()))


# ---- inside the server ----------------------------------------------------------------------------------------------


class Moments:
    """Counts moments and acts at one of them."""

    def __init__(self, at: int | None, how: str) -> None:
        self.at, self.how, self.names = at, how, []

    def reach(self, name: str, tear: Callable[[], None] | None = None) -> None:
        """``tear`` leaves behind what a write that was cut short leaves."""
        self.names.append(name)
        if len(self.names) - 1 != self.at:
            return
        if tear is not None and self.how == "KILL":
            tear()
        if self.how in ("KILL", "TERM"):
            os.kill(os.getpid(), getattr(signal, f"SIG{self.how}"))
        elif self.how == "FAIL":
            raise RuntimeError("planted")
        elif self.how == "FULL":
            # Files may not grow beyond this from now on: the write fails as on a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))

    def watch(self, owner: Any, name: str, path: Callable[..., Path] | None = None) -> None:
        """Make every call of ``owner.name`` a moment; of a write to ``path`` also its middle: half is on the disk."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.reach(name)
            if path is None:
                return real(*args, **kwargs)
            file = path(*args)
            size = file.stat().st_size if file.is_file() else 0
            done = real(*args, **kwargs)
            # After a failure or a full disk the write is not repeated here: its own error handling is under test.
            self.reach(f"{name}, half done", lambda: os.truncate(file, (size + file.stat().st_size) // 2))
            return done

        setattr(owner, name, call)


def plant(moments: Moments) -> None:
    """The functions whose calls are moments."""
    import numpy as np
    import torch

    from callbacks.evaluation import Evaluation, EvaluationCallback
    from cdmem.report.charts.base import Chart
    from cdmem.run.metrics_log import MetricsRecord
    from cdmem.training.ema import EMA
    from cdmem.training.module import DiffusionModule

    for owner, name in (
        (os, "replace"),
        (os, "fsync"),
        (os, "link"),
        (EMA, "update"),
        (DiffusionModule, "training_step"),
        (DiffusionModule, "on_save_checkpoint"),
        (EvaluationCallback, "run"),
        (Evaluation, "samples"),
    ):
        moments.watch(owner, name)
    # The page is written at every end of a study, and its bits are not compared: it is drawn elsewhere.
    Chart.svg, Chart.png = (lambda _: "<svg/>"), (lambda _: b"")  # type: ignore[method-assign]
    moments.watch(MetricsRecord, "append", lambda record, *_: record.path)
    moments.watch(torch, "save", lambda _, target: Path(target))
    moments.watch(np, "savez_compressed", lambda target: Path(target))
    moments.watch(Path, "write_text", lambda target, *_: target)


def serve() -> None:
    """Answer requests until standard input ends."""
    os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"
    sys.path.insert(0, str(ROOT))
    for line in sys.stdin:
        request = json.loads(line)
        out, told = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.close(out[0])
            os.close(told[0])
            live(request, out[1], told[1])
        os.close(out[1])
        os.close(told[1])
        with os.fdopen(out[0], errors="replace") as stream:
            output = stream.read()
        with os.fdopen(told[0]) as stream:
            names = stream.read().splitlines()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"code": code, "output": output, "moments": names}), flush=True)


def live(request: dict[str, Any], output: int, told: int) -> None:
    """One process: from arguments to its end."""
    from cdmem.cli.main import main

    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(request["cwd"])
    moments = Moments(request["at"], request["how"])
    plant(moments)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.argv = ["cdmem", *request["args"]]
    code = 0
    try:
        main(request["args"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(told, "\n".join(moments.names).encode())
    os._exit(code)


if __name__ == "__main__":
    serve()
