"""Links and paths that lead out of a folder, files that never end, texts that grow, and names that are programs."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cdmem.audit.distillation_curve import distillation_record
from cdmem.data.subset import load_record
from cdmem.errors import InputError
from cdmem.io.arrays import read_arrays
from cdmem.io.text import parse_json, parse_yaml, read_text
from cdmem.report.build import write as write_page
from cdmem.report.build import write_report
from cdmem.report.run_data import read_run
from cdmem.run.folder import RunFolder, read_wandb_id
from cdmem.run.metrics_log import MetricsRecord
from cdmem.tracking.wandb import teacher_link
from support.hostile import make_pipeline, memory, write_settings
from support.report import make_study_folder
from support.strangers import exits, refused, tree


@pytest.fixture
def place(tmp_path):
    write_settings(tmp_path)
    np.savez(tmp_path / "images.npz", images=np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8))
    return tmp_path


AUDIT = ["audit", "--training_set", "images.npz", "--generator"]

# ---- out of the folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["checkpoints", "evaluations", "panels", "wandb", "metrics.jsonl", "config.yaml"])
def test_entries_of_a_run_folder_that_lead_out(entry, place, capsys):
    """Training in that folder would write to the user's own files."""
    (place / "run").mkdir()
    (place / "home").mkdir()
    (place / "home/precious").write_text("mine")
    (place / "run" / entry).symlink_to(place / ("home/precious" if "." in entry else "home"))
    error = refused(["fit", "--config", "own.yaml", "--run_dir", "run"], capsys, place)
    assert "link" in error or "cannot be read" in error


def test_a_report_writes_through_no_link(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run/report.html").symlink_to(tmp_path / "precious")
    (tmp_path / "run/report").symlink_to(tmp_path)
    for name in ("report.html", "report/precious"):
        with pytest.raises(InputError, match="is a link"):
            write_page(tmp_path / "run", name, "page")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_report_shows_no_pictures_of_other_folders(tmp_path):
    """A name with ``..`` and a link: the page may be published, and the user's own images are not the stranger's."""
    run = make_study_folder(tmp_path / "run")
    private = {"images": np.full((60, 8, 8, 1), 77, np.uint8), "seeds": np.arange(60)}
    np.savez(tmp_path / "private_consistency_nfe=1.npz", **private)
    summary = json.loads((run / "audit/summary.json").read_text())
    summary["models"][2]["name"] = "../../private"
    (run / "audit/summary.json").write_text(json.dumps(summary))
    linked = run / "samples/teacher_heun_nfe=35.npz"
    linked.unlink()
    linked.symlink_to(tmp_path / "private_consistency_nfe=1.npz")
    found = read_run(run)
    assert found.arrays("samples", found.models[0]) == {} and found.arrays("samples", found.models[2]) == {}
    assert len([note for note in found.notes if "ValueError" in note]) == 2


def test_names_in_archives_place_no_files(place, capsys):
    """Members are read by name into memory; nothing is ever unpacked onto the disk."""
    with zipfile.ZipFile(place / "x.npz", "w") as archive:
        for name in ("../../up.npy", "/tmp/absolute_of_cdmem.npy", "images.npy"):
            with archive.open(name, "w") as member:
                np.save(member, np.zeros((4, 8, 8), np.uint8))
    before = tree(place)
    assert set(read_arrays(place / "x.npz")) == {"../../up", "/tmp/absolute_of_cdmem", "images"}
    assert exits([*AUDIT, "x.npz", "--quiet"], capsys)[0] == 0 and tree(place) == before
    assert not Path("/tmp/absolute_of_cdmem.npy").exists() and not (place.parent.parent / "up.npy").exists()


def test_names_in_checkpoints_and_pipelines(place, capsys):
    torch.save({"cdmem": {}, "state_dict": {}}, place / "x.ckpt")
    with zipfile.ZipFile(place / "x.ckpt", "a") as parts:
        top = parts.namelist()[0].split("/")[0]
        parts.writestr(f"{top}/../../up", b"x")
    assert "unusual names" in refused(["sample", "--checkpoint", "x.ckpt", "--out", "o.npz"], capsys, place)
    folder = make_pipeline(place / "p")
    make_pipeline(place / "elsewhere")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["../elsewhere/unet", "UNet2DModel"]}))
    refused([*AUDIT, "p"], capsys, place)


