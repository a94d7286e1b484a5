"""The plan against real checkpoints and counts of real runs of the same configurations, and its command."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from cdmem.cli.plan import duration, gib, si
from cdmem.data.sources import SOURCES, load_source
from cdmem.metrics.whitebox import intrinsic_dimension as dimension
from cdmem.models.speed import Speed
from cdmem.networks.mlp import MLP, MLPNetwork
from cdmem.run.folder import RunFolder
from cdmem.study import plan as planning
from cdmem.study.config import read_study, stage_arguments
from cdmem.study.plan import PlanSettings, count_devices, plan_study
from cdmem.study.stage import build
from cdmem.study.study import Study
from cdmem.training.ahead import Ahead
from cdmem.training.datamodule import MemorizationDataModule
from support.stages import callback, cdmem, stage, write, write_study

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


# ---- real runs of the same configurations ---------------------------------------------------------------------------

CALLBACKS = [
    callback("MemorizationCallback", samples=24, points=2),
    callback("QualityCallback", samples=16, points=3),
    callback("SampleGridCallback", samples=30),
    callback("NeighborPanelCallback", samples=20, shown=28),
    callback("WhiteboxCallback", samples=3, sigmas=[0.001, 0.5], images=9),
    callback("DecompositionCallback", samples=5, steps=3),
]
MODELS = {
    "teacher": {"sampler_points": 4},
    "heun": {"points": 5, "mu": 0.9, "mid_sigmas": [2.0, 0.5]},
    "euler": {"points": 5, "mu": 0.0, "solver": "euler", "data": "teacher_samples", "teacher_sample_count": 11},
    "regression": {"regression": True, "points": 5, "reuse": 3, "mid_sigmas": [0.5]},
}


def planned_stage(name: str) -> dict:
    """Three steps; those of the Heun student and of the regression are of two batches."""
    twice = name in ("heun", "regression")
    trainer = {"max_steps": 3, "callbacks": CALLBACKS, "accumulate_grad_batches": 2 if twice else 1}
    role = "teacher" if name == "teacher" else "student"
    return stage(role, trainer, {"held_out": 20}, ema_half_lives=[2, 5], **MODELS[name])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A study that ran, with what it spent, and its plan."""
    folder = tmp_path_factory.mktemp("plan")
    stages = {name: planned_stage(name) for name in MODELS}
    audit = {"samples": 16, "metrics": ["memorization"]}
    file = write_study(folder, audit, **stages)
    # Whose steps cost twice as much with twice the batch.
    write(folder / "linear.yaml", {"teacher": "teacher.yaml", "students": {"heun": "heun.yaml"}, "audit": audit})
    args = ["--config", file, "--run_dir", str(folder / "run"), "--wandb", "false"]
    config = read_study(args)
    stages, audit = plan_study(config, PlanSettings(tflops=1.0))
    made, spent = Study(config), {}
    for name, work in [*((name, cli.execute) for name, cli in made.stages.items()), ("audit", made.audit)]:
        with counting() as seen:
            work()
        spent[name] = sum(seen.values())
    plans = {plan["name"]: plan for plan in stages}
    return SimpleNamespace(folder=folder, config=config, plans=plans, audit=audit, spent=spent)


@contextmanager
def counting():
    """Counts images through any MLP, and backward passes to the image."""
    spent: Counter[str] = Counter()
    forward, grad = MLPNetwork.forward, torch.autograd.grad

    def counted(self, x, *rest):
        spent["forward"] += len(x)
        return forward(self, x, *rest)

    def counted_grad(output, point, *rest, **options):
        spent["products"] += len(point)
        return grad(output, point, *rest, **options)

    with (
        mock.patch.object(MLPNetwork, "forward", counted),
        mock.patch.object(dimension.torch.autograd, "grad", counted_grad),
    ):
        yield spent


