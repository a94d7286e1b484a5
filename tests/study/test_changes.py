"""The record is what ran: settings that change where a run goes on are applied and written down, or refused."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from cdmem.audit.distillation_curve import Copies, distillation_record
from cdmem.errors import InputError
from cdmem.run.folder import RunFolder
from cdmem.study.stage import build
from support.stages import cdmem, checkpoint, fit, rows, same_weights, stage, write_study

OPTIMIZER = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
config = partial(stage, optimizer=OPTIMIZER, lr_schedule="constant")
LR = "model.init_args.optimization.optimizer.init_args.lr"
OPTION = "--model.optimization.optimizer.init_args.lr"


def changes(folder: Path) -> list[dict]:
    return json.loads((folder / "changes.json").read_text())


def settings(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


def kept(folder: Path) -> dict[Path, bytes]:
    """Every file of a run, but for its lock and the logs that W&B's own process may still be writing."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p: p.read_bytes() for p in files if not p.match("debug-*.log")}


@pytest.fixture
def half(tmp_path) -> Path:
    """A constant-rate run of 3 steps."""
    assert fit(tmp_path, config("teacher", {"max_steps": 3})) == 0
    return tmp_path


def test_longer_is_what_one_long_run_gives(half):
    assert fit(half, config("teacher")) == 0
    assert fit(half, config("teacher"), run="whole") == 0
    assert same_weights(half / "run", half / "whole") and rows(half / "run") == rows(half / "whole")
    assert changes(half / "run") == [{"step": 3, "key": "trainer.max_steps", "old": 3, "new": 6}]
    assert settings(half / "run")["trainer"]["max_steps"] == 6


def test_another_rate_is_applied_and_recorded(half, capsys):
    assert fit(half, config("teacher"), OPTION, 0.5) == 0
    assert {r["step"]: r["train/lr"] for r in rows(half / "run") if "train/lr" in r} == dict.fromkeys(
        range(3), 0.01
    ) | dict.fromkeys(range(3, 6), 0.5)
    assert {"step": 3, "key": LR, "old": 0.01, "new": 0.5} in changes(half / "run")
    assert f"from step 3 on: {LR}: 0.01 -> 0.5" in capsys.readouterr().out
    group = checkpoint(half / "run")["optimizer_states"][0]["param_groups"][0]
    assert (
        group["lr"] == 0.5
        and settings(half / "run")["model"]["init_args"]["optimization"]["optimizer"]["init_args"]["lr"] == 0.5
    )
    assert fit(half, config("teacher"), run="whole") == 0
    assert not same_weights(half / "run", half / "whole")


def test_a_checkpoint_elsewhere_takes_the_settings_it_is_given(half):
    """The same weights whatever the rate, and a record that says otherwise, is what must not be."""
    runs = {}
    for rate in (0.01, 0.1):
        old = half / "run/checkpoints/last.ckpt"
        assert fit(half, config("teacher"), OPTION, rate, "--ckpt_path", old, run=f"new{rate}") == 0
        runs[rate] = half / f"new{rate}"
    assert not same_weights(*runs.values())
    assert [c["key"] for c in changes(runs[0.1])] == [LR, "trainer.max_steps"]
    assert [c["key"] for c in changes(runs[0.01])] == ["trainer.max_steps"]
    assert fit(half, config("teacher")) == 0
    assert same_weights(half / "run", runs[0.01])


@pytest.mark.parametrize("name", ["betas", "weight_decay"])
def test_every_hyperparameter_is_applied(name, half):
    value = [0.5, 0.6] if name == "betas" else 0.25
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01, name: value}}
    assert fit(half, config("teacher", optimizer=optimizer)) == 0
    group = checkpoint(half / "run")["optimizer_states"][0]["param_groups"][0]
    assert list(torch.as_tensor(group[name]).reshape(-1).tolist()) == pytest.approx(
        list(torch.as_tensor(value).reshape(-1).tolist())
    )


def moved(before: dict, after: dict) -> float:
    """The largest change of a weight of the network."""
    keys = [k for k in before["state_dict"] if k.startswith("raw.network.")]
    return max(float((after["state_dict"][k] - before["state_dict"][k]).abs().max()) for k in keys)