@pytest.mark.parametrize("target", ["../home", "../home/a.png", "/etc/hostname", "nowhere", "self"])
def test_links_out_of_a_folder_of_pictures(target, place, capsys):
    for name in ("pictures", "home"):
        (place / name).mkdir()
        Image.new("L", (8, 8)).save(place / name / "a.png")
    (place / "pictures/self").symlink_to(target)
    assert "is a link out of the folder" in refused([*AUDIT, "pictures"], capsys, place)


# ---- files that never end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_waited_for(kind, tmp_path):
    def make(file):
        file.unlink(missing_ok=True)
        os.mkfifo(file) if kind == "pipe" else file.symlink_to("/dev/zero")

    run = make_study_folder(tmp_path / "run")
    stage = run / "student"
    (stage / "evaluations").mkdir()
    for name in ("config.yaml", "metrics.jsonl", "finished.json", "onset.json", "training_set.json", "wandb_id"):
        make(stage / name)
    make(run / "training_set.json")
    make(stage / "evaluations/step=00000001_nfe=1.npz")
    make(run / "samples/teacher_heun_nfe=35.npz")
    found = read_run(run)
    assert found.stages[1].config == {} and found.arrays("samples", found.models[0]) == {}
    folder = RunFolder(stage)
    assert MetricsRecord(folder).rows() == [] and read_wandb_id(stage) is None and folder.finished() is None
    for read in (
        lambda: load_record(run),
        folder.read_config,
        lambda: folder.read_json("onset.json"),
        lambda: distillation_record(folder, 1 / 3),
    ):
        with pytest.raises(InputError):
            read()
    with pytest.raises(ValueError, match="regular"):
        read_text(stage / "onset.json")


def test_large_texts_are_not_read(tmp_path):
    with (tmp_path / "x").open("wb") as stream:
        stream.truncate(2**40)  # a hole
    with memory(256), pytest.raises(ValueError, match="larger"):
        read_text(tmp_path / "x")


# ---- texts that grow ------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrst"


def doubling(form):
    lines = [f"{LETTERS[0]}: &{LETTERS[0]} {form.format('1', '2')}"]
    lines += [f"{y}: &{y} {form.format('*' + x, '*' + x)}" for x, y in pairwise(LETTERS)]
    return "\n".join(lines) + "\n"


YAMLS = {
    "lists": doubling("[{}, {}]"),
    "mappings": doubling("{{x: {}, y: {}}}"),
    "merges": "a: &a {k: 1}\n"
    + "".join(f"{y}: &{y} {{<<: [{', '.join(['*' + x] * 9)}]}}\n" for x, y in pairwise(LETTERS[:9])),
    "within itself": "a: &a [*a]\n",
    "key within itself": "a: &a {x: *a}\n",
    "deep": "a: " + "[" * 1000,
    "deep mappings": "".join(" " * k + "a:\n" for k in range(500)),
    "tag": "a: !!python/name:os.system\n",
    "date": "a: 2020-99-99\n",
    "digits": "a: " + "9" * 5000 + "\n",
    "odd key": "? [1, 2]\n: 3\n",
    "odd merge": "<<: 5\n",
    "two": "a: 1\n---\nb: 2\n",
}


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_that_grows_or_is_none(name):
    with memory(512), pytest.raises(ValueError):
        parse_yaml(YAMLS[name])