@pytest.mark.parametrize(("name", "forward"), [("teacher", 1), ("heun", 2 + 1 + 1), ("euler", 1 + 1 + 1)])
def test_evaluations_are_those_of_the_real_run(run, name, forward):
    plan, evaluations = run.plans[name], run.plans[name]["evaluations"]
    # The pool of teacher samples (11, Heun on 4 points) is among the evaluations.
    assert run.spent[name] == plan["steps"] * plan["batch"] * forward + evaluations["count"]
    assert evaluations["moments"] == 3 + (name != "teacher")
    # Teacher and student have one network here: every evaluation costs the same.
    assert sum(evaluations["flops"].values()) == evaluations["count"] * plan["evaluation_flops"]


def test_images_that_share_a_trajectory_share_its_cost(run):
    """Groups of three: in a batch of eight, images 0 to 3 are of two groups, 4 to 7 too, one of which is cut in two.

    A trajectory is Heun on five points, and a Heun step to the sampling level.
    """
    evaluations = run.plans["regression"]["evaluations"]
    assert run.spent["regression"] == 3 * (8 + 2 * 2 * (2 * 4 + 2)) + evaluations["count"]


def test_the_audit_is_that_of_the_real_run(run):
    assert run.spent["audit"] == run.audit["evaluations"]
    assert set(run.audit["work"]) == set(MODELS)
    assert run.audit["flops"] == run.audit["evaluations"] * run.plans["teacher"]["evaluation_flops"]


@pytest.mark.parametrize("name", MODELS)
def test_steps_cost_what_torch_counts_in_the_real_run(run, name, tmp_path, monkeypatch):
    monkeypatch.setattr(Ahead, "pays", staticmethod(lambda *_: False))  # torch counts in one thread
    args = stage_arguments(run.config, name) + ["--run_dir", str(tmp_path), "--trainer.callbacks", "[]"]
    if name == "euler":
        args += ["--model.data.images", "same"]
    cli = build("fit", args)
    with FlopCounterMode(display=False) as counter:
        cli.execute()
    assert counter.get_total_flops() == run.plans[name]["steps"] * run.plans[name]["step_flops"]


@pytest.mark.parametrize("name", MODELS)
def test_memory_is_that_of_the_real_checkpoint(run, name):
    memory = run.plans[name]["memory"]
    checkpoint = torch.load(RunFolder(run.folder / "run" / name).last_checkpoint, weights_only=True)
    stored = sum(t.nbytes for t in checkpoint["state_dict"].values())
    # Sine frequencies of the MLP are held, not stored: width / 2 numbers in every copy.
    copies = 1 + 2 + (name == "heun")
    assert memory["weights"] + memory["averages"] + memory.get("target", 0) == stored + copies * 8 * 4
    assert memory["gradients"] == memory["weights"] - 8 * 4
    state = checkpoint["optimizer_states"][0]["state"].values()
    assert memory["optimizer"] == sum(t.nbytes for s in state for t in s.values())
    if name != "teacher":
        # On the device is what is distilled, not all that the teacher's checkpoint holds.
        assert memory["teacher"] == run.plans["teacher"]["memory"]["weights"]


def test_parameters_are_those_of_the_real_networks(run):
    size = sum(p.numel() for p in MLP(width=16, depth=1).build((1, 8, 8), 0, 0).parameters())
    assert run.plans["teacher"]["parameters"] == {"network": size, "averages": 2 * size}
    heun = {"network": size, "averages": 2 * size, "target": size, "teacher": 3 * size}
    assert run.plans["heun"]["parameters"] == heun
    assert run.plans["euler"]["parameters"] == heun | {"target": 0}


def test_a_student_alone_costs_what_it_costs_in_its_study(run, capsys):
    common = ["--config", run.folder / "heun.yaml", "--tflops", 1]
    for teacher in (["--teacher_config", run.folder / "teacher.yaml"], ["--model.teacher", run.folder / "run/teacher"]):
        (alone,) = plan_json(capsys, *common, *teacher)["stages"]
        assert alone == run.plans["heun"] | {"name": "student"}


# ---- the command ----------------------------------------------------------------------------------------------------

