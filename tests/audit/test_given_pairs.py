"""``audit --teacher IMAGES``: sample sets made elsewhere are paired row by row or by their seeds, and get a verdict."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from support.stages import cdmem, read

SEEDS = 240


@pytest.fixture(scope="module")
def t():
    return choose(load_source("digits"), SubsetSpec(n=60, seed=2, held_out=400))


def pixels(images):
    return images.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def sets(t):
    """A teacher that copies nine of ten seeds, and a student that forgot half of them; uint8 (m, 8, 8, 1)."""
    r = np.random.default_rng(0)
    train, new = pixels(t.images), pixels(t.held_out_images)
    copied, lost = (r.random(SEEDS) < share for share in (0.9, 0.5))

    def near(x):
        return np.clip(np.rint(x + r.normal(0, 4, x.shape)), 0, 255).astype(np.uint8)

    teacher = near(np.where(copied[:, None, None, None], train[r.integers(0, 60, SEEDS)], new[:SEEDS]))
    student = near(np.where((copied & lost)[:, None, None, None], new[-SEEDS:], teacher))
    return {"teacher": teacher, "student": student}


@pytest.fixture(scope="module")
def place(tmp_path_factory, t, sets):
    folder = tmp_path_factory.mktemp("given")
    np.savez(folder / "train.npz", images=pixels(t.images))
    np.savez(folder / "held.npz", images=pixels(t.held_out_images))
    for name, images in sets.items():
        np.savez(folder / f"{name}.npz", images=images)
    return folder


def pair(place, out, *more, generator="student.npz", teacher="teacher.npz"):
    words = ["audit", "--quiet", "--generator", place / generator, "--teacher", place / teacher]
    words += ["--training_set", place / "train.npz", "--held_out", place / "held.npz", "--metrics", "quality"]
    return cdmem(*words, "--out", out, *more)


def without_names(record):
    """What may not depend on the files' names and order."""
    kept = {key: record[key] for key in ("models", "control", "settings")}
    kept["settings"] = {k: v for k, v in kept["settings"].items() if k != "asked"}
    for model in kept["models"]:
        model |= {"digest": "", "seeds": None}
    return json.dumps(kept, sort_keys=True)


def test_row_by_row(place, tmp_path, capsys):
    """Known truth: about half of the copies are gone, which is said on the user's word that it stays so."""
    out = tmp_path / "o.json"
    assert pair(place, out) == 0
    record = read(out)
    assert [(m["name"], m["role"], m["method"], m["nfe"]) for m in record["models"]] == [
        ("teacher", "teacher", "given", 0),
        ("student", "student", "given", 0),
    ]
    student = record["models"][1]
    assert student["verdict"]["claim"] == "undecided" and "no limit" in student["verdict"]["reason"]
    assert "convergence is unknown" in " ".join(record["notes"]) and record["settings"]["converged"] is None
    assert student["paired"]["transfer"]["lost"] > 80 and sum(student["paired"]["transfer"].values()) == SEEDS
    assert student["paired"]["seeds_belong_together"] is True
    assert student["verdict"]["lost_seeds"]["nearest_to_same"]["value"] < 0.1
    out = tmp_path / "given.json"
    assert pair(place, out, "--converged") == 0
    record, printed = read(out), capsys.readouterr().out
    verdict = record["models"][1]["verdict"]
    assert verdict["claim"] == "reduced" and verdict["statement"] in printed
    assert record["settings"]["converged"] == "given by the user" and "taken as given" in verdict["statement"]
    assert {"coverage", "limit", "lost_seeds", "specific"} <= verdict.keys() and verdict["specific"] is None
    assert without_names(record)  # plain types throughout


@pytest.mark.parametrize("converged", [[], ["--converged"]])
def test_pairs_by_seed_in_any_order(place, tmp_path, sets, converged):
    """Shuffled files with their seeds: the same numbers to the last bit as rows in order."""
    r = np.random.default_rng(1)
    seeds = np.sort(r.choice(10**6, SEEDS, replace=False))
    ordered, mixed = tmp_path / "ordered", tmp_path / "mixed"
    for folder in (ordered, mixed):
        folder.mkdir()
        for name, images in sets.items():
            order = r.permutation(SEEDS) if folder == mixed else np.arange(SEEDS)
            np.savez(folder / f"{name}.npz", images=images[order], seeds=seeds[order])
    found = []
    for k, folder in enumerate((ordered, mixed)):
        files = {"generator": folder / "student.npz", "teacher": folder / "teacher.npz"}
        assert pair(place, tmp_path / f"{k}.json", *converged, **files) == 0
        found.append(read(tmp_path / f"{k}.json"))
    assert found[0]["models"][1]["seeds"] == [int(seeds[0]), int(seeds[-1])]
    assert without_names(found[0]) == without_names(found[1])


