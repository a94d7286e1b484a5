"""An offline run read back from its file; W&B out of order; the workspace command."""

from __future__ import annotations

import json
import re
import shlex
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cdmem.run.folder import RunFolder
from cdmem.tracking.wandb import PAIR_COLUMNS, SafeWandbLogger, group_name, run_tags
from cdmem.tracking.workspace import LAYOUT
from support import stages
from support.stages import callback, cdmem, stage

DOCS = Path(__file__).resolve().parents[2] / "docs/wandb.md"
STEPS = 6
CALLBACKS = [
    callback("MemorizationCallback", 24, 2, "log"),
    callback("QualityCallback", 24, 2, "log"),
    callback("SampleGridCallback", 4, 2, "log", columns=4),
    callback("NeighborPanelCallback", 24, 2, "log", shown=6),
    callback("OnsetCallback"),
    callback("cdmem.training.RunCheckpoint", every_n_steps=3),
]
TRAINER = {"max_steps": STEPS, "log_every_n_steps": 2, "callbacks": CALLBACKS}
MODELS = {"teacher": {"sampler_points": 4}, "student": {"points": 5}}


def fit(folder: Path, name: str, *words: object) -> None:
    content = stage(name, TRAINER, {"held_out": 99}, **MODELS[name])
    assert stages.fit(folder, content, "--seed", 0, *words, run=f"study/{name}") == 0


def records(file: Path) -> Iterator[Any]:
    """Records of a .wandb file: LevelDB's log format (blocks of 32 KiB) after a header of 7 bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # a finished run's file is closed by a service of its own, some time after
    data, at, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole = data[at + 7 : at + 7 + length]
        at, parts = at + 7 + length, whole if kind in (1, 2) else parts + whole
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            yield record


def history(found: list[Any]) -> list[dict[str, Any]]:
    """Logged rows; nested keys joined by a slash."""
    rows = [r.history.item for r in found if r.WhichOneof("record_type") == "history"]
    return [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in row} for row in rows]


def parts(run: Path) -> list[Path]:
    return sorted(run.glob("wandb/offline-run-*/*.wandb"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A teacher and its student, logged offline."""
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        patch.setenv("WANDB_MODE", "offline")
        patch.chdir(folder)
        fit(folder, "teacher")
        fit(folder, "student", "--model.teacher", folder / "study/teacher")
    assert not [w for w in said if "W&B" in str(w.message)]
    return folder / "study"


