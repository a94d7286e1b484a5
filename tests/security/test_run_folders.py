"""Untrusted run folders: records that are pickles, damaged or edited, texts that grow, links, pipes and programs."""

from __future__ import annotations

import json
import os
import pickle
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import yaml

from cdmem.audit.distillation_curve import Copies, distillation_record
from cdmem.audit.reference_sets import load_references
from cdmem.cli.export import find_rows, known_images
from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose, load_record
from cdmem.errors import InputError
from cdmem.io.text import parse_json, parse_yaml, read_text
from cdmem.report.build import write as write_page
from cdmem.report.build import write_report
from cdmem.report.run_data import read_run
from cdmem.run.folder import RunFolder, read_wandb_id
from cdmem.run.metrics_log import MetricsRecord
from cdmem.tracking.wandb import teacher_link
from support.hostile import bare
from support.report import make_study_folder
from support.untrusted import exits, memory, write

# ---- records --------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrst"


def doubling(form):
    lines = [f"{LETTERS[0]}: &{LETTERS[0]} {form.format('1', '2')}"]
    lines += [f"{y}: &{y} {form.format('*' + x, '*' + x)}" for x, y in pairwise(LETTERS)]
    return "\n".join(lines) + "\n"


GROWING = {
    "lists": doubling("[{}, {}]"),
    "mappings": doubling("{{x: {}, y: {}}}"),
    "merges": "a: &a {k: 1}\n"
    + "".join(f"{y}: &{y} {{<<: [{', '.join(['*' + x] * 9)}]}}\n" for x, y in pairwise(LETTERS[:9])),
    "within itself": "a: &a [*a]\n",
    "deep": "a: " + "[" * 1000,
}
YAMLS = GROWING | {
    "key within itself": "a: &a {x: *a}\n",
    "deep mappings": "".join(" " * k + "a:\n" for k in range(500)),
    "tag": "a: !!python/name:os.system\n",
    "date": "a: 2020-99-99\n",
    "digits": "a: " + "9" * 5000 + "\n",
    "odd key": "? [1, 2]\n: 3\n",
    "odd merge": "<<: 5\n",
    "two": "a: 1\n---\nb: 2\n",
}
TAG = "!!python/object/apply:builtins.exec [\"open({mark!r}, 'w').close()\"]\n"
CONTENTS = {"pickle": lambda song: pickle.dumps(song), "tag": lambda song: TAG.format(mark=str(song.mark)).encode()} | {
    name: lambda song, text=text: text.encode() for name, text in GROWING.items()
}
# The command, the records that it reads, the key.
READERS = {
    "audit": ("audit --generator run/student --training_set run/teacher", ["training_set.json"], "training_set"),
    "audit student": ("audit --generator run/student --training_set run/teacher", ["config.yaml"], "config"),
    "fit": ("fit --config own.yaml --run_dir run/teacher", ["config.yaml", "finished.json"], ""),
    "study": ("study --config study.yaml --run_dir run", ["config.yaml"], ""),
    "plan": ("plan --config run/teacher/config.yaml --allow_code", ["config.yaml"], ""),
    "as config": ("fit --config run/teacher/config.yaml --allow_code", ["config.yaml"], ""),
}
ROWS = [(form, command) for form in ("pickle", "tag") for command in READERS]
ROWS += [(form, command) for form in GROWING for command in ("fit", "plan")]


@pytest.mark.parametrize(("form", "command"), ROWS)
def test_untrusted_records_of_a_run(form, command, place, song, refuse):
    args, records, key = READERS[command]
    (place / "run/student/evaluations").mkdir(exist_ok=True)  # else nobody asks for the student's config
    for record in records if form in ("pickle", "tag") else ["config.yaml"]:
        for folder in ("run", "run/teacher", "run/student"):
            (place / folder / record).write_bytes(CONTENTS[form](song))
        refuse(args, key)


@pytest.mark.parametrize("form", CONTENTS)
def test_untrusted_records_of_a_report(form, place, song, refuse):
    run = make_study_folder(place / "study")
    for record in ("config.yaml", "training_set.json", "environment.json", "metrics.jsonl", "onset.json",
                   "finished.json"):  # fmt: skip
        for folder in (run, run / "teacher", run / "student"):
            (folder / record).write_bytes(CONTENTS[form](song))
    with memory(1024):
        data = read_run(run)
    assert data.config == {} and all(s.config == s.onset == s.finished == {} and not s.records for s in data.stages)
    (run / "audit/summary.json").write_bytes(CONTENTS[form](song))
    refuse("report study", "")


def test_a_pickle_as_audit_of_an_export(place, song):
    (place / "run/audit").mkdir()
    bare(place / "run/audit/summary.json", song, {})
    bare(place / "run/teacher/training_set.json", song, {})
    with pytest.raises(InputError, match="audit="):
        find_rows("run/audit/summary.json", place / "run/teacher", "0" * 64)
    assert find_rows(None, place / "run/teacher", "0" * 64) == ([], None)  # nobody asked for that one: left out
    assert known_images(place / "run/teacher", "0" * 64) is None