def test_fewer_samples_are_the_same_seeds_of_both(place, tmp_path, sets):
    """The first seeds, whatever the order in either file."""
    r, entries = np.random.default_rng(2), []
    for k in range(2):
        files = {}
        for key, name in (("generator", "student"), ("teacher", "teacher")):
            order = r.permutation(SEEDS)
            files[key] = tmp_path / f"{name}{k}.npz"
            np.savez(files[key], images=sets[name][order], seeds=order)
        assert pair(place, tmp_path / f"{k}.json", "--samples", 60, **files) == 0
        entries.append(read(tmp_path / f"{k}.json")["models"][1])
    assert entries[0]["samples"] == 60 and entries[0]["seeds"] == [0, 59]
    assert [e["paired"] for e in entries] == [entries[0]["paired"]] * 2


def test_large_and_negative_seeds(place, tmp_path, sets):
    """Seeds are names: any whole numbers."""
    numbers = np.arange(SEEDS, dtype=np.int64) * 2**54 - 2**62
    for name, images in sets.items():
        np.savez(tmp_path / f"{name}.npz", images=images, seeds=numbers)
    files = {"generator": tmp_path / "student.npz", "teacher": tmp_path / "teacher.npz"}
    assert pair(place, tmp_path / "o.json", "--converged", **files) == 0
    assert read(tmp_path / "o.json")["models"][1]["verdict"]["claim"] == "reduced"


# ---- bad input: one line that names the key -------------------------------------------------------------------------

ALL = np.arange(SEEDS)
WRONG = {  # what is wrong with the teacher's and with the student's file, and words of the error
    "a row less": ({"images": slice(1, None)}, {}, "teacher=", "holds 239 images, the generator 240"),
    "other seeds": ({"seeds": ALL + 1}, {"seeds": ALL}, "teacher=", "other seeds than the generator (such as 240)"),
    "seeds of one file alone": ({"seeds": ALL + 7}, {}, "teacher=", "other seeds"),
    "a seed twice": ({"seeds": np.r_[ALL[:-1], 0]}, {"seeds": ALL}, "teacher=", "240 different whole numbers"),
    "a seed of the student twice": ({}, {"seeds": np.r_[ALL[:-1], 0]}, "generator=", "240 different whole numbers"),
    "too few seeds": ({}, {"seeds": ALL[:5]}, "generator=", "one for each image"),
    "too many seeds": ({"seeds": np.arange(241)}, {}, "teacher=", "one for each image"),
    "a table of seeds": ({"seeds": ALL[:, None]}, {}, "teacher=", "one for each image"),
    "seeds that are fractions": ({"seeds": ALL + 0.5}, {}, "teacher=", "whole numbers"),
    "seeds that are words": ({"seeds": ALL.astype(str)}, {}, "teacher=", "whole numbers"),
    "seeds that are pickles": ({"seeds": np.array([{}] * SEEDS, dtype=object)}, {}, "teacher=", "cannot be read"),
    "images of another shape": ({"shape": (8, 9, 1)}, {}, "teacher=", ""),
    "images with colours": ({"shape": (8, 8, 3)}, {}, "teacher=", ""),
    "images of fractions": ({"dtype": float}, {}, "teacher=", "uint8"),
    "one image": ({"images": slice(1)}, {}, "teacher=", "at least 2"),
}


def spoilt(images, changes):
    content = {"images": images[changes.get("images", slice(None))]}
    if "shape" in changes:
        content["images"] = np.random.default_rng(0).integers(0, 256, (SEEDS, *changes["shape"]), np.uint8)
    if "dtype" in changes:
        content["images"] = content["images"].astype(changes["dtype"])
    return content | {k: v for k, v in changes.items() if k == "seeds"}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_line(place, tmp_path, sets, capsys, case):
    teacher, student, key, words = WRONG[case]
    np.savez(tmp_path / "teacher.npz", **spoilt(sets["teacher"], teacher))
    np.savez(tmp_path / "student.npz", **spoilt(sets["student"], student))
    files = {"generator": tmp_path / "student.npz", "teacher": tmp_path / "teacher.npz"}
    assert pair(place, tmp_path / "o.json", **files) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"cdmem: error: {key}") and "\n" not in error and words in error
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize("teacher", ["none.npz", "words.txt", "empty"])
def test_a_teacher_that_is_no_images_is_one_line(place, tmp_path, capsys, teacher):
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "empty").mkdir()
    assert pair(place, tmp_path / "o.json", teacher=tmp_path / teacher) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("cdmem: error: teacher=") and "\n" not in error
