"""T and H of an audit from runs, records, arrays and folders; nothing is compared that does not belong together."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cdmem.audit.reference_sets import from_record, load_references, match_channels, read_images
from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from cdmem.errors import InputError


def digits(**options):
    spec = SubsetSpec(n=12, seed=3, held_out=20, duplication=[{"fraction": 0.25, "copies": 4}], **options)
    return choose(load_source("digits"), spec)


def save(path, images):
    np.savez(path, images=images.permute(0, 2, 3, 1).numpy())
    return str(path)


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_record_of_digits_is_rebuilt_to_the_last_pixel(tmp_path, as_folder):
    t = digits()
    (tmp_path / "training_set.json").write_text(json.dumps(t.record()))
    found, notes = load_references(str(tmp_path if as_folder else tmp_path / "training_set.json"), None, False)
    assert found.hash == t.hash and torch.equal(found.images, t.images) and notes == []
    assert torch.equal(found.held_out_images, t.held_out_images)
    assert torch.equal(found.multiplicities, t.multiplicities)


def test_a_record_of_an_array_finds_it_through_the_config_or_data_path(tmp_path):
    images = torch.randint(0, 256, (40, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    array = save(tmp_path / "pool.npz", images)
    t = choose(load_source("array", array), SubsetSpec(n=8, seed=1, held_out=4))
    run = tmp_path / "run"
    run.mkdir()
    (run / "training_set.json").write_text(json.dumps(t.record()))
    with pytest.raises(InputError, match="--data_path"):
        load_references(str(run), None, False)
    assert load_references(str(run), None, False, array)[0].hash == t.hash
    (run / "config.yaml").write_text(f"data: {{source: array, path: {array}}}\n")
    assert load_references(str(run), None, False)[0].hash == t.hash
    other = save(tmp_path / "other.npz", 255 - images)
    with pytest.raises(InputError, match="hash"):
        from_record(run, other)
    with pytest.raises(InputError, match="does not have"):
        from_record(run, save(tmp_path / "short.npz", images[:5]))


def test_repeated_rows_become_multiplicities(tmp_path):
    t = digits()
    rows = save(tmp_path / "rows.npz", t.images[t.row_to_group][torch.randperm(t.rows)])
    found, notes = load_references(rows, None, False)
    assert found.hash == t.hash and sorted(found.multiplicities.tolist()) == sorted(t.multiplicities.tolist())
    assert len(found.held_out_images) == 0 and any("no held-out" in note for note in notes)


@pytest.mark.parametrize("flip", [False, True])
def test_held_out_images_of_the_training_set_are_removed_and_counted(tmp_path, flip):
    t = digits()
    rows = save(tmp_path / "rows.npz", t.images)
    mirrored = t.images[:2].flip(-1)
    held = save(tmp_path / "held.npz", torch.cat([t.held_out_images, t.images[:3], t.held_out_images[:1], mirrored]))
    found, notes = load_references(rows, held, flip)
    shared = 5 if flip else 3
    assert any(note.startswith(f"{shared} of the held-out") for note in notes)
    assert any(note.startswith("1 repeated") for note in notes)
    assert len(found.held_out_images) == 20 + (0 if flip else 2) and found.flip is flip


def test_held_out_of_a_run_means_its_held_out_images(tmp_path):
    t = digits()
    (tmp_path / "training_set.json").write_text(json.dumps(t.record()))
    rows = save(tmp_path / "rows.npz", t.images)
    found, _ = load_references(rows, str(tmp_path), False)
    assert torch.equal(found.held_out_images, t.held_out_images)


def test_a_folder_of_grey_pictures_matches_grey_training_images(tmp_path):
    t = digits()
    for k, image in enumerate(t.held_out_images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{k:03d}.png")
    found = match_channels(read_images(tmp_path, "held_out"), t.shape, "held_out")
    assert torch.equal(found, t.held_out_images)
    assert match_channels(found, (3, 8, 8), "held_out").shape == (20, 3, 8, 8)


def test_colour_against_grey_and_other_sizes_are_refused():
    colour = torch.arange(3 * 64, dtype=torch.uint8).reshape(1, 3, 8, 8)
    for images in (colour, torch.zeros(1, 1, 9, 8, dtype=torch.uint8)):
        with pytest.raises(InputError, match="generator="):
            match_channels(images, (1, 8, 8), "generator")


@pytest.mark.parametrize("name", ["missing.npz", "empty.npz", "text.npz", "object.npy", "float.npz"])
def test_unreadable_files_name_the_option(tmp_path, name):
    file = tmp_path / name
    if name == "empty.npz":
        np.savez(file, nothing=np.zeros(3))
    elif name == "text.npz":
        file.write_text("no zip")
    elif name == "object.npy":
        np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    elif name == "float.npz":
        np.savez(file, images=np.zeros((4, 8, 8, 1)))
    with pytest.raises(InputError) as error:
        load_references(str(file), None, False)
    assert str(error.value).startswith("training_set=") and "\n" not in str(error.value)
