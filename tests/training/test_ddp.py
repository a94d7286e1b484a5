"""Two gloo processes sharing the global batch do what one process does."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from support.settings import nested
from support.spying import run_jobs, spied

ROOT = Path(__file__).resolve().parents[2]
TEACHER, STUDENT = "cdmem.training.DiffusionTeacher", "cdmem.training.Student"
# An SGD step is linear in the gradient, so that the difference is float32 rounding only.
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}
CONFIG = {
    "threads": 1,
    "wandb": False,
    "data": {"n": 8, "held_out": 150, "batch_size": 4, "predict_samples": 5},
    "model": {
        "class_path": TEACHER,
        "init_args": nested(
            "teacher",
            network={"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1}},
            optimizer=SGD,
            ema_half_lives=[2],
            sampler_points=4,
        ),
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 6,
        "log_every_n_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {"class_path": "support.spying.Spy"},
            {"class_path": "callbacks.MemorizationCallback", "init_args": {"cadence": {"samples": 25, "points": 2}}},
            {"class_path": "callbacks.QualityCallback", "init_args": {"cadence": {"samples": 25, "points": 2}}},
        ],
    },
}
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def student(**options):
    config = copy.deepcopy(CONFIG)
    given = {"points": 6, "optimizer": SGD, "ema_half_lives": [2, 3], "mu": 0.5, "lr_schedule": "constant"} | options
    config["model"] = {"class_path": STUDENT, "init_args": nested("student", **given)}
    return config


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return os.environ | {"PYTHONPATH": path, "WANDB_MODE": "disabled"}


def launch(command, log, timeout=200):
    """Run a command that must succeed, in a process of its own."""
    with log.open("w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, timeout=timeout, env=environment())
    assert done.returncode == 0, log.read_text()


def torchrun(processes, *arguments):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*start, *map(str, arguments)]


def result(folder):
    """Weights and rows of a run."""
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def jobs_of(folder, extra):
    """Runs of all kinds; each student is of this folder's own teacher."""
    constant = {"teacher": str(folder / "teacher"), "dropout": 0.4}
    configs = {
        "teacher": CONFIG,
        "student": student(
            teacher=str(folder / "teacher"), mu="adaptive", curriculum="sqrt", start_points=2, lr_schedule="cosine"
        ),
        "bf16": student(teacher=str(folder / "teacher")),
        "dropout": student(**constant),
        "half": student(**constant),
        "resumed": student(**constant),
    }
    configs["bf16"]["trainer"]["precision"] = "bf16-mixed"
    configs["half"]["trainer"]["max_steps"] = 3
    folder.mkdir()
    jobs = []
    for name, config in configs.items():
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config))
        args = ["--config", str(file), "--run_dir", str(folder / name), *extra]
        jobs.append(("fit", args + (["--ckpt_path", str(folder / "half/checkpoints/last.ckpt")] * (name == "resumed"))))
    last = ["--config", str(folder / "teacher.yaml"), "--run_dir", str(folder / "teacher"), *extra]
    return [*jobs, ("validate", last), ("predict", last)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same runs in this process and, by torchrun, in two."""
    folder = tmp_path_factory.mktemp("ddp")
    torch.set_num_threads(1)
    run_jobs(jobs_of(folder / "one", []))
    (folder / "jobs.json").write_text(json.dumps(jobs_of(folder / "two", TWO)))
    launch(torchrun(2, ROOT / "tests/support/spying.py", folder / "jobs.json"), folder / "log")
    return folder


def near_rows(one, many):
    """Rows of samples that differ in the last bits: where rounding to grey levels falls the other way, a distance moves
    by at most the length of that change, here of four pixels by one level; only a tie within that may change the group.
    """
    gap = 2.0
    d1, d2 = (np.sqrt(one[key].astype(float)) for key in ("squared1", "squared2"))
    for key, own in (("squared1", d1), ("squared2", d2)):
        np.testing.assert_allclose(np.sqrt(many[key].astype(float)), own, rtol=0, atol=gap)
    apart = d2 - d1 > 2 * gap
    assert apart.any() and (many["group1"] == one["group1"])[apart].all()
    assert (many["tolerant_group"] == one["tolerant_group"]).mean() > 0.8
    for key in set(one.files) - {"squared1", "squared2", "group1", "tolerant_ratio", "tolerant_group"}:
        np.testing.assert_allclose(many[key], one[key], rtol=1e-3, atol=1e-4)


@pytest.mark.sensitive
@pytest.mark.parametrize("name", ["teacher", "student", "bf16"])
def test_two_processes_equal_one(runs, name):
    (one, rows_one), (two, rows_two) = result(runs / "one" / name), result(runs / "two" / name)
    assert one.keys() == two.keys()
    # bfloat16 rounds what the order of a sum has changed: 2^-9 of a gradient, times the learning rate.
    absolute, relative = (2e-3, 0.05) if name == "bf16" else (1e-6, 1e-4)
    for key in one:
        assert torch.allclose(one[key], two[key], atol=absolute), key
    assert [r["step"] for r in rows_one] == [r["step"] for r in rows_two]
    # Every second step a loss; evaluations at 2 steps by 2 callbacks, and at step 0 for a student.
    assert len(rows_one) == 3 + 2 * (2 if name == "teacher" else 3)
    for a, b in zip(rows_one, rows_two):
        assert a.keys() == b.keys()
        for key in set(a) - {"time"}:
            assert b[key] == pytest.approx(a[key], rel=relative, abs=absolute), key


@pytest.mark.parametrize("name", ["teacher", "student", "bf16", "dropout"])
def test_ranks_share_the_images_and_agree_on_everything_else(runs, name):
    (one,), (a, b) = spied(runs / "one" / name), spied(runs / "two" / name)
    assert (one["world_size"], a["world_size"], b["world_size"]) == (1, 2, 2) and a["pid"] != b["pid"]
    assert [x + y for x, y in zip(a["images"], b["images"], strict=True)] == one["images"]
    assert a["digests"] == b["digests"] and len(set(a["digests"])) == 6
    assert a["measured"] == b["measured"] and a["measured"][-1]
    assert a["losses"] != b["losses"]


def test_the_logged_loss_is_the_mean_over_ranks_without_a_collective_at_every_step(runs):
    a, b = spied(runs / "two/student")
    logged = [(r["step"], r["train/loss"]) for r in result(runs / "two/student")[1] if "train/loss" in r]
    assert [step for step, _ in logged] == [1, 3, 5]
    for step, loss in logged:
        assert loss == pytest.approx((a["losses"][step] + b["losses"][step]) / 2, rel=1e-5)
        assert loss != pytest.approx(a["losses"][step], rel=1e-5)
    # Step 0 is looked at too: a run that diverges at once says so.
    assert a["reduced"] == b["reduced"] == [0, 1, 3, 5]


def test_ranks_drop_different_units(runs):
    (one,), (a, b) = spied(runs / "one/dropout"), spied(runs / "two/dropout")
    seeds = a["dropout"] + b["dropout"]
    assert len(seeds) == len(set(seeds)) == 12
    # Rank 0 has the stream of a single process; so the runs are alike but, with dropout, not equal.
    assert a["dropout"] == one["dropout"]
    weights = [result(runs / n / "dropout")[0]["raw.network.inputs.weight"] for n in ("one", "two")]
    assert not torch.allclose(*weights, atol=1e-6)


@pytest.mark.parametrize("processes", ["one", "two"])
def test_resume_is_exact(runs, processes):
    straight, resumed = (result(runs / processes / name)[0] for name in ("dropout", "resumed"))
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)


@pytest.mark.sensitive
def test_every_seed_is_measured_once(runs):
    """25 samples on 2 ranks: 13 and 12."""
    files = [sorted((runs / n / "student/evaluations").glob("step=*.npz")) for n in ("one", "two")]
    assert [f.name for f in files[0]] == [f.name for f in files[1]] and len(files[0]) == 6
    for one, two in zip(*([np.load(f) for f in fs] for fs in files)):
        assert set(one.files) == set(two.files)
        assert sorted(two["seeds"]) == list(range(25)) == one["seeds"].tolist()
        near_rows(one, two)


@pytest.mark.sensitive
def test_validate_and_predict(runs):
    """Held-out images fill 3 batches, which 2 ranks cannot share evenly; 5 seeds neither."""
    values = [json.loads((runs / n / "teacher/validate/step=00000006.json").read_text()) for n in ("one", "two")]
    assert values[1] == pytest.approx(values[0], rel=1e-5) and "validate/loss_held_out" in values[0]
    one, two = (np.load(runs / n / "teacher/samples/predict.npz") for n in ("one", "two"))
    assert one["seeds"].tolist() == two["seeds"].tolist() == list(range(5))
    assert np.abs(one["images"].astype(int) - two["images"].astype(int)).max() <= 1


@pytest.mark.slow
@pytest.mark.sensitive
def test_a_rank_without_samples(tmp_path):
    """2 samples on 3 ranks: the third has none, and nobody waits for it."""
    config = copy.deepcopy(CONFIG)
    config["data"]["batch_size"] = 6
    config["trainer"]["callbacks"] = [
        {"class_path": "support.spying.Spy"},
        {"class_path": "callbacks.MemorizationCallback", "init_args": {"cadence": {"samples": 2, "points": 1}}},
    ]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    args = ["--config", str(tmp_path / "config.yaml"), "--run_dir"]
    run_jobs([("fit", [*args, str(tmp_path / "one")])])
    three = [*args, tmp_path / "three", "--trainer.devices", "3", "--trainer.strategy", "ddp"]
    launch(torchrun(3, "-m", "cdmem", "fit", *three), tmp_path / "log")
    files = [next((tmp_path / n / "evaluations").glob("*.npz")) for n in ("one", "three")]
    one, three = map(np.load, files)
    assert three["seeds"].tolist() == [0, 1]
    near_rows(one, three)
    ranks = spied(tmp_path / "three")
    assert len(ranks) == 3 and len({json.dumps([r["digests"], r["measured"]]) for r in ranks}) == 1


@pytest.mark.slow
def test_a_study_on_two_processes_ends_with_one_audit(tmp_path):
    """Both stages train on two processes; one of them audits, and nobody waits for ever."""
    config = CONFIG | {"trainer": CONFIG["trainer"] | {"callbacks": CONFIG["trainer"]["callbacks"][1:]}}
    model = {"class_path": STUDENT, "init_args": nested("student", points=4, ema_half_lives=[2])}
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(config | {"model": model}))
    study = {"teacher": "teacher.yaml", "students": {"student": "student.yaml"}, "audit": {"samples": 10}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "cdmem", "study", "--config", str(tmp_path / "study.yaml")]
    for stage in ("teacher", "student"):
        command += [f"--{stage}.trainer.devices", "2", f"--{stage}.trainer.strategy", "ddp"]
    launch([*command, "--run_dir", str(tmp_path / "run")], tmp_path / "log")
    summary = json.loads((tmp_path / "run/audit/summary.json").read_text())
    # The teacher at three costs, the student at two, and its ceilings.
    assert [m["samples"] for m in summary["models"]] == [10] * 7
