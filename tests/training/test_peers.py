"""When one process of a distributed run is killed, the others end soon, and the same command goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_ddp import CONFIG, TWO, environment

from cdmem.errors import RunFailure
from cdmem.run.folder import RunFolder
from cdmem.training.engine import watching_peers

BOUND = 60  # s; gloo needs one, Lightning's observer five
STEPS = 200


def start(folder: Path) -> subprocess.Popen:
    callbacks = [{"class_path": "cdmem.training.RunCheckpoint", "init_args": {"every_n_steps": 20}}]
    changed = {"max_steps": STEPS, "log_every_n_steps": 1, "callbacks": callbacks}
    config = folder.parent / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG | {"trainer": CONFIG["trainer"] | changed}))
    command = [sys.executable, "-m", "cdmem", "fit", "--config", str(config), "--run_dir", str(folder)]
    with (folder.parent / "log").open("a") as log:
        return subprocess.Popen([*command, *TWO], stdout=log, stderr=subprocess.STDOUT, env=environment())


def child_of(pid: int) -> int:
    """The rank that Lightning's launcher started."""
    children = [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    return next(c for c in children if b"cdmem" in Path(f"/proc/{c}/cmdline").read_bytes())


def wait_for(condition, seconds: float, log: Path) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"nothing within {seconds} s: {log.read_text()}"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(
    "rank, how",
    [
        (0, signal.SIGKILL),
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_both_ranks_end_and_the_same_command_goes_on(rank, how, tmp_path):
    run = tmp_path / "run"
    first = start(run)
    rows, told = run / "metrics.jsonl", tmp_path / "log"

    def under_way() -> bool:
        assert first.poll() is None, told.read_text()
        return rows.is_file() and len(rows.read_text().splitlines()) > 30

    wait_for(under_way, 300, told)  # no claim: a loaded machine starts slowly
    ranks = [first.pid, child_of(first.pid)]
    os.kill(ranks[rank], how)
    wait_for(lambda: first.poll() is not None and not alive(ranks[1]), BOUND, told)
    log = told.read_text()
    if how == signal.SIGKILL:
        assert first.returncode != 0
        assert "lost another process of the run" in log or "terminated with code" in log, log
    else:
        # Told to one rank, agreed by both: they stop at the same step, whose state is kept.
        assert first.returncode == 143 and "run again, it goes on from step" in log, log
        stopped, kept = re.search(r"stopped at step (\d+); run again, it goes on from step (\d+)", log).groups()
        assert stopped == kept and int(kept) % 10 == 0
    ending = RunFolder(run).ending()  # none after a kill without warning
    assert ending is None or ending.ended == "interrupted"
    assert start(run).wait(120) == 0, told.read_text()
    losses = [json.loads(line)["step"] for line in rows.read_text().splitlines()]
    assert losses == list(range(STEPS))  # neither gaps nor doubles


class Pair:
    world_size, global_rank = 2, 1


def test_a_lost_peer_is_one_line():
    with (
        pytest.raises(RunFailure, match=r"rank 1 lost another process .*Connection closed by peer") as told,
        watching_peers(Pair()),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547]\n Connection closed by peer [127.0.0.1]:1234")
    assert "\n" not in str(told.value) and "same command goes on" in str(told.value)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), watching_peers(Pair()):
        raise RuntimeError("shape mismatch")