def documented() -> dict[str, str]:
    """Key -> kind, from the table of the docs."""
    text = DOCS.read_text(encoding="utf-8").split("## Keys")[1]
    cells = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| `")]
    return {key: kind.strip() for keys, kind, _ in cells for key in re.findall(r"`([^`]+)`", keys)}


def test_the_documented_keys_are_in_the_offline_file(study):
    (file,) = parts(study / "student")
    rows = history(list(records(file)))
    keys = {key for row in rows for key in row}
    for key, kind in documented().items():
        if key.startswith("onset/"):
            continue  # logged when there is one
        if kind.startswith(("image", "table", "histogram")):
            wanted = {"image": "images/separated", "table": "table-file", "histogram": "histogram"}
            types = {row[f"{key}/_type"] for row in rows if f"{key}/_type" in row}
            assert types == {wanted[re.split(r"\W", kind)[0]]}, key
        else:
            assert key in keys, key
    evaluations = [r for r in rows if "memorization/f_mem" in r]
    assert [r["trainer/global_step"] for r in evaluations] == [0, 1, STEPS]
    assert all(r["images_seen"] == 4 * r["trainer/global_step"] for r in evaluations)


def test_images_and_tables_lie_beside_the_file(study):
    (file,) = parts(study / "student")
    rows = history(list(records(file)))
    for key in ("panels/neighbors", "panels/pairs", "panels/curves", "samples/grid"):
        for name in [row[f"{key}/filenames"][0] for row in rows if f"{key}/filenames" in row]:
            assert Image.open(file.parent / "files" / name).size[0] > 20
    paths = [row["panels/pairs_table/path"] for row in rows if "panels/pairs_table/path" in row]
    table = json.loads((file.parent / "files" / paths[-1]).read_text())
    assert table["columns"] == PAIR_COLUMNS and len(table["data"]) == 6
    artifacts = [r.artifact for r in records(file) if r.WhichOneof("record_type") == "artifact"]
    held = [c for a in artifacts if "pairs_table" in a.name for c in a.manifest.contents]
    pictures = [c.local_path for c in held if c.path.endswith(".png")]
    # They wait for the sync inside the run folder, so that it is complete.
    assert pictures and all((study / "student/wandb").resolve() in Path(p).parents for p in pictures)
    assert {Image.open(p).size for p in pictures} == {(8, 8)}
    for name in ("neighbors", "pairs", "curves"):
        assert (study / f"student/panels/{name}_step={STEPS:08d}.png").is_file()
    assert not (study / f"teacher/panels/pairs_step={STEPS:08d}.png").exists()


def test_runs_are_filed_and_linked(study):
    about = {}
    for name in ("teacher", "student"):
        found = list(records(parts(study / name)[0]))
        about[name] = [r.run for r in found if r.WhichOneof("record_type") == "run"][-1]
        artifacts = [r.artifact for r in found if r.WhichOneof("record_type") == "artifact"]
        run_id = RunFolder(study / name).wandb_id()
        assert about[name].run_id == run_id and about[name].run_group == "study" and about[name].job_type == name
        model = next(a for a in artifacts if a.type == "model")
        assert model.name == f"{name}-{run_id}"
        axes = {r.metric.name: r.metric.step_metric for r in found if r.WhichOneof("record_type") == "metric"}
        assert "images_seen" in axes and axes["memorization/f_mem"] == "trainer/global_step"
    assert list(about["student"].tags) == ["digits", "n=8", "ConsistencyDistillation"]
    assert about["teacher"].run_id in about["student"].notes


def test_a_resumed_run_is_a_second_part_of_the_same_run(tmp_path, monkeypatch):
    """Broken off after a checkpoint, and the same command again."""
    import wandb

    from cdmem.training.teacher import DiffusionTeacher

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    own = DiffusionTeacher.training_step

    def fail(self, *args: Any) -> Any:
        if self.global_step == 4:
            raise RuntimeError("broken off")
        return own(self, *args)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken off"):
        patch.setattr(DiffusionTeacher, "training_step", fail)
        fit(tmp_path, "teacher")
    wandb.finish()  # as the end of the process does
    fit(tmp_path, "teacher")
    found = [list(records(p)) for p in parts(tmp_path / "study/teacher")]
    ids = {r.run.run_id for part in found for r in part if r.WhichOneof("record_type") == "run"}
    assert len(found) == 2 and ids == {RunFolder(tmp_path / "study/teacher").wandb_id()}
    seen = [[row["trainer/global_step"] for row in history(part) if "train/loss" in row] for part in found]
    assert seen[0] and seen[1] and seen[1][-1] > seen[0][-1] and seen[1][0] > 2


def test_a_broken_wandb_is_told_once_and_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb

    def refuse(**settings: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(wandb, "init", refuse)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(tmp_path, "teacher")
    assert len([w for w in said if "no space left" in str(w.message)]) == 1
    assert RunFolder(tmp_path / "study/teacher").ending().step == STEPS


def test_what_is_refused_leaves_no_run_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wrong = stage("teacher", None, {"duplication": [{"fraction": float("nan"), "copies": 2}]})
    assert stages.fit(tmp_path, wrong) == 2 and not (tmp_path / "run").exists()


def test_later_parts_count_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = SafeWandbLogger(parts=2, save_dir=str(tmp_path), id="abc", project="p", offline=True)
    logger.log_metrics({"a": 1.0}, step=3)
    logger.experiment.finish()
    (row,) = [r for r in history(list(records(parts(tmp_path)[0]))) if "a" in r]
    assert row["_step"] >= 20_000_000 and row["trainer/global_step"] == 3


def test_an_offline_run_names_its_viewer_and_warns_of_nothing(tmp_path, monkeypatch, capsys):
    """wandb's own reader finds the run at the path that ``fit`` ends with."""
    import wandb

    said: list[str] = []
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "termwarn", lambda text, **_: said.append(text))
    assert stages.fit(tmp_path, stage("teacher", {"max_steps": 1}), run="a run") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("curves:")]
    words = shlex.split(line)
    assert words[1:4] == ["wandb", "leet", "run"] and not said
    shown = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", words[4]]
    assert RunFolder(tmp_path / "a run").wandb_id() in subprocess.run(shown, capture_output=True, text=True).stdout
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert stages.fit(tmp_path, stage("teacher", {"max_steps": 1}), run="b") == 0
    assert "curves:" not in capsys.readouterr().out


def test_groups_and_tags():
    assert group_name(RunFolder("runs/a/teacher")) == "a" and group_name(RunFolder("runs/solo")) == "solo"
    assert run_tags({"data": {"source": "x" * 100, "n": 5}}) == ["x" * 64, "n=5"]


def test_the_workspace_shows_documented_keys():
    known = documented()
    keys = {key for specs in LAYOUT.values() for spec in specs for key in spec.keys}
    assert {re.sub("_(low|high)$", "", key) for key in keys} <= set(known)


def test_without_login_the_workspace_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cdmem("wandb-workspace", "--project", "p") == 2
    error = capsys.readouterr().err.strip()
    assert "login" in error and len(error.splitlines()) == 1
