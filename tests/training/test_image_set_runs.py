"""Training on one's own images: what was read stands in the record, and the record gives the same set again."""

from __future__ import annotations

import json

import pytest
import torch

from cdmem.audit.reference_sets import load_references
from cdmem.data.pixels import as_channels
from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from support.pools import grey_levels, save
from support.stages import cdmem, fit, last_line, read, stage

OWN = {"source": "folder", "n": 8, "held_out": 4, "duplication": None}


@pytest.fixture
def photos(tmp_path):
    for k in range(16):
        save(tmp_path / "photos" / f"{k}.{'tif' if k % 2 else 'png'}", grey_levels(6, 6))
        save(tmp_path / "others" / f"{k}.gif", grey_levels(6, 6))
    (tmp_path / "photos" / "notes.txt").write_text("words")
    return tmp_path


def test_a_run_records_what_was_read(photos, capsys):
    data = OWN | {"path": str(photos / "photos"), "held_out_path": str(photos / "others")}
    assert fit(photos, stage("teacher", None, data)) == 0
    record = read(photos / "run" / "training_set.json")
    assert record["shape"] == [1, 6, 6]  # grey pictures train one channel
    about = record["provenance"]
    assert about["images"] == {"read": 16, "formats": {"PNG": 8, "TIFF": 8}, "skipped": {".txt": 1}}
    assert about["held_out"]["images"] == {"read": 16, "formats": {"GIF": 16}, "skipped": {}}
    found, notes = load_references(str(photos / "run"), None, False)
    assert found.hash == record["hash"]
    read_of_t = "16 images read (8 PNG, 8 TIFF); 1 .txt skipped"
    assert notes == [f"training_set: {read_of_t}", "its held-out images: 16 images read (16 GIF)"]
    printed = capsys.readouterr().out
    assert f"data.path: {read_of_t}" in printed and "data.held_out_path: 16 images read (16 GIF)" in printed
    generator = ["--generator", photos / "others", "--training_set", photos / "run", "--metrics", "memorization"]
    assert cdmem("audit", *generator, "--quiet", "--skip_unreadable") == 0
    lone = ["--generator", photos / "run", "--training_set", photos / "run", "--samples", 4, "--crop", 4]
    assert cdmem("audit", *lone, "--quiet") == 2  # nothing there that it would crop


def test_an_unreadable_picture_stops_a_run_before_it_begins(photos, capsys):
    (photos / "photos" / "torn.png").write_bytes(b"torn")
    config = stage("teacher", None, OWN | {"path": str(photos / "photos")})
    assert fit(photos, config) == 2 and not (photos / "run").exists()
    assert "data.skip_unreadable=true" in last_line(capsys)
    assert fit(photos, config, "--data.skip_unreadable", "true") == 0
    record = read(photos / "run" / "training_set.json")
    assert record["provenance"]["images"]["skipped"] == {".txt": 1, "damaged": 1}
    assert load_references(str(photos / "run"), None, False)[0].hash == record["hash"]


@pytest.mark.parametrize("key", ["path", "held_out_path"])
def test_parts_are_refused_before_a_run_begins(photos, capsys, key):
    (photos / "both").mkdir()
    (photos / "others").rename(photos / "both" / "train")
    save(photos / "both" / "test" / "0.png", grey_levels(6, 6))
    assert fit(photos, stage("teacher", None, OWN | {"path": str(photos / "photos"), key: str(photos / "both")})) == 2
    error = last_line(capsys)
    assert f"data.{key}=both" in error and "test, train" in error and "held_out_path" in error


def test_a_record_of_grey_pictures_in_three_channels_is_still_that_set(photos):
    pool = load_source("folder", str(photos / "photos"))
    before = choose(
        type(pool)(**{**vars(pool), "images": as_channels(pool.images, 3)}), SubsetSpec(n=8, seed=1, held_out=4)
    )
    (photos / "old").mkdir()
    (photos / "old" / "training_set.json").write_text(json.dumps(before.record()))
    found, _ = load_references(str(photos / "old"), None, False, str(photos / "photos"))
    assert found.hash == before.hash and torch.equal(found.held_out_images, before.held_out_images)