EXPECTED = {
    # Network of test_configs.test_network_size; 200 Mimg, 1,000 images, 8 x 64 a step.
    "cifar10/teacher.yaml": {"images_seen": 200_000_000, "micro_batch": 64, "shape": [3, 32, 32]},
    "celeba/teacher.yaml": {"images_seen": 1_024_000_000, "micro_batch": 64, "shape": [1, 32, 32]},
    "cifar10/teacher_vp.yaml": {"images_seen": 102_400_000, "micro_batch": 64, "shape": [3, 32, 32]},
    "debug/mlp_teacher.yaml": {"images_seen": 60 * 16, "micro_batch": 2, "shape": [1, 8, 8]},
}


def plan_json(capsys, *args: object) -> dict:
    assert cdmem("plan", *args, "--json") == 0
    return json.loads(capsys.readouterr().out)


SHIPPED = [
    pytest.param(name, marks=[pytest.mark.slow] if "celeba" in name or "vp" in name else []) for name in EXPECTED
]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_stages(name, capsys):
    plan = plan_json(capsys, "--config", CONFIGS / name, "--devices", 8, "--tflops", 100)
    (stage,) = plan["stages"]
    assert {key: stage.get(key, stage["images"].get(key)) for key in EXPECTED[name]} == EXPECTED[name]
    assert plan["audit"] is None and plan["total"]["flops"] == stage["flops"] > 0
    assert stage["memory_total"] == sum(stage["memory"].values())
    assert stage["device_hours"] == pytest.approx(8 * stage["hours"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "digits32", "debug", "cifar10", "celeba"])
def test_shipped_studies(name, capsys, tmp_path):
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    common = ["--config", CONFIGS / f"{name}.yaml", "--devices", 2, "--tflops", 100]
    plan = plan_json(capsys, *common)
    assert [s["name"] for s in plan["stages"]] == ["teacher", *content["students"]]
    for planned, file in zip(plan["stages"], [content["teacher"], *content["students"].values()]):
        given = yaml.safe_load((CONFIGS / file).read_text())["trainer"]
        assert planned["steps"] == given["max_steps"]
        assert planned["batch"] == 2 * planned["micro_batch"] * given.get("accumulate_grad_batches", 1)
    parts = [*plan["stages"], plan["audit"]]
    for key in ("flops", "hours", "device_hours"):
        assert plan["total"][key] == pytest.approx(sum(part[key] for part in parts))
    # The text says the same.
    assert cdmem("plan", *common) == 0
    printed = capsys.readouterr().out
    assert f"total: {si(plan['total']['flops'], 'FLOP')}" in printed and "stated, not measured" in printed
    assert not list(tmp_path.iterdir())


def test_overrides_rates_and_devices(run, capsys, tmp_path):
    before = sorted(run.folder.rglob("*"))
    common = ["--config", run.folder / "teacher.yaml"]
    slow, fast = (plan_json(capsys, *common, "--tflops", rate)["stages"][0] for rate in (1, 4))
    assert slow["hours"] == pytest.approx(4 * fast["hours"])
    assert slow["hours"] == pytest.approx(slow["flops"] / 1e12 / 3600)
    common += ["--tflops", 1]
    longer = plan_json(capsys, *common, "--trainer.max_steps", 30, "--trainer.callbacks", "[]")["stages"][0]
    assert longer["flops"] == 10 * (slow["step_flops"] * 3)
    # A node of GPUs, planned where there is none.
    gpu = ["--trainer.accelerator", "gpu", "--trainer.devices", "[0, 1]", "--trainer.num_nodes", 2]
    node = plan_json(capsys, *common, *gpu, "--trainer.precision", "16-mixed")["stages"][0]
    assert node["machine"] == {"devices": 4, "accelerator": "gpu", "precision": "16-mixed"}
    assert node["micro_batch"] == 1 and node["step_flops"] == slow["step_flops"]
    assert node["memory"]["gradient buckets of DDP"] == node["memory"]["gradients"]
    # What every device evaluates itself is not shared.
    shared, own = (slow["evaluations"]["flops"][key] for key in ("evaluations", "evaluations of every device"))
    assert node["evaluations"]["flops"] == {"evaluations": shared, "evaluations of every device": 4 * own}
    assert node["hours"] == pytest.approx(node["flops"] / 4 / 1e12 / 3600)
    assert sorted(run.folder.rglob("*")) == before and not list(tmp_path.iterdir())


