"""Image sets of an audit: read as training data are, counted in its notes, brought to one size on request."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from support.pools import grey_levels, save
from support.stages import cdmem, read


@pytest.fixture
def place(tmp_path):
    """T in half PNG and half TIFF, H, and a generator that returns the TIFFs."""
    for k in range(40):
        image = grey_levels(8, 8, 3)
        save(tmp_path / "train" / f"{k}.{'tiff' if k % 2 else 'png'}", image)
        if k % 2:
            save(tmp_path / "copies" / f"{k}.png", image)
        save(tmp_path / "held" / f"{k}.png", grey_levels(8, 8, 3))
    return tmp_path


def audit(place, *more, generator="copies", training_set="train", held_out="held"):
    out = place / "out.json"
    names = {"--generator": generator, "--training_set": training_set, "--held_out": held_out}
    (place / "out.json").unlink(missing_ok=True)
    options = [part for name, value in names.items() if value for part in (name, place / value)]
    code = cdmem("audit", "--quiet", *options, "--metrics", "memorization", "--out", out, *more)
    return code, read(out) if code < 2 else None


def notes(record):
    return " | ".join(record["notes"])


def refused(capsys, *args, **more):
    assert audit(*args, **more)[0] == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("cdmem: error: ") and "\n" not in error
    return error


def test_copies_of_one_format_are_found_among_two(place, capsys):
    (place / "train" / "notes.txt").write_text("words")
    code, record = audit(place, "--fail_above", 0.01)
    assert code == 1 and record["models"][0]["f_mem"]["value"] == 1 and record["training_set"]["n"] == 40
    told = notes(record)
    assert "training_set: 40 images read (20 PNG, 20 TIFF); 1 .txt skipped" in told
    assert "generator: 20 images read (20 PNG)" in told and "held_out: 40 images read" in told
    assert "training_set: 40 images read" in capsys.readouterr().out


def test_one_unreadable_picture_is_an_error_unless_asked_for(place, capsys):
    for folder, name in (("train", "training_set"), ("held", "held_out"), ("copies", "generator")):
        (place / folder / "x.png").write_bytes(b"torn")
        error = refused(capsys, place)
        assert f"error: {name}=" in error and "--skip_unreadable" in error
        code, record = audit(place, "--skip_unreadable")
        assert code == 0 and f"{name}: " in notes(record) and "1 damaged" in notes(record)
        (place / folder / "x.png").unlink()


def test_parts_are_refused_for_every_set(place, capsys):
    (place / "both" / "sub").mkdir(parents=True)
    (place / "train").rename(place / "both" / "train")
    (place / "held").rename(place / "both" / "test")
    for more in ({"training_set": "both", "held_out": None}, {"generator": "both", "training_set": "copies"}):
        assert "sub-folder" in refused(capsys, place, **({"held_out": None} | more))
    assert audit(place, training_set="both/train", held_out="both/test")[0] == 0


def test_mixed_sizes_are_resized_or_cropped_as_in_training(place, capsys):
    save(place / "train" / "wide.png", grey_levels(10, 14, 3))
    error = refused(capsys, place)
    assert error.startswith("cdmem: error: training_set=") and "--resolution" in error
    for option in ("--resolution", "--crop"):
        code, record = audit(place, option, 6)
        assert code == 0 and record["training_set"]["shape"] == [3, 6, 6] and record["training_set"]["n"] == 41
        assert record["models"][0]["f_mem"]["value"] == 1
    assert refused(capsys, place, "--crop", 9).startswith("cdmem: error: crop=9")
    assert refused(capsys, place, "--resolution", 0).startswith("cdmem: error: resolution=0")
    code, record = audit(place, "--crop", 8, "--grayscale")
    assert code == 0 and record["training_set"]["shape"] == [1, 8, 8]


def test_grey_samples_against_colour_are_told(place):
    for k in range(20):
        save(place / "grey" / f"{k}.png", grey_levels(8, 8))
    _, record = audit(place, generator="grey")
    assert "generator: grey images were compared as three equal channels" in notes(record)
    _, record = audit(place)
    assert "compared as" not in notes(record)
    for k in range(20):
        save(place / "equal" / f"{k}.png", np.repeat(grey_levels(8, 8, 1), 3, axis=2))
    _, record = audit(place, generator="equal", training_set="grey", held_out=None)
    assert "generator: images of three equal channels were compared as grey" in notes(record)


def test_every_kind_of_set_goes_for_every_role(place):
    arrays = {
        name: np.stack([np.asarray(Image.open(f)) for f in sorted((place / name).iterdir())]) for name in ("held",)
    }
    np.savez(place / "held.npz", arrays["held"], np.arange(40) % 3)
    import zipfile

    with zipfile.ZipFile(place / "train.zip", "w") as archive:
        for file in (place / "train").iterdir():
            archive.write(file, f"00000/{file.name}")
        archive.writestr("dataset.json", json.dumps({"labels": None}))
    code, record = audit(place, training_set="train.zip", held_out="held.npz")
    assert code == 0 and record["models"][0]["f_mem"]["value"] == 1
    assert "40 images read (40 .npz)" in notes(record)
