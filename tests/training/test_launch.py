"""Whoever starts the processes (Lightning, torchrun, SLURM), the run is the same."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.strategies import Strategy
from test_ddp import CONFIG, TWO, environment, launch, result, torchrun

import support
from cdmem.errors import InputError
from cdmem.study.stage import build
from cdmem.training.engine import check_launch
from support.spying import run_jobs, spied

DOCS = Path(__file__).resolve().parents[2] / "docs/clusters.md"
CLUSTER = ("SLURM_", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "RANK", "WORLD_SIZE", "NODE_RANK")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """These tests may themselves run inside a job."""
    for name in [n for n in os.environ if n.startswith(CLUSTER)]:
        monkeypatch.delenv(name)


def arguments(folder, name, *extra):
    config = copy.deepcopy(CONFIG)
    config["trainer"]["callbacks"] = [{"class_path": "support.spying.Spy"}]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(folder / "config.yaml"), "--run_dir", str(folder / name), *extra]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the run of one process in it."""
    path = tmp_path_factory.mktemp("launch")
    run_jobs([("fit", arguments(path, "one"))])
    return path


def same_run(folder, name, detected):
    """Two processes, found by the environment named, did what one did."""
    (one, rows_one), (two, rows_two) = result(folder / "one"), result(folder / name)
    for key in one:
        assert torch.allclose(one[key], two[key], atol=1e-6), key
    assert [r["step"] for r in rows_one] == [r["step"] for r in rows_two]
    for a, b in zip(rows_one, rows_two):
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-4)
    ranks = spied(folder / name)
    assert [(r["world_size"], r["environment"]) for r in ranks] == [(2, detected)] * 2
    assert ranks[0]["digests"] == ranks[1]["digests"]
    (images,) = (r["images"] for r in spied(folder / "one"))
    assert [x + y for x, y in zip(*(r["images"] for r in ranks), strict=True)] == images


@pytest.mark.slow
def test_lightnings_own_launcher(folder):
    args = arguments(folder, "lightning", *TWO)
    launch([sys.executable, "-m", "cdmem", "fit", *args], folder / "lightning.log")
    same_run(folder, "lightning", "LightningEnvironment")


def test_torchrun(folder):
    launch(torchrun(2, "-m", "cdmem", "fit", *arguments(folder, "torchrun", *TWO)), folder / "torchrun.log")
    same_run(folder, "torchrun", "TorchElasticEnvironment")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_tasks(arguments, tasks=2):
    """What ``srun python -m cdmem fit ...`` starts on one node."""
    shared = {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NAME": "cdmem",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "cdmem", "fit", *arguments],
            env=environment() | shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(tasks)
    ]


def finish(processes):
    """Exit codes and output."""
    try:
        outputs = [p.communicate(timeout=120)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [p.returncode for p in processes], outputs


def test_slurm(folder):
    codes, outputs = finish(start_tasks(arguments(folder, "slurm", *TWO)))
    assert codes == [0, 0], outputs
    same_run(folder, "slurm", "SLURMEnvironment")


@pytest.mark.slow
def test_slurm_ends_a_job_and_the_same_command_goes_on(folder):
    """SIGTERM to both tasks, as ``--signal=TERM@300`` sends it; then the requeued job."""
    steps = ["--trainer.max_steps", "2000", "--trainer.log_every_n_steps", "50", "--ckpt_path", "last"]
    args, metrics = arguments(folder, "ended", *TWO, *steps), folder / "ended/metrics.jsonl"
    processes = start_tasks(args)
    until = time.monotonic() + 90
    while not metrics.is_file() or metrics.read_text().count("\n") < 2:
        assert time.monotonic() < until and all(p.poll() is None for p in processes)
        time.sleep(0.05)
    for p in processes:
        p.send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [143, 143], outputs  # what the sbatch file of docs/clusters.md asks for
    assert result(folder / "ended")[1][-1]["step"] < 1999
    codes, outputs = finish(start_tasks(args))
    assert codes == [0, 0], outputs
    assert [r["step"] for r in result(folder / "ended")[1]] == list(range(49, 2000, 50))


def test_the_documented_timeout_is_understood(tmp_path):
    text = DOCS.read_text(encoding="utf-8").partition("```yaml")[2].partition("```")[0]
    strategy = yaml.safe_load(text)["trainer"]["strategy"]
    (tmp_path / "strategy.yaml").write_text(yaml.safe_dump({"trainer": {"strategy": strategy}}))
    cli = build("fit", [*arguments(tmp_path, "x"), "--config", str(tmp_path / "strategy.yaml")])
    assert cli.trainer.strategy._timeout == timedelta(hours=2)


@pytest.mark.parametrize(
    ("options", "tasks", "nodes", "key", "hint"),
    [
        ({"devices": 1}, 2, 1, "trainer.devices", "devices=2"),
        ({"devices": 2}, 2, 3, "trainer.num_nodes", "num_nodes=3"),
        ({"devices": 3, "num_nodes": 1}, 3, 1, "data.batch_size", "multiple of 3"),
    ],
)
def test_processes_that_do_not_fit_are_refused(options, tasks, nodes, key, hint, monkeypatch):
    started = {"NTASKS": tasks * nodes, "NTASKS_PER_NODE": tasks, "NNODES": nodes, "NODEID": 0, "PROCID": 0}
    for name, value in (started | {"LOCALID": 0, "JOB_ID": 7, "JOB_NAME": "x", "NODELIST": "127.0.0.1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    trainer = support.make_trainer(1, strategy="ddp", **options)
    with pytest.raises(InputError, match=rf"^{key}=.*{hint}"):
        check_launch(trainer, 4)


def test_processes_that_fit():
    check_launch(support.make_trainer(1), 3)
    check_launch(support.make_trainer(1, devices=2, strategy="ddp"), 4)


def test_a_strategy_that_splits_the_network_is_refused():
    trainer = support.make_trainer(1)
    trainer.strategy.__class__ = type("FSDPStrategy", (Strategy,), {"__abstractmethods__": frozenset()})
    with pytest.raises(InputError, match=r"^trainer\.strategy=.*whole network"):
        check_launch(trainer, 4)