@pytest.mark.parametrize("name", ["lists", "mappings", "merges", "within itself", "deep"])
def test_yaml_that_grows_in_a_run_folder(name, place, capsys):
    """Read by a report and before training goes on there: following the aliases would take gigabytes."""
    run = make_study_folder(place / "run")
    for folder in (run, run / "teacher"):
        (folder / "config.yaml").write_text(YAMLS[name])
    with memory(1024):
        assert read_run(run).config == {}
        refused(["fit", "--config", "own.yaml", "--run_dir", "run/teacher"], capsys, place)
        refused(["plan", "--config", "run/config.yaml"], capsys, place)


def test_plain_yaml_with_aliases_is_read():
    text = "a: &a {x: 1, y: [1.5, true, null]}\nb: *a\nc: {<<: *a, x: 2}\n"
    assert parse_yaml(text) == yaml.safe_load(text) and parse_yaml("") is None


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "9" * 5000, "", "{", "\ufeff{}"])
def test_json_that_is_none(text):
    with pytest.raises(ValueError):
        parse_json(text)


# ---- names that are programs ----------------------------------------------------------------------------------------

SCRIPT = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload=alert(1) &lt; javascript:x"


class Elements(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def elements(html):
    parser = Elements()
    parser.feed(html)
    return parser.found


def spoil(value, key=""):
    """Every text in a record, names of models and stages too, with a program behind it."""
    if isinstance(value, dict):
        return {k: spoil(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [spoil(v, key) for v in value]
    return value + SCRIPT if isinstance(value, str) and key not in ("role", "method", "features") else value


def test_no_text_of_a_run_becomes_a_program(tmp_path):
    """Nor a link to elsewhere, in the page of a run whose every text, file name and folder holds one."""
    run = make_study_folder(tmp_path / SCRIPT.replace("/", ""))
    for file in run.rglob("*.json"):
        file.write_text(json.dumps(spoil(json.loads(file.read_text()))))
    for file in run.rglob("config.yaml"):
        file.write_text(yaml.safe_dump(spoil(yaml.safe_load(file.read_text()))))
    (run / "student").rename(run / "student<script>alert(1)<")
    html = write_report(run).read_text(encoding="utf-8")
    found = elements(html)
    assert [tag for tag, _ in found].count("script") == 1  # the page's own
    assert html.count("alert(1)") > 20 and not [name for _, a in found for name in a if name.startswith("on")]
    links = [a[name] for _, a in found for name in ("href", "src", "xlink:href") if a.get(name)]
    assert links and all(link.startswith(("#", "report/", "data:image/png;base64,", "data:,")) for link in links)


def test_errors_do_not_steer_the_terminal():
    text = str(InputError("a\x1b[2J", "b\x1b]0;x\x07\r", "c\u202e", "d\udce9\x9b"))
    assert text.isprintable() and text.startswith("a?[2J=b?]0;x?")


@pytest.mark.parametrize("text", ["../../x", "a/b", "a b", "", "x" * 65, "a:latest", "\0"])
def test_a_wandb_id_names_no_other_folder(text, tmp_path):
    """W&B makes a folder of the name, and asks its server for what it names."""
    (tmp_path / "wandb_id").write_text(text)
    assert (
        read_wandb_id(tmp_path) is None
        and teacher_link(type("M", (), {"teacher_name": str(tmp_path)}))["run_id"] is None
    )
    made = RunFolder(tmp_path).wandb_id()
    assert made != text and RunFolder(tmp_path).wandb_id() == made


def test_a_checkpoint_in_a_folder_of_links_can_still_be_used(place, capsys):
    """Runs kept on another disk: the whole folder is a link."""
    shutil.copy(place / "own.yaml", place / "mine.yaml")
    (place / "disk").mkdir()
    (place / "run").symlink_to(place / "disk")
    assert exits(["fit", "--config", "mine.yaml", "--run_dir", "run"], capsys)[0] == 0
    assert (place / "disk/checkpoints/last.ckpt").is_file()
