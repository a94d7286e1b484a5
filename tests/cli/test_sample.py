"""Samples as a file, a grid or a folder, and of chosen classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdmem.diffusion.sampling import NoiseSource
from cdmem.seeds import first_sample
from support.stages import cdmem, fit, last_line, read, stage


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Class-conditional teacher and student, and a teacher without classes."""
    folder = tmp_path_factory.mktemp("sampled")
    fast = {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.03}}}
    assert fit(folder, stage("teacher", conditional=True, sampler_points=4, **fast), run="teacher") == 0
    assert fit(folder, stage("student", teacher=str(folder / "teacher"), points=5, **fast), run="student") == 0
    assert fit(folder, stage("teacher", sampler_points=4), run="plain") == 0
    return folder


def sample(run: Path, out: object, count: int, *args: object) -> None:
    words = ["--checkpoint", run, "--samples", count, "--seed", 0, "--out", out]
    assert cdmem("sample", *words, *args) == 0


def arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as content:
        return {name: content[name] for name in content.files}


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_holds_the_images_by_seed_and_is_audited_as_they_are(runs, tmp_path, slash):
    (tmp_path / "folder").mkdir()  # an empty one is free
    sample(runs / "plain", f"folder{slash}", 12, "--seed", 7)
    sample(runs / "plain", "same.npz", 12, "--seed", 7)
    file, pictures = arrays(tmp_path / "same.npz"), sorted((tmp_path / "folder").iterdir())
    assert file["seeds"][0] == first_sample(7) and [int(p.stem) for p in pictures] == file["seeds"].tolist()
    for picture, image in zip(pictures, file["images"]):
        assert np.array_equal(np.asarray(Image.open(picture)), image[..., 0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "same.npz", "same.png"]
    found = []
    for generator in ("folder", "same.npz"):
        out = tmp_path / f"{generator}.json"
        words = ["--metrics", "memorization", "--samples", 12, "--quiet", "--out", out]
        assert cdmem("audit", "--generator", generator, "--training_set", runs / "plain", *words) == 0
        found.append(read(out)["models"][0])
    rows, seeds = (model.pop("seeds") for model in found)  # pictures are taken in their order, a file has its seeds
    assert rows == [0, 11] and seeds == [first_sample(7), first_sample(7) + 11] and found[0] == found[1]


@pytest.mark.parametrize(("out", "files", "shown"), [("a.png", ["a.png"], 300), ("a.npz", ["a.npz", "a.png"], 256)])
def test_a_grid_says_how_much_it_shows(runs, tmp_path, capsys, out, files, shown):
    sample(runs / "plain", out, 300)
    assert sorted(p.name for p in tmp_path.iterdir()) == files
    rows = -(-shown // 16)
    assert Image.open(tmp_path / "a.png").size == (16 * 33 - 1, rows * 33 - 1)
    assert ("the first 256" in capsys.readouterr().out) is (shown == 256)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_classes_are_given_in_turn_and_belong_to_the_seed(runs, tmp_path, name):
    sample(runs / name, "turn.npz", 6, "--classes", 3, 5)
    sample(runs / name, "three.npz", 6, "--classes", 3, "--batch_size", 4)
    sample(runs / name, "drawn.npz", 6)
    turn, three, drawn = (arrays(tmp_path / f"{part}.npz") for part in ("turn", "three", "drawn"))
    assert turn["seeds"].tolist() == list(range(6)) and turn["labels"].tolist() == [3, 5] * 3
    assert drawn["labels"].tolist() == NoiseSource(range(6), (1, 8, 8)).labels(10).tolist()
    differ = np.abs(turn["images"].astype(int) - three["images"]).max((1, 2, 3))
    assert (differ[::2] <= 1).all() and (differ[1::2] > 1).any()


def test_a_model_without_classes_writes_what_it_wrote(runs, tmp_path):
    sample(runs / "plain", "a.npz", 3)
    assert arrays(tmp_path / "a.npz").keys() == {"images", "seeds"}


@pytest.mark.parametrize(
    ("name", "args", "key"),
    [
        ("plain", ["--classes", "0"], "classes=[0]: this teacher is unconditional"),
        ("student", ["--classes", "3", "10"], "classes=10: is no class of the model; use 0 to 9"),
        ("teacher", ["--classes", "-1"], "classes=-1"),
        ("teacher", ["--classes", "[]"], "classes=[]"),
        ("teacher", ["--classes", "cat"], "classes=cat"),
        ("plain", ["--out", "a.jpg"], "out=a.jpg: .jpg is no format that is written"),
        ("plain", ["--out", "full"], "out=full: exists already"),
        ("plain", ["--out", "file/"], "out=file"),
        ("plain", ["--out", "file/below"], "out=file/below"),
        ("plain", ["--out", "taken.png"], "out=taken.png: exists already"),
        ("plain", ["--out", "taken.npz"], "out=taken.png: exists already"),
    ],
)
def test_what_cannot_be_is_refused(runs, tmp_path, capsys, name, args, key):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "taken.png").touch()
    assert cdmem("sample", "--checkpoint", runs / name, "--samples", 2, *args) == 2
    assert last_line(capsys).startswith(f"cdmem: error: {key}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full", "taken.png"]
