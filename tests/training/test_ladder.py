"""The ladder of a run: which steps it keeps, and that a rung is the model that the run was there."""

from __future__ import annotations

import pytest
import torch

from cdmem.errors import InputError
from cdmem.models.load import load_model
from cdmem.training.checkpoint_callback import RunCheckpoint
from cdmem.training.ladder import ladder_steps, read_rungs
from support.stages import callback, cdmem, fit, read, stage, write_study


def test_rungs_are_spaced_by_a_factor_and_end_before_the_run_does():
    assert sorted(ladder_steps(6400, 6)) == [100, 200, 400, 800, 1600, 3200]
    assert ladder_steps(6400, 0) == set() and ladder_steps(1, 8) == set()
    assert sorted(ladder_steps(4, 8)) == [1, 2, 3]


@pytest.mark.parametrize("rungs", [-1, 101])
def test_bad_counts(rungs):
    with pytest.raises(InputError, match="keep_ladder"):
        RunCheckpoint(keep_ladder=rungs)


def test_a_rung_is_what_the_run_was_there(tmp_path):
    """The averages of a run that ended at that step (at a constant rate), with nothing else beside them."""
    for run, steps in (("long", 6), ("short", 3)):
        trainer = {"max_steps": steps, "callbacks": [callback("cdmem.training.RunCheckpoint", keep_ladder=3)]}
        assert fit(tmp_path, stage("teacher", trainer, lr_schedule="constant"), "--wandb", "false", run=run) == 0
    checkpoints = tmp_path / "long/checkpoints"
    rungs = read_rungs(checkpoints)
    assert [file.name for file in rungs] == ["step=00000001.ckpt", "step=00000002.ckpt", "step=00000003.ckpt"]
    back, short = load_model(rungs[-1]), load_model(tmp_path / "short")
    assert back.record.step == 3 and torch.equal(back.sampler()(range(3)), short.sampler()(range(3)))
    content = torch.load(rungs[-1], weights_only=True)["state_dict"]
    assert sum(v.numel() for v in content.values()) == sum(p.numel() for p in short.raw.network.parameters())
    for stray in ("step=3.ckpt", ".step=00000002.part.ckpt", "step=00000003.ckpt.txt"):
        (checkpoints / "ladder" / stray).write_bytes(b"")
    assert read_rungs(checkpoints) == rungs


def test_a_study_audits_the_ladder_of_its_teacher_and_no_run_goes_on_from_it(tmp_path, capsys):
    keep = callback("cdmem.training.RunCheckpoint", keep_ladder=2)
    stages = {
        "teacher": stage("teacher", {"callbacks": [keep]}, sampler_points=3),
        "student": stage("student", points=3),
    }
    file = write_study(tmp_path, {"samples": 8, "metrics": ["memorization"], "nfe": [1]}, **stages)
    asked = ["--config", file, "--run_dir", tmp_path / "run", "--wandb", "false"]
    assert cdmem("plan", "--config", file, "--tflops", 1, "--json") == 0
    planned = capsys.readouterr().out
    assert cdmem("study", *asked) == 0
    models = read(tmp_path / "run/audit/summary.json")["models"]
    rungs = [m for m in models if m["role"] == "teacher_ladder"]
    assert [(m["name"], m["step"], m["nfe"]) for m in rungs] == [
        ("teacher at step 1", 1, 5),
        ("teacher at step 2", 2, 5),
    ]
    assert all(m["f_mem"]["ci95"] and m["seeds"] == models[0]["seeds"] and "verdict" not in m for m in rungs)
    assert len({m["digest"] for m in (*rungs, models[0])}) == 3
    assert (tmp_path / "run/audit/teacher at step 1_heun_nfe=5.npz").is_file()
    # 5 by Heun on 3 points, 1 Euler step, the ceiling's 2 steps, 2 rungs; 1 of the student.
    assert f'"evaluations": {8 * (5 + 1 + 4 + 2 * 5 + 1)}' in planned
    capsys.readouterr()
    rung = tmp_path / "run/teacher/checkpoints/ladder/step=00000002.ckpt"
    assert fit(tmp_path, stages["teacher"], "--ckpt_path", rung, run="on") == 2
    assert capsys.readouterr().err.startswith("cdmem: error: ckpt_path=")