def test_clipping_is_applied(half):
    """Adam's step is lr m / (sqrt(v) + eps): moments of before decay, gradients of 1e-30 add nothing."""
    before = checkpoint(half / "run")
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01, "betas": [0.0, 0.0]}}
    assert fit(half, config("teacher", {"gradient_clip_val": 1e-30}, optimizer=optimizer)) == 0
    assert moved(before, checkpoint(half / "run")) < 1e-12
    assert {"trainer.gradient_clip_val"} < {c["key"] for c in changes(half / "run")}


def test_precision_is_applied(half):
    assert fit(half, config("teacher", {"precision": "bf16-mixed"})) == 0
    assert {"step": 3, "key": "trainer.precision", "old": None, "new": "bf16-mixed"} in changes(half / "run")
    assert fit(half, config("teacher"), run="whole") == 0
    later = [[r["train/loss"] for r in rows(half / name) if r["step"] >= 3] for name in ("run", "whole")]
    assert later[0] != later[1] and later[0] == pytest.approx(later[1], rel=0.05)


def test_another_cadence_is_applied(half):
    cadence = {"cadence": {"samples": 4, "points": 6, "spacing": "linear"}}
    callback = {"class_path": "callbacks.MemorizationCallback", "init_args": cadence}
    assert fit(half, config("teacher", {"callbacks": [callback]})) == 0
    assert [r["step"] for r in rows(half / "run") if "memorization/f_mem" in r] == [4, 5, 6]
    assert [c["key"] for c in changes(half / "run")] == ["trainer.callbacks", "trainer.max_steps"]


def test_a_cosine_becomes_constant(tmp_path):
    assert fit(tmp_path, config("teacher", {"max_steps": 4}, lr_schedule="cosine")) == 0
    assert fit(tmp_path, config("teacher", {"max_steps": 6})) == 0
    rates = {r["step"]: r["train/lr"] for r in rows(tmp_path / "run") if "train/lr" in r}
    assert rates == pytest.approx({s: cosine(s, 0, 4) for s in range(4)} | {4: 0.01, 5: 0.01}, rel=1e-12)


def cosine(step: int, start: int, end: int) -> float:
    return 0.01 * 0.5 * (1 + math.cos(math.pi * (step - start) / (end - start)))


COOLDOWN = "--model.optimization.cooldown_steps"


def logged_rates(folder: Path) -> dict[int, float]:
    return {r["step"]: r["train/lr"] for r in rows(folder) if "train/lr" in r}


def full_rate(folder: Path) -> list[int]:
    """Which steps an audit takes for those at the full rate."""
    return distillation_record(RunFolder(folder), Copies(1 / 3))["constant_phase"]


def test_a_constant_run_ends_in_a_cooldown(half, capsys):
    assert full_rate(half / "run") == [0, 3]
    shutil.copytree(half / "run", half / "other")
    assert fit(half, config("teacher"), COOLDOWN, 2) == 0
    assert logged_rates(half / "run") == pytest.approx(dict.fromkeys(range(4), 0.01) | {4: 0.001, 5: 0.001}, rel=1e-12)
    assert [(c["key"].rpartition(".")[2], c["new"]) for c in changes(half / "run")] == [
        ("cooldown_steps", 2),
        ("max_steps", 6),
    ]
    assert full_rate(half / "run") == [0, 4]
    # One that has begun must be told how to go on; a study asks before it trains.
    longer = config("teacher", {"max_steps": 9})
    before = (half / "run/checkpoints/last.ckpt").read_bytes()
    assert fit(half, longer, COOLDOWN, 2) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("cdmem: error: trainer.max_steps=9: the cooldown began at step 4") and "restart" in said
    assert (half / "run/checkpoints/last.ckpt").read_bytes() == before
    made = build("fit", ["--config", str(half / "stage.yaml"), "--run_dir", str(half / "run"), f"{COOLDOWN}=2"])
    with pytest.raises(InputError, match="cooldown began at step 4"):
        made.check_folder()
    assert fit(half, longer, COOLDOWN, 2, "--model.optimization.longer", "restart") == 0
    assert logged_rates(half / "run")[6] == 0.01 and logged_rates(half / "run")[8] == pytest.approx(0.001)
    assert full_rate(half / "run") == [6, 7]
    # Another rate begins another phase.
    assert fit(half, config("teacher"), COOLDOWN, 1, OPTION, 0.5, run="other") == 0
    assert full_rate(half / "other") == [3, 5] and logged_rates(half / "other")[5] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([COOLDOWN, 2, "--model.optimization.schedule", "cosine"], "cooldown_steps=2: a cosine has an end of its own"),
        ([COOLDOWN, 7], "cooldown_steps=7: only 6 of 6 steps are left at step 0"),
        (["--model.optimization.cooldown_to", 2.0], "cooldown_to=2.0: must be in [0, 1)"),
    ],
)
def test_a_cooldown_that_cannot_be_is_one_line(tmp_path, capsys, options, said):
    assert fit(tmp_path, config("teacher"), *options) == 2
    line = capsys.readouterr().err.strip()
    assert said in line and "\n" not in line and not (tmp_path / "run").exists()