@pytest.fixture
def shares(monkeypatch):
    """A training step takes 3 s an image, an evaluation 2 s; keeps the seconds that each stage may measure."""
    given = []

    def stand_in(model, data, most, seconds, **trainer):
        given.append(seconds)
        assert trainer == {"accelerator": "cpu", "precision": "32-true"}
        return Speed(3.0, 2.0, 2, 20, "cpu")

    monkeypatch.setattr(planning, "measure", stand_in)
    return given


def test_hours_follow_measured_seconds(run, shares, capsys):
    plan = plan_json(capsys, "--config", run.folder / "linear.yaml")
    for planned in plan["stages"]:
        seconds = 3.0 * planned["images_seen"] + 2.0 * planned["evaluations"]["count"]
        assert planned["hours"] == pytest.approx(seconds / 3600)
        assert planned["rates"]["source"] == "measured here (cpu) in 20 steps of 2 images, scaled to 4"
    assert plan["audit"]["hours"] == pytest.approx(2.0 * plan["audit"]["evaluations"] / 3600)
    assert shares == [30.0] * 2  # of a minute


def test_real_steps_are_measured(run, capsys):
    """Teacher and student, on this machine; 16 bit for another machine is not tried on it."""
    gpu = ["--trainer.accelerator", "auto", "--trainer.precision", "bf16-mixed"]
    common = ["--config", run.folder / "euler.yaml", "--teacher_config", run.folder / "teacher.yaml", *gpu]
    assert cdmem("plan", *common) == 0
    printed = capsys.readouterr().out
    assert "measured here (" in printed and "20 steps of 4 images" in printed and "teacher's samples" in printed


def test_a_sweep_is_the_sum_of_its_cells(run, shares, capsys):
    sweep = plan_json(capsys, "--config", run.folder / "linear.yaml", "--sweep", "data.batch_size=4,8")
    steps = sum(run.plans[name]["step_flops"] * run.plans[name]["steps"] for name in ("teacher", "heun"))
    alone = plan_json(capsys, "--config", run.folder / "linear.yaml", "--tflops", 1)["total"]["flops"]
    # Twice the batch is twice the steps' cost; the evaluations stay.
    assert [c["flops"] for c in sweep["cells"]] == [alone, alone + steps]
    assert sweep["total"]["flops"] == 2 * alone + steps
    assert [c["cell"] for c in sweep["cells"]] == ["data.batch_size=4", "data.batch_size=8"] and shares == [15.0] * 4


@pytest.mark.parametrize(
    ("data", "shape", "classes"),
    [
        ({"source": "digits"}, (1, 8, 8), 10),
        ({"source": "digits", "classes": [3, 5], "resolution": 12}, (1, 12, 12), 2),
        ({"source": "cifar10"}, (3, 32, 32), 10),
        ({"source": "cifar10", "grayscale": True, "crop": 24}, (1, 24, 24), 10),
        ({"source": "celeba", "resolution": 64}, (3, 64, 64), 0),
        ({"source": "celeba", "crop": 100, "grayscale": True}, (1, 100, 100), 0),
        ({"source": "folder", "path": "nowhere", "resolution": 16}, (3, 16, 16), 0),
        ({"source": "array", "path": "nowhere.npz", "resolution": 16, "grayscale": True}, (1, 16, 16), 0),
    ],
)
def test_the_shape_needs_no_data(data, shape, classes):
    module = MemorizationDataModule(**data, n=8, held_out=4, duplication=[{"fraction": 0.5, "copies": 3}])
    module.stand_in(labels=False)
    t = module.training_set
    assert (t.shape, t.num_classes, t.rows) == (shape, classes, 4 + 4 * 3)
    assert (len(t.images), len(t.held_out_images)) == (8, 4)


