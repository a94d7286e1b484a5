"""Several commands at once, each a process of its own with its share of the cores: ``--jobs N``.

They are commands that a user could give, so each goes on by itself where it stopped, and none shares anything with
another but the machine. Ctrl-C and SIGTERM reach all of them; one that fails ends only itself.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cdmem.errors import InputError, RunFailure
from cdmem.io.own_code import FLAG, allows

STAGE = re.compile(r"\[\d+/\d+\] \S+")  # a study's line at each of its stages
POLL = 0.5  # s
LEAST = 2**30  # bytes that a process is taken to need before it has shown how much it holds
PATIENCE = 120  # s for a process to keep its state after it was told to stop


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: for its lines.
        arguments: after ``python -m cdmem``.
        log: file that takes its output, appended.
    """

    name: str
    arguments: Sequence[str]
    log: Path


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
        seconds: that it took.
        error: its last line, None after success.
    """

    seconds: float
    error: str | None


class Running:
    """A command that has been started.

    Args:
        job: which.
        cores: that it may use; None leaves that to the system.
    """

    def __init__(self, job: Job, cores: set[int] | None) -> None:
        self.job, self.started = job, time.monotonic()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        consent = [FLAG] if allows() else []
        with on_cores(cores), job.log.open("ab") as out:
            self.reader: IO[str] = job.log.open(encoding="utf-8", errors="replace")
            self.reader.seek(0, os.SEEK_END)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cdmem", *job.arguments, *consent],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C comes once, from here
            )
        self.last = ""

    def lines(self) -> list[str]:
        """What it has printed since the last look."""
        new = [line.strip() for line in self.reader.read().replace("\r", "\n").splitlines()]
        self.last = next((line for line in reversed(new) if line), self.last)
        return new

    def peak(self) -> int:
        """Most memory that it has held, bytes; 0 where the system does not say."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return 1024 * int(found[1]) if found else 0


def run_jobs(jobs: Sequence[Job], at_once: int, ended: Callable[[Job, Done], None]) -> None:
    """Run all, ``at_once`` at a time, in their order.

    The next one waits while less memory is free than the largest so far has held, at least 1 GiB.

    Args:
        jobs: what to run.
        at_once: at least 1.
        ended: told of every command that came to an end of its own.

    Raises:
        KeyboardInterrupt: after all of them have stopped and kept their state.
        RunFailure: the same after SIGTERM.
    """
    waiting, running = list(enumerate(jobs, 1)), dict[int, Running]()  # by share of the cores
    shares, largest = _shares(at_once), LEAST
    with _told_to_stop():
        try:
            while waiting or running:
                free = [k for k in range(at_once) if k not in running]
                largest = max([largest, *(r.peak() for r in running.values())])
                if waiting and free and (not running or _free_memory() > largest):
                    number, job = waiting.pop(0)
                    print(f"[{number}/{len(jobs)}] {job.name}: begun, log {job.log}", flush=True)
                    running[free[0]] = Running(job, shares[free[0]])
                    continue
                time.sleep(POLL)
                for share, run in list(running.items()):
                    code = run.process.poll()
                    for stage in itertools.chain.from_iterable(map(STAGE.findall, run.lines())):
                        print(f"{run.job.name}: {stage}", flush=True)
                    if code is not None:
                        del running[share]
                        run.reader.close()
                        seconds = round(time.monotonic() - run.started, 1)
                        done = Done(seconds, (run.last or f"exit code {code}") if code else None)
                        print(f"{run.job.name}: {done.error or f'finished in {seconds:.0f} s'}", flush=True)
                        ended(run.job, done)
        finally:
            _stop(list(running.values()))


def check_jobs(value: str) -> int:
    """``--jobs`` as a number.

    Raises:
        InputError: it is none from 1 on.
    """
    if not re.fullmatch(r"[1-9]\d{0,3}", value):
        raise InputError("jobs", value, "is no number of processes", "e.g. --jobs 2")
    return int(value)


@contextmanager
def on_cores(cores: set[int] | None) -> Iterator[None]:
    """A process that is started in the block may use these cores only."""
    before = os.sched_getaffinity(0) if cores else set()
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, before)


def _shares(at_once: int) -> list[set[int] | None]:
    """Cores of each of so many processes; with more processes than cores, they take turns."""
    if not hasattr(os, "sched_getaffinity"):
        return [None] * at_once
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[k % len(cores) :: at_once]) for k in range(at_once)]


def _free_memory() -> float:
    """Bytes that a new process can have; without limit where the system does not say."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return float("inf")
    return 1024 * int(found[1]) if found else float("inf")


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """SIGTERM ends the block as an interruption does."""

    def stop(*_: object) -> None:
        raise RunFailure("stopped by SIGTERM; the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(running: Sequence[Running]) -> None:
    """Tell all, then wait until each has kept its state."""
    for run in running:
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    for run in running:
        try:
            run.process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.process.wait()
        run.reader.close()