def test_a_run_from_before_cooldowns_goes_on(half):
    """Its record lacks the settings: nothing has changed but its length."""
    content = torch.load(half / "run/checkpoints/last.ckpt", weights_only=True)
    for record in (content["settings"], settings(half / "run")):
        for name in ("cooldown_steps", "cooldown_to"):
            del record["model"]["init_args"]["optimization"][name]
        (half / "run/config.yaml").write_text(yaml.safe_dump(record))
    torch.save(content, half / "run/checkpoints/last.ckpt")
    assert fit(half, config("teacher")) == 0
    assert [c["key"] for c in changes(half / "run")] == ["trainer.max_steps"]


def test_a_cosine_must_be_told_how(tmp_path, capsys):
    short = config("teacher", {"max_steps": 4}, lr_schedule="cosine")
    assert fit(tmp_path, short) == 0
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    longer = config("teacher", {"max_steps": 8}, lr_schedule="cosine")
    assert fit(tmp_path, longer) == 2
    said = capsys.readouterr().err
    assert said.startswith("cdmem: error: trainer.max_steps=8") and "longer restart" in said
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before and not (
        tmp_path / "run/changes.json"
    ).exists()
    shutil.copytree(tmp_path / "run", tmp_path / "held")
    assert fit(tmp_path, longer, "--model.optimization.longer", "restart") == 0
    rates = {r["step"]: r["train/lr"] for r in rows(tmp_path / "run") if "train/lr" in r}
    assert rates == pytest.approx({s: cosine(s, 0, 4) if s < 4 else cosine(s, 4, 8) for s in range(8)}, rel=1e-12)
    assert fit(tmp_path, longer, "--model.optimization.longer", "constant_at_end", run="held") == 0
    rates = {r["step"]: r["train/lr"] for r in rows(tmp_path / "held") if "train/lr" in r}
    assert rates == pytest.approx({s: cosine(min(s, 3), 0, 4) for s in range(8)}, rel=1e-12)
    # A third part: the schedule of the second stays where it was.
    longest = config("teacher", {"max_steps": 10}, lr_schedule="cosine")
    assert fit(tmp_path, longest, "--model.optimization.longer", "restart") == 0
    rates = {r["step"]: r["train/lr"] for r in rows(tmp_path / "run") if "train/lr" in r}
    assert [rates[8], rates[9]] == pytest.approx([0.01, 0.005])


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (["--data.n", 7], "data.n"),
        (["--data.batch_size", 2], "data.batch_size"),
        (["--seed", 5], "data.order_seed"),
        (["--model.noise.p_mean", -1.0], "model.init_args.noise.p_mean"),
        (["--model.averaging.half_lives", "[3]"], "model.init_args.averaging.half_lives"),
        (["--trainer.accumulate_grad_batches", 2], "trainer.accumulate_grad_batches"),
        (["--model.optimization.optimizer", "torch.optim.SGD"], "model.init_args.optimization.optimizer.class_path"),
        (["--trainer.max_steps", 2], "trainer.max_steps"),
        ([OPTION, 0.5, "--trainer.max_steps", 3], LR),  # nothing is left to train with it
    ],
)
def test_what_cannot_change_is_refused_with_the_command_that_does_it(args, key, half, capsys):
    before = kept(half / "run")
    assert fit(half, config("teacher"), *args) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"cdmem: error: {key}=") and len(said.splitlines()) == 1
    assert f"--run_dir {half / 'run'}-2" in said and "python -m cdmem fit" in said
    assert [p for p, content in before.items() if p.read_bytes() != content] == []


def test_another_run_is_not_overwritten(half, capsys):
    assert fit(half, config("teacher"), run="other") == 0
    before = (half / "run/checkpoints/last.ckpt").read_bytes()
    assert fit(half, config("teacher"), "--ckpt_path", half / "other/checkpoints/last.ckpt") == 2
    assert "would overwrite" in capsys.readouterr().err
    assert (half / "run/checkpoints/last.ckpt").read_bytes() == before