def test_metrics_that_are_no_records_are_passed_over(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + "[" * 10**5 + "\n" + "1" * 5000 + "\n" + '{"step": 2}\n')
    assert [row["step"] for row in MetricsRecord(folder).rows()] == [1, 2]


NO_JSON = ["[" * 10**5, '{"a":' * 10**5, "9" * 5000, "", "{", "\ufeff{}"]
TEXTS = {f"yaml {name}": (parse_yaml, text) for name, text in YAMLS.items()}
TEXTS |= {f"json {text[:9]}": (parse_json, text) for text in NO_JSON}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_grow_or_are_none(name):
    parse, text = TEXTS[name]
    with memory(512), pytest.raises(ValueError):
        parse(text)


def test_plain_yaml_with_aliases_is_read():
    text = "a: &a {x: 1, y: [1.5, true, null]}\nb: *a\nc: {<<: *a, x: 2}\n"
    assert parse_yaml(text) == yaml.safe_load(text) and parse_yaml("") is None


# ---- training sets and evaluations ----------------------------------------------------------------------------------


FIELDS = {
    "indices": [["5"] * 100, [0.5] * 100, [float("inf")] * 100],
    "multiplicities": [[-1] * 100, [0] * 100, [1.5] * 100, [10**30] * 100, [[1]] * 100],
    "hash": [5],
    "provenance": [KeyError, [], {"resolution": 100_000}, {"crop": "x"}],
    "source": [KeyError, [1]],
    "class_names": [5],
    "flip": ["no"],
    "held_out_indices": [[-1]],
}
CONFIGS = {
    "code": "data: !!python/object/apply:os.system ['touch sung']",
    "deep": "[" * 3000,
    "list as path": "data: {source: array, path: [1]}",
    "date as path": "data: {source: array, path: 2020-99-99}",
    "no such user": "data: {source: array, path: '~no_such_user_at_all/x.npz'}",
    "no such file": "data: {source: array, path: /no/such.npz}",
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\ndata: {source: array, path: *b}",
}
# What is changed in the record, the config beside it, the key, words of the error.
TRAINING_SETS = {f"{name} {value}"[:60]: ({name: value}, "", "training_set", "its field")
                 for name, values in FIELDS.items() for value in values}  # fmt: skip
TRAINING_SETS |= {name: ({"source": "array"}, text, "data_path", "--data_path") for name, text in CONFIGS.items()}
# Other held-out images move every control; the record's own hash of them says so.
TRAINING_SETS["other held-out images"] = ({"held_out_indices": [0, 1, 2]}, "", "", "held-out images are not those")


@pytest.mark.parametrize("row", TRAINING_SETS)
def test_training_sets_edited_by_hand(row, tmp_path):
    changes, config, key, said = TRAINING_SETS[row]
    record = choose(load_source("digits"), SubsetSpec(n=100, seed=0, held_out=400)).record() | changes
    write(tmp_path / "training_set.json", json.dumps({k: v for k, v in record.items() if v is not KeyError}))
    write(tmp_path / "config.yaml", config)
    with pytest.raises(InputError, match=said) as error:
        load_references(str(tmp_path), None, False)
    assert error.value.key.startswith(key) and not (tmp_path / "sung").exists()


def evaluated(folder, **columns):
    """A stage with evaluations at steps 3, 6 and 9."""
    rows = {name: np.arange(1, 6) for name in ("seeds", "squared1", "squared2")} | columns
    (folder / "evaluations").mkdir()
    for step in (3, 6, 9):
        np.savez(folder / f"evaluations/step={step:08d}_nfe=1.npz", **rows)
    (folder / "config.yaml").write_text("model: {init_args: {optimization: {schedule: constant}}}")
    return RunFolder(folder)


def test_evaluations_after_the_audited_checkpoint_do_not_count(tmp_path):
    folder = evaluated(tmp_path, squared_error=np.arange(1.0, 6))
    (tmp_path / "evaluations/step=x_nfe=1.npz").write_bytes(b"")
    (tmp_path / "metrics.jsonl").write_bytes(b'\xff\n5\n[]\n{"a": 1}\n')
    for until, ends in ((None, (6, 9)), (8, (3, 6)), (6, (3, 6))):
        trend = distillation_record(folder, Copies(1 / 3), until=until)["rmse_trend"]["1"]
        assert (trend["from_step"], trend["to_step"]) == ends
    assert distillation_record(folder, Copies(1 / 3), until=5)["rmse_trend"]["1"] is None


COLUMNS = {
    "pickle": {"squared1": np.array([{}] * 5, dtype=object)},
    "short": {"squared1": np.arange(3)},
    "nan": {"squared_error": np.full(5, np.nan)},
    "twice": {"seeds": np.zeros(5, np.int64)},
}


