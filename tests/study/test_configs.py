"""Every file under configs/ parses and builds; one of each kind trains for two steps on images of its own shape."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cdmem.cli.study import run_study
from cdmem.cli.theory import LABORATORIES, WITH_RUN, read_settings
from cdmem.distillation import ConsistencyDistillation, ConsistencyTraining, TrajectoryRegression
from cdmem.run.folder import RunFolder
from cdmem.study.config import read_study
from cdmem.study.stage import Stage, build
from cdmem.study.study import Study
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CONTENT = {f.relative_to(CONFIGS).as_posix(): yaml.safe_load(f.read_text()) for f in sorted(CONFIGS.rglob("*.yaml"))}
THEORY = {name: CONTENT.pop(name) for name in list(CONTENT) if name.startswith("theory/")}
METHODS = [name for name in CONTENT if name.startswith("methods/")]  # for --model.method; see test_defaults.py
STAGES = [name for name, c in CONTENT.items() if "model" in c]
STUDIES = [name for name, c in CONTENT.items() if "students" in c]
FRAGMENTS = [name for name, c in CONTENT.items() if "source" in c]
SWEEPS = [name for name in CONTENT if name.startswith("sweeps/")]  # for `wandb sweep`; see test_sweep.py
# Stages that no study names: alternatives to give as --teacher.config.
ALONE = {"cifar10/teacher_vp.yaml", "debug/mlp_teacher.yaml", "guidance/teacher.yaml"}
DIGITS = ["--data.source=digits", "--data.path=null", "--data.n=16", "--data.held_out=20"]
HERE = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true", "--wandb=false"]
HERE += ["--threads=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def config_of(student: str | dict) -> str:
    """The file that a study names for a student, alone or with settings that go over it."""
    return student if isinstance(student, str) else student["config"]


def small_callbacks(name: str) -> str:
    """The file's own callbacks with ten samples each, the fewest that a distance takes, as a command-line value.

    Without the quality callback for CIFAR-10: one Frechet distance of 3072 pixels takes many seconds on a CPU.
    """
    callbacks = copy.deepcopy(CONTENT[name]["trainer"]["callbacks"])
    if name.startswith("cifar10"):
        callbacks = [c for c in callbacks if "Quality" not in c["class_path"]]
    for callback in callbacks:
        if "cadence" in callback.get("init_args", {}):
            callback["init_args"]["cadence"]["samples"] = 10
    return json.dumps(callbacks)


def stage(name: str, run_dir: Path, *args: str) -> Stage:
    """A stage file built as ``fit`` would build it; the teacher of a student may be missing, it is read later."""
    common = ["--config", str(CONFIGS / name), "--run_dir", str(run_dir), *HERE]
    if CONTENT[name]["model"]["class_path"].endswith("Student") and "--model.teacher" not in args:
        common += ["--model.teacher", str(run_dir / "teacher")]
    return build("fit", [*common, *args])


def train(name: str, run_dir: Path, *args: str) -> RunFolder:
    """Two steps of a stage with its own callbacks; the run folder."""
    short = ["--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--data.batch_size=4"]
    short += [f"--trainer.callbacks={small_callbacks(name)}"]
    stage(name, run_dir, *short, *args).execute()
    return RunFolder(run_dir)


def tiny_unet(channels: list[int]) -> list[str]:
    network = "--model.init_args.network.init_args"
    return [f"{network}.channels={channels}", f"{network}.norm_groups=4", f"{network}.layers=1"]


def check_trained(folder: RunFolder, nfes: list[int], quality: bool = True) -> None:
    assert folder.ending().step == 2
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("memorization/f_mem", "train/loss"):
        assert any(name in row for row in rows)
    assert any(key.startswith("quality/fd_") for row in rows for key in row) is quality
    for nfe in nfes:
        assert (folder / f"evaluations/step={2:08d}_nfe={nfe}.npz").is_file()
    assert (folder / f"panels/step={2:08d}.png").is_file()


# ---- all files -------------------------------------------------------------------------------------------------------


def test_every_file_is_of_one_kind_and_used():
    assert {f.relative_to(CONFIGS).as_posix() for f in CONFIGS.rglob("*") if f.is_file()} == {*CONTENT, *THEORY}
    assert sorted([*STAGES, *STUDIES, *FRAGMENTS, *SWEEPS, *METHODS]) == sorted(CONTENT)
    assert {str(Path(s).parent / CONTENT[s]["data"]) for s in STAGES} == set(FRAGMENTS)
    named = {n for s in STUDIES for n in (CONTENT[s]["teacher"], *map(config_of, CONTENT[s]["students"].values()))}
    assert named | ALONE == set(STAGES)


@pytest.mark.parametrize("name", THEORY)
def test_theory_settings_are_those_of_a_laboratory(name):
    """The file's name begins with the laboratory's."""
    (laboratory,) = [k for k in LABORATORIES if Path(name).name.startswith(k.replace("-", "_"))]
    run = ["runs/quickstart"] if laboratory in WITH_RUN else []
    settings, _ = read_settings(laboratory, [*run, "--config", str(CONFIGS / name)])

    def changed(read, written):
        return {k: changed(read[k], v) if isinstance(v, dict) else read[k] for k, v in written.items()}

    made = changed(asdict(settings), THEORY[name])
    assert json.loads(json.dumps(made)) == THEORY[name], "a value was read as another one"


@pytest.mark.parametrize("name", STAGES)
def test_stage_builds_with_the_data_its_fragment_describes(name, tmp_path):
    own = name.startswith(("debug", "quickstart", "digits32", "long", "guidance"))  # these need no files
    cli = stage(name, tmp_path, *([] if own else DIGITS))
    model, given = cli.model, CONTENT[name]["model"]["init_args"]
    wanted = given["optimization"]["optimizer"]
    optimizer = model.optimization.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer).__name__ == wanted["class_path"].rpartition(".")[2]
    assert optimizer.param_groups[0]["lr"] == wanted["init_args"]["lr"]
    assert list(model.averaging.half_lives) == given["averaging"]["half_lives"]
    assert cli.trainer.max_steps == CONTENT[name]["trainer"]["max_steps"]
    kinds = {type(c).__name__ for c in cli.trainer.callbacks}
    assert kinds >= {"MemorizationCallback", "QualityCallback", "SampleGridCallback", "RunCheckpoint"}
    # Files that are not there must not stop a test of the other settings.
    replaced = set() if own else {"source", "path", "n", "held_out"}
    fragment = CONTENT[f"{Path(name).parent}/{CONTENT[name]['data']}"]
    described = {key: value for key, value in fragment.items() if key not in replaced}
    assert {key: cli.settings.data[key] for key in described} == described


@pytest.mark.parametrize("name", STUDIES)
def test_study_builds_teachers_and_students_of_one_training_set(name, tmp_path):
    plain = read_study(["--config", str(CONFIGS / name)])
    assert plain.run_dir == f"runs/{Path(name).stem}"
    assert list(plain.stages) == ["teacher", *CONTENT[name]["students"]]
    study = Study(read_study(["--config", str(CONFIGS / name), "--run_dir", str(tmp_path / "study"), *DIGITS]))
    kinds = [type(cli.model) for cli in study.stages.values()]
    assert kinds == [DiffusionTeacher] + [Student] * (len(kinds) - 1)


# ---- what the comments claim -----------------------------------------------------------------------------------------


def test_the_controls_have_the_grid_of_the_distillation_and_the_network_of_the_teacher(tmp_path):
    file = CONFIGS / "controls.yaml"
    study = Study(read_study(["--config", str(file), "--run_dir", str(tmp_path / "study")]))
    methods = {name: cli.model.method for name, cli in study.stages.items() if name != "teacher"}
    kinds = (ConsistencyDistillation, TrajectoryRegression, ConsistencyTraining)
    assert tuple(map(type, methods.values())) == kinds and len({m.points for m in methods.values()}) == 1
    assert methods["student"].solver == methods["regression"].solver
    networks = [study.stages[name].model.network_config for name in methods]
    assert networks[:2] == [None, None] and networks[2] == study.stages["teacher"].model.network_config
    lengths = {cli.trainer.max_steps for name, cli in study.stages.items() if name != "teacher"}
    assert len(lengths) == 1


@pytest.mark.parametrize(
    ("name", "shape", "millions"),
    [
        ("cifar10/teacher.yaml", (3, 32, 32), 35.7),
        ("cifar10/teacher_vp.yaml", (3, 32, 32), 35.7),
        ("celeba/teacher.yaml", (1, 32, 32), 4.0),
    ],
)
def test_network_size(name, shape, millions, tmp_path):
    network = stage(name, tmp_path, *DIGITS).model.network_config.build(shape, 0, 0)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_published_rates_in_steps():
    def half_life(decay: float) -> int:
        return round(math.log(0.5) / math.log(decay))

    def given(name: str) -> dict:
        return CONTENT[f"cifar10/{name}.yaml"]["model"]["init_args"]

    batch = CONTENT["cifar10/data.yaml"]["batch_size"]
    assert given("student_cd")["averaging"]["half_lives"] == [half_life(0.9999)]
    assert given("student_ict")["averaging"]["half_lives"] == [half_life(0.99993)]
    assert given("teacher_vp")["averaging"]["half_lives"] == [round(math.log(0.5) / math.log(0.9999) * 128 / batch)]
    assert given("teacher")["averaging"]["half_lives"] == [round(0.5e6 / batch)]
    assert given("teacher")["optimization"]["warmup_steps"] == int(10e6 / batch)
    assert CONTENT["cifar10/teacher.yaml"]["trainer"]["max_steps"] == 200e6 / batch
    assert CONTENT["cifar10/student_ict.yaml"]["trainer"]["accumulate_grad_batches"] * batch == 1024


# ---- two steps of each -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cifar10_stages_train(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    data = ["--data.source", "array", "--data.path", str(tmp_path / "images.npz"), "--data.n", "16"]
    data += ["--data.held_out", "20"]
    for name, parameterization in (("teacher", "edm"), ("teacher_vp", "vp")):
        teacher = train(f"cifar10/{name}.yaml", tmp_path / name, *data, *tiny_unet([8, 8, 8, 8]))
        check_trained(teacher, [35], quality=False)
        checkpoint = torch.load(teacher.last_checkpoint, weights_only=True)["cdmem"]
        assert checkpoint["parameterization"] == parameterization
    for name in ("student_cd", "student_ict"):
        student = train(f"cifar10/{name}.yaml", tmp_path / name, *data, "--model.teacher", str(tmp_path / "teacher"))
        check_trained(student, [1, 2], quality=False)


@pytest.mark.slow
def test_celeba_stages_train(tmp_path):
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = []
    for k in range(1, 45):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        coarse.resize((178, 218), Image.Resampling.BICUBIC).save(root / f"img_align_celeba/{k:06d}.jpg")
        lines.append(f"{k:06d}.jpg {0 if k <= 40 else 1 + k % 2}")
    (root / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    data = ["--data.path", str(root), "--data.n", "16", "--data.held_out", "20"]
    teacher = train("celeba/teacher.yaml", tmp_path / "teacher", *data, *tiny_unet([8, 8, 8]))
    check_trained(teacher, [200])
    record = json.loads((teacher / "training_set.json").read_text())
    assert record["shape"] == [1, 32, 32] and record["source"] == "celeba"
    student = train("celeba/student.yaml", tmp_path / "student", *data, "--model.teacher", str(teacher.path))
    check_trained(student, [1, 2])


def test_mlp_teacher_trains(tmp_path):
    check_trained(train("debug/mlp_teacher.yaml", tmp_path / "run"), [35])


@pytest.mark.slow
def test_debug_study_runs_to_its_audit(tmp_path, capsys):
    run_dir = tmp_path / "study"
    args = ["--config", str(CONFIGS / "debug.yaml"), "--run_dir", str(run_dir), "--wandb", "false"]
    assert run_study(args) == 0
    files = {"teacher": CONTENT["debug.yaml"]["teacher"], **CONTENT["debug.yaml"]["students"]}
    for name, file in files.items():
        assert RunFolder(run_dir / name).ending().step == CONTENT[file]["trainer"]["max_steps"]
    summary = json.loads((run_dir / "audit/summary.json").read_text())
    own = {m["name"] for m in summary["models"] if m["role"] != "ceiling"}
    assert own == {"teacher", "student", "heldout", "control"}
    record = json.loads((run_dir / "training_set.json").read_text())
    assert sorted(record["multiplicities"]) == [1] * 12 + [4] * 4