def test_a_refused_restore_changes_nothing(half):
    """A checkpoint whose optimizer state cannot be loaded: everything in the folder stays as it was.

    Without W&B, which opens its own log of the run before Lightning restores anything.
    """
    state = checkpoint(half / "run")
    state["optimizer_states"][0]["param_groups"] = []
    torch.save(state, half / "run/checkpoints/last.ckpt")
    before = kept(half / "run")
    assert fit(half, config("teacher"), OPTION, 0.3, "--wandb", "false") == 2
    assert {p: p.read_bytes() for p in before} == before


def test_weights_of_another_run(half):
    """Evaluated weights only: averages start there too, step and moments anew; the origin is recorded."""
    content = config("teacher", {"max_steps": 1}, optimizer=OPTIMIZER | {"init_args": {"lr": 1e-30}}, training_seed=5)
    assert fit(half, content, "--weights_from", half / "run", run="new") == 0
    old, new = checkpoint(half / "run")["state_dict"], checkpoint(half / "new")["state_dict"]
    names = [k.removeprefix("raw.network.") for k in new if k.startswith("raw.network.")]
    average = next(k for k in old if k.startswith("ema.copies.0."))
    assert names and average
    for name in names:
        for key in (f"raw.network.{name}", f"ema.copies.0.{name}"):
            assert torch.allclose(new[key], old[f"ema.copies.0.{name}"], rtol=0, atol=1e-20), key
    (change,) = changes(half / "new")
    assert (change["step"], change["key"]) == (0, "weights") and len(change["new"]["digest"]) == 64
    # Given again, the command goes on with its own state.
    longer = json.loads(json.dumps(content))
    longer["trainer"]["max_steps"] = 2
    assert fit(half, longer, "--weights_from", half / "run", run="new") == 0
    assert checkpoint(half / "new")["global_step"] == 2


def test_weights_of_another_network_are_refused(half, capsys):
    network = {"class_path": "cdmem.networks.MLP", "init_args": {"width": 12, "depth": 1}}
    assert fit(half, config("teacher", network=network), "--weights_from", half / "run", run="new") == 2
    assert capsys.readouterr().err.startswith("cdmem: error: weights_from=") and not (half / "new").exists()


def test_a_growing_curriculum_has_its_length(tmp_path, capsys):
    assert fit(tmp_path, config("teacher"), run="teacher") == 0
    flat = {"points": 8, "start_points": 2, "curriculum": "doubling"}
    teacher = ["--model.teacher", tmp_path / "teacher"]
    assert fit(tmp_path, config("student", {"max_steps": 4}, **flat), *teacher, run="s") == 0
    assert fit(tmp_path, config("student", {"max_steps": 8}, **flat), *teacher, run="s") == 2
    assert "curriculum was laid out for 4 steps" in capsys.readouterr().err


def test_a_study_is_lengthened_and_audited_anew(tmp_path, capsys):
    audit = {"samples": 8, "metrics": ["memorization"]}
    file = write_study(tmp_path, audit, teacher=config("teacher"), student=config("student", points=5))
    command = ["study", "--config", file, "--run_dir", tmp_path / "study"]
    assert cdmem(*command) == 0
    stages = {name: tmp_path / "study" / name / "checkpoints/last.ckpt" for name in ("teacher", "student")}
    before = {name: file.read_bytes() for name, file in stages.items()}
    assert cdmem(*command, "--audit.samples", 12, "--audit.threshold", 0.4) == 0
    summary = json.loads((tmp_path / "study/audit/summary.json").read_text())
    assert summary["models"][0]["samples"] == 12 and summary["settings"]["threshold"] == 0.4
    assert {name: file.read_bytes() for name, file in stages.items()} == before
    assert cdmem(*command, "--student.trainer.max_steps", 8) == 0
    summary = json.loads((tmp_path / "study/audit/summary.json").read_text())
    assert {m["step"] for m in summary["models"] if m["role"] == "student"} == {8}
    assert stages["teacher"].read_bytes() == before["teacher"]
    assert "trainer.max_steps" in (tmp_path / "study/report.html").read_text()
    capsys.readouterr()
    assert cdmem(*command, "--student.trainer.max_steps", 8, "--teacher.trainer.max_steps", 9) == 2
    assert "was distilled from its step 6" in capsys.readouterr().err
    assert stages["teacher"].read_bytes() == before["teacher"]