def test_other_shapes_are_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(20) % 4)
    for sized, shape in (({}, (3, 6, 10)), ({"resolution": 6, "grayscale": True}, (1, 6, 6))):
        data = MemorizationDataModule(source="array", path=str(tmp_path / "images.npz"), n=8, held_out=4, **sized)
        data.stand_in(labels=True)
        assert data.training_set.shape == shape and data.training_set.num_classes == 4
        assert "noise" not in data.training_set.provenance


def test_known_sources_are_what_they_say():
    """The digits are here to be asked; the others' numbers are published."""
    known, pool = SOURCES["digits"], load_source("digits")
    assert (known.channels, *known.size) == pool.images.shape[1:]
    assert (known.images, known.class_names) == (len(pool), pool.class_names)


@pytest.mark.parametrize(
    ("given", "devices"),
    [(8, 8), ("8", 8), ("auto", 1), (-1, 1), ([0, 2, 5], 3), ("[3]", 1), ("0,1", 2), ([4], 1)],
)
def test_devices_are_read_as_lightning_reads_them(given, devices):
    assert count_devices(given) == devices


TEACHER, STUDENT = "--config debug/teacher.yaml", "--config debug/student.yaml"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--json", "config="),
        ("--config none.yaml", "none.yaml"),
        ("--config debug/data.yaml", "neither"),
        ("--config sweeps/n.yaml", "neither"),
        (f"{TEACHER} --tflops fast", "tflops=fast"),
        (f"{TEACHER} --tflops 0", "tflops=0: must be positive"),
        (f"{TEACHER} --devices 0", "devices=0: needs at least one"),
        (f"{TEACHER} --devices 3", "data.batch_size=16"),
        (f"{TEACHER} --trainer.devices many", "trainer.devices=many"),
        (f"{TEACHER} --model.no_such 3", "no_such"),
        (f"{TEACHER} --trainer.max_steps=-1", "max_steps"),
        (f"{TEACHER} --data.n 1800", "data.n=1800"),
        (f"{TEACHER} --data.n 1", "data.n=1"),
        (f"{TEACHER} --data.resolution 7", "data.resolution"),
        (f"{TEACHER} --data.source folder", "data.path"),
        (f"{TEACHER} --sweep data.n=8,16", "sweep"),
        (STUDENT, "--teacher_config FILE"),
        (f"{STUDENT} --model.teacher nowhere", "--teacher_config FILE"),
        (f"{STUDENT} --teacher_config {CONFIGS}/debug/ct_control.yaml", "a Student"),
        (f"--config debug.yaml --teacher_config {CONFIGS}/debug/teacher.yaml", "teacher_config"),
        ("--config debug.yaml --teacher.modl.lr 3", "modl"),
        ("--config debug.yaml --student.data.n 8", "student.data"),
        ("--config debug.yaml --teacher.config debug/ct_control.yaml", "teacher=Student: is not a teacher"),
    ],
)
def test_bad_input_is_one_line(args, words, capsys, monkeypatch):
    monkeypatch.chdir(CONFIGS)
    assert cdmem("plan", *args.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("cdmem: error: ") and printed.err.count("\n") == 1 and words in printed.err
    assert not printed.out


def test_numbers_for_people():
    texts = [si(v, "FLOP") for v in (0, 999, 12_434_276_352, 999_600, 7.49e18, 1e30)]
    assert texts == ["0 FLOP", "999 FLOP", "12.4 GFLOP", "1 MFLOP", "7.49 EFLOP", "1000000 YFLOP"]
    assert [gib(v) for v in (2**31, 2**20)] == ["2.00 GiB", "1.00 MiB"]
    assert [duration(h) for h in (1 / 3600, 0.5, 2, 240)] == ["1.0 s", "30.0 min", "2.0 h", "240 h (10 days)"]
