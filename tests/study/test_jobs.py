"""Several commands at once: what they leave is what one after the other leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from cdmem.errors import InputError, RunFailure
from cdmem.run.folder import RunFolder
from cdmem.study import jobs as room
from cdmem.study.jobs import Done, Job, check_jobs, run_jobs
from support.stages import cdmem

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch, tmp_path):
    """``python -m cdmem NAME`` is a shell script of that name here."""
    real = subprocess.Popen

    def popen(command, **options):
        return real(["bash", str(tmp_path / command[3])], **options)

    monkeypatch.setattr(room.subprocess, "Popen", popen)
    monkeypatch.setattr(room, "POLL", 0.02)

    def write(name: str, text: str) -> Job:
        (tmp_path / name).write_text(text)
        return Job(name, [name], tmp_path / "logs" / f"{name}.log")

    return write


def run(jobs, at_once=2) -> dict[str, Done]:
    ended: dict[str, Done] = {}
    run_jobs(jobs, at_once, lambda job, done: ended.setdefault(job.name, done))
    return ended


def test_one_that_fails_ends_only_itself(script, tmp_path, capsys):
    jobs = [
        script("a", "echo '[1/3] teacher'; exit 0"),
        script("b", "echo 'cdmem: error: no'; exit 2"),
        script("c", ""),
    ]
    ended = run(jobs)
    assert [ended[n].error for n in "abc"] == [None, "cdmem: error: no", None]
    printed = capsys.readouterr().out.splitlines()
    assert "a: [1/3] teacher" in printed and "b: cdmem: error: no" in printed
    assert [line for line in printed if line.startswith("[")] == [
        f"[{k}/3] {n}: begun, log {tmp_path}/logs/{n}.log" for k, n in enumerate("abc", 1)
    ]
    assert (tmp_path / "logs/a.log").read_text() == "[1/3] teacher\n"


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (2, 2), (3, 3)])
def test_so_many_at_once(at_once, most, script, tmp_path):
    (tmp_path / "now").mkdir()
    here = f"{tmp_path}/now"
    text = "touch {here}/{name}; for i in 1 2 3 4 5 6; do ls {here} | wc -l; sleep 0.05; done; rm {here}/{name}"
    ended = run([script(name, text.format(here=here, name=name)) for name in "abcdef"], at_once)
    assert len(ended) == 6 and not any(done.error for done in ended.values())
    seen = [int(x) for name in "abcdef" for x in (tmp_path / f"logs/{name}.log").read_text().split()]
    assert max(seen) == most


def test_they_share_the_cores(script, tmp_path):
    have = sorted(os.sched_getaffinity(0))
    run([script(name, "taskset -cp $$ | sed 's/.*: //'; sleep 0.3") for name in "ab"], len(have))
    said = [(tmp_path / f"logs/{name}.log").read_text().strip() for name in "ab"]
    assert said == [str(have[0]), str(have[1 % len(have)])]
    assert sorted(os.sched_getaffinity(0)) == have


@pytest.mark.parametrize("free", [0.0, 2.0**29])  # nothing, and less than a process that has only begun will need
def test_the_next_waits_for_memory(free, script, monkeypatch):
    monkeypatch.setattr(room, "_free_memory", lambda: free)
    jobs = [script(name, "date +%s.%N; sleep 0.3; date +%s.%N") for name in "ab"]
    run(jobs)
    times = [[float(x) for x in job.log.read_text().split()] for job in jobs]
    assert times[0][1] <= times[1][0]


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, RunFailure)])
def test_told_to_stop_it_tells_all_and_waits(number, error, script, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist ignores it
    text = "trap 'sleep 0.2; echo kept; exit 143' TERM; echo up; for i in $(seq 1500); do sleep 0.02; done"
    jobs = [script(name, text) for name in "ab"]

    def tell():
        while not all(job.log.is_file() and "up" in job.log.read_text() for job in jobs):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    watcher = threading.Thread(target=tell)
    watcher.start()
    try:
        with pytest.raises(error):
            run(jobs)
    finally:
        signal.signal(signal.SIGINT, before)
    watcher.join()
    assert [job.log.read_text().split() for job in jobs] == [["up", "kept"]] * 2


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ""])
def test_no_number(value):
    with pytest.raises(InputError, match="jobs"):
        check_jobs(value)


def digests(folder: Path) -> dict[str, object]:
    """Models by name, with all that was measured."""
    summary = json.loads((folder / "audit/summary.json").read_text())
    return {f"{m['name']} {m['nfe']}": (m["step"], m["f_mem"], m["variance_ratio"]) for m in summary["models"]}


@pytest.mark.slow
def test_students_and_cells_side_by_side(tmp_path, monkeypatch, capsys):
    """A study's students and a sweep's cells: the numbers of one after the other; given again, nothing runs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    study = ["study", "--config", "configs/debug.yaml", "--run_dir"]
    steps = ("teacher", "student", "heldout", "control")
    short = ["--audit.samples", 16, *(x for name in steps for x in (f"--{name}.trainer.max_steps", 4))]
    assert cdmem(*study, tmp_path / "one", *short) == 0
    assert cdmem(*study, tmp_path / "two", *short, "--jobs", 2) == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    sweep = [*study, tmp_path / "sweep", *short, "--jobs", 2, "--sweep", "seed=0,1"]
    capsys.readouterr()
    assert cdmem(*sweep) == 0
    printed = capsys.readouterr().out
    assert printed.count(": begun, log") == 2
    assert printed.rindex(": begun, log") < printed.index(": finished in")  # side by side
    record = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [cell["status"] for cell in record["cells"]] == ["finished"] * 2
    assert cdmem(*sweep) == 0 and "begun" not in capsys.readouterr().out
    assert RunFolder(tmp_path / "sweep/seed=1").ending() is None