@pytest.mark.parametrize("damage", ["torn", "schedule", *COLUMNS])
def test_damaged_evaluations_are_not_passed_over(damage, tmp_path):
    folder = evaluated(tmp_path, **COLUMNS.get(damage, {}))
    if damage == "torn":
        file = tmp_path / "evaluations/step=00000006_nfe=1.npz"
        file.write_bytes(file.read_bytes()[:100])
    if damage == "schedule":
        (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(InputError, match="config=" if damage == "schedule" else "evaluations="):
        distillation_record(folder, Copies(1 / 3))


# ---- links and pipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["checkpoints", "evaluations", "panels", "wandb", "metrics.jsonl", "config.yaml"])
def test_entries_of_a_run_folder_that_lead_out(entry, place, refuse):
    """Training in that folder would write to the user's own files."""
    for name in ("new", "home"):
        (place / name).mkdir()
    (place / "home/precious").write_text("mine")
    (place / "new" / entry).symlink_to(place / ("home/precious" if "." in entry else "home"))
    error = refuse("fit --config own.yaml --run_dir new", "")
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
    """A name with ``..`` and a link: the page may be published, and the user's own images are nobody else's."""
    run = make_study_folder(tmp_path / "run")
    private = {"images": np.full((60, 8, 8, 1), 77, np.uint8), "seeds": np.arange(60)}
    np.savez(tmp_path / "private_consistency_nfe=1.npz", **private)
    summary = json.loads((run / "audit/summary.json").read_text())
    summary["models"][2]["name"] = "../../private"
    (run / "audit/summary.json").write_text(json.dumps(summary))
    linked = run / "samples/teacher_heun_nfe=35.npz"
    linked.unlink()
    linked.symlink_to(tmp_path / "private_consistency_nfe=1.npz")
    data = read_run(run)
    assert data.arrays("samples", data.models[0]) == {} and data.arrays("samples", data.models[2]) == {}
    assert len([note for note in data.notes if "ValueError" in note]) == 2


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_waited_for(kind, tmp_path):
    run = make_study_folder(tmp_path / "run")
    stage = run / "student"
    (stage / "evaluations").mkdir()
    names = ["config.yaml", "metrics.jsonl", "finished.json", "onset.json", "training_set.json", "wandb_id"]
    files = [stage / name for name in [*names, "evaluations/step=00000001_nfe=1.npz"]]
    for file in [*files, run / "training_set.json", run / "samples/teacher_heun_nfe=35.npz"]:
        file.unlink(missing_ok=True)
        os.mkfifo(file) if kind == "pipe" else file.symlink_to("/dev/zero")
    data = read_run(run)
    assert data.stages[1].config == {} and data.arrays("samples", data.models[0]) == {}
    folder = RunFolder(stage)
    assert MetricsRecord(folder).rows() == [] and read_wandb_id(stage) is None and folder.ending() is None
    refused = [folder.read_config, partial(load_record, run), partial(distillation_record, folder, Copies(1 / 3))]
    for read in (*refused, partial(folder.read_json, "onset.json")):
        with pytest.raises(InputError):
            read()
    with pytest.raises(ValueError, match="regular"):
        read_text(stage / "onset.json")


def test_large_texts_are_not_read(tmp_path):
    with (tmp_path / "x").open("wb") as stream:
        stream.truncate(2**40)  # a hole
    with memory(256), pytest.raises(ValueError, match="larger"):
        read_text(tmp_path / "x")


def test_a_run_folder_that_is_a_link_as_a_whole_is_used(place, capsys):
    """Runs kept on another disk."""
    (place / "disk").mkdir()
    (place / "linked").symlink_to(place / "disk")
    assert exits(["fit", "--config", "own.yaml", "--run_dir", "linked"], capsys)[0] == 0
    assert (place / "disk/checkpoints/last.ckpt").is_file()


# ---- names that are programs ----------------------------------------------------------------------------------------

SCRIPT = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload=alert(1) &lt; javascript:x"


class Elements(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


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
    elements = Elements(html).elements
    assert [tag for tag, _ in elements].count("script") == 1  # the page's own
    assert html.count("alert(1)") > 20
    assert not [name for _, a in elements for name in a if name.startswith("on")]
    links = [a[name] for _, a in elements for name in ("href", "src", "xlink:href") if a.get(name)]
    assert links and all(link.startswith(("#", "report/", "data:image/png;base64,", "data:,")) for link in links)


def test_errors_do_not_steer_the_terminal():
    text = str(InputError("a\x1b[2J", "b\x1b]0;x\x07\r", "c\u202e", "d\udce9\x9b"))
    assert text.isprintable() and text.startswith("a?[2J=b?]0;x?")


@pytest.mark.parametrize("text", ["../../x", "a/b", "a b", "", "x" * 65, "a:latest", "\0"])
def test_a_wandb_id_names_no_other_folder(text, tmp_path):
    """W&B makes a folder of the name, and asks its server for what it names."""
    (tmp_path / "wandb_id").write_text(text)
    assert read_wandb_id(tmp_path) is None
    assert teacher_link(type("M", (), {"teacher_name": str(tmp_path)}))["run_id"] is None
    made = RunFolder(tmp_path).wandb_id()
    RunFolder(tmp_path).keep_wandb_id(made)
    assert made != text and RunFolder(tmp_path).wandb_id() == made
