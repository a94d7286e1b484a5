"""A grid of studies in one folder: checked first, resumed, extended, and failing cell by cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cdmem.errors import InputError
from cdmem.study.config import read_study
from cdmem.study.study import Study
from cdmem.study.sweep import cells_of, parse_grid, read_sweep, run_sweep, split_arguments
from support.stages import callback, cdmem, stage, write_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
    trainer = {"max_steps": 4, "callbacks": [callback("cdmem.training.RunCheckpoint", every_n_steps=4)]}
    teacher, student = stage("teacher", trainer, sampler_points=4), stage("student", trainer, points=5)
    audit = {"samples": 16, "metrics": ["memorization", "quality"]}
    return write_study(tmp_path, audit, teacher=teacher, student=student)


def test_the_grid_is_every_combination():
    grid = parse_grid(["data.n=8,16", "student.model.mid_sigmas=[0.2],[0.4, 0.1]"])
    assert grid == {"data.n": ["8", "16"], "student.model.mid_sigmas": ["[0.2]", "[0.4, 0.1]"]}
    folders = [cell.folder for cell in cells_of(grid)]
    assert folders[0] == "data.n=8/student.model.mid_sigmas=[0.2]" and len(set(folders)) == 4


def test_the_arguments_are_taken_apart():
    args = ["--config", "c.yaml", "--sweep", "data.n=8,16", "seed=0,1", "--run_dir", "r"]
    rest = ["--config", "c.yaml", "--run_dir", "r"]
    assert split_arguments(args, "sweep", "jobs") == (rest, {"sweep": ["data.n=8,16", "seed=0,1"]})
    assert split_arguments(["--jobs", "2", *args], "jobs") == (args, {"jobs": ["2"]})
    assert split_arguments(args[:2], "sweep") == (args[:2], {})


@pytest.mark.parametrize(
    "items",
    [[], ["data.n"], ["=1"], ["data.n="], ["data.n=8,8"], ["a=1", "a=2"], ["a=../../x"], ["a=/etc"], ["a b=1"]]
    + [[f"{k}={','.join(map(str, range(30)))}" for k in "abc"]],
)
def test_bad_grids(items):
    with pytest.raises(InputError) as error:
        parse_grid(items)
    assert str(error.value).startswith("sweep") and "\n" not in str(error.value)


@pytest.mark.slow
def test_a_sweep_runs_resumes_grows_and_compares(config, tmp_path, capsys):
    folder = tmp_path / "sweep"
    command = ["study", "--config", config, "--run_dir", folder, "--sweep"]
    assert cdmem(*command, "data.n=8,12", "seed=0") == 0
    record = json.loads((folder / "sweep.json").read_text())
    assert [c["status"] for c in record["cells"]] == ["finished"] * 2 and (folder / "comparison.html").is_file()
    assert (folder / "data.n=8/seed=0/report.html").is_file()
    capsys.readouterr()
    assert cdmem(*command, "data.n=8,12", "seed=0,1") == 0  # two new cells
    printed = capsys.readouterr().out
    assert "=== 1/2: data.n=8/seed=1" in printed and "data.n=8/seed=0\n" not in printed
    assert len(read_sweep(folder).cells) == 4
    html = (folder / "comparison.html").read_text(encoding="utf-8")
    assert "4 studies" in html and "Over seeds" in html and "Against data.n" in html
    # Cells are lengthened as studies are, each judged by its own folder.
    assert cdmem(*command[:-1], "--student.trainer.max_steps", 9, "--sweep", "data.n=8,12", "seed=0,1") == 2
    said = capsys.readouterr()
    assert "===" not in said.out and "longer restart" in said.err  # known before the first cell trains
    told = ["--student.trainer.max_steps", 9, "--student.model.optimization.longer", "restart"]
    longer = [*command[:-1], *told, "--sweep"]
    assert cdmem(*longer, "data.n=8,12", "seed=0,1") == 0
    summary = json.loads((folder / "data.n=8/seed=0/audit/summary.json").read_text())
    assert {m["step"] for m in summary["models"] if m["role"] == "student"} == {9}
    assert "=== 1/4" in capsys.readouterr().out
    assert cdmem(*longer, "data.n=8,12", "seed=0,1") == 0  # nothing is left to do
    assert "===" not in capsys.readouterr().out
    folder = folder.rename(tmp_path / "moved")
    moved = [part if part != tmp_path / "sweep" else folder for part in longer]
    assert cdmem(*moved, "data.n=8,12", "seed=0,1") == 0  # wherever it lies
    assert "===" not in capsys.readouterr().out
    command = [part if part != tmp_path / "sweep" else folder for part in command]
    # Another sweep, or settings that cannot change on the way, have no place in this folder.
    assert cdmem(*command, "data.n=8") == 2 and "another sweep" in capsys.readouterr().err
    assert cdmem(*command[:-1], "--data.batch_size", 2, "--sweep", "data.n=8,12", "seed=0,1") == 2
    assert "data.batch_size=2" in capsys.readouterr().err


def test_bad_cells_are_found_before_the_first_trains(config, tmp_path, capsys):
    folder = tmp_path / "sweep"
    common = ["study", "--config", config, "--run_dir", folder, "--sweep"]
    assert cdmem(*common, "data.n=8,100000") == 2
    assert cdmem(*common, "data.no_such_key=1") == 2
    assert cdmem("study", "--config", config, "--run_dir", folder, "--seed", 1, "--sweep", "seed=0,1") == 2
    assert "set it once" in capsys.readouterr().err
    assert not folder.exists() or not list(folder.rglob("last.ckpt"))


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path):
    done = []

    def run(args: list[str]) -> None:
        done.append(args[args.index("--seed") + 1])
        if done[-1] == "1":
            raise RuntimeError("out of\nmemory")

    folder, sweep = run_sweep(
        ["--config", "c.yaml", "--run_dir", str(tmp_path)], ["seed=0,1,2"], lambda args: None, run
    )
    assert done == ["0", "1", "2"] and [c.status for c in sweep.cells] == ["finished", "failed", "finished"]
    assert sweep.cells[1].error == "RuntimeError: out of memory" and read_sweep(folder.path) == sweep
    done.clear()
    run_sweep(["--config", "c.yaml", "--run_dir", str(tmp_path)], ["seed=0,1,2"], lambda args: None, run)
    assert done == ["1"]


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "configs/sweeps").glob("*.yaml")))
def test_wandb_sweeps_are_commands_that_study_takes(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    content = yaml.safe_load((ROOT / "configs/sweeps" / name).read_text())
    values = {key: p["values"][0] for key, p in content["parameters"].items()}
    assert content["method"] == "grid" and content["command"][:4] == ["python", "-m", "cdmem", "study"]
    args = []
    for part in content["command"][4:]:
        swept = [f"--{k}={v}" for k, v in values.items()]
        args += swept if part == "${args}" else [part.replace("${envvar:WANDB_RUN_ID}", "x")]
    study = read_study(args)
    assert study.run_dir.endswith("/x") and study.seed == values["seed"]


def test_settings_make_a_cell_and_its_place_does_not(config, tmp_path):
    """What tells whether a finished cell is the one that is asked for."""

    def digest(folder, *more):
        return Study(read_study(["--config", config, "--run_dir", str(tmp_path / folder), *more])).digest

    assert digest("a") == digest("b") == digest("a", "--threads", "1")
    assert len({digest("a"), digest("a", "--data.n", "12"), digest("a", "--audit.samples", "17")}) == 3
