"""A data source of the user's own: what it must give, and when a record's word for it is taken."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from cdmem.audit.reference_sets import from_record
from cdmem.data.pixels import ImagePool
from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from cdmem.errors import InputError
from cdmem.io import own_code

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 1, 4, 4), dtype=np.uint8))
POOL = ImagePool(PIXELS, torch.arange(12) % 3, ("a", "b", "c"), torch.arange(12), "mine", {"where": ("x", 1)})


def pool(**changes):
    return lambda path, options, download: replace(POOL, **changes)


def fails(path, options, download):
    raise KeyError("shard 3")


WRONG = {
    "floats": (pool(images=PIXELS.float()), "images are not uint8"),
    "an array": (pool(images=PIXELS.numpy()), "images are not uint8"),
    "three dimensions": (pool(images=PIXELS[:, 0]), "images are not uint8"),
    "two channels": (pool(images=PIXELS.expand(-1, 2, -1, -1)), "images have shape"),
    "none": (pool(images=PIXELS[:0]), "images have shape"),
    "few labels": (pool(labels=torch.arange(3)), "labels are not int64"),
    "float labels": (pool(labels=torch.zeros(12)), "labels are not int64"),
    "a label too many": (pool(labels=torch.arange(12)), "labels are not 0 to 2"),
    "number names": (pool(class_names=(0, 1, 2)), "class_names"),
    "repeated indices": (pool(indices=torch.zeros(12, dtype=torch.int64)), "indices are not one number"),
    "negative indices": (pool(indices=torch.arange(12) - 1), "indices are not one number"),
    "listed indices": (pool(indices=list(range(12))), "indices are not int64"),
    "numpy provenance": (pool(provenance={"seed": np.int64(1)}), "provenance holds"),
    "listed provenance": (pool(provenance=[1]), "provenance is no mapping"),
    "no pool": (lambda path, options, download: PIXELS, "gives a Tensor, no ImagePool"),
    "fails": (fails, r"cannot be read .KeyError: 'shard 3', test_own_source.py line"),
    "no reader": (lambda path: POOL, "is no reader"),
}


@pytest.fixture
def source(monkeypatch):
    """Makes a function one that a config can name; its name."""

    def make(read):
        module = ModuleType("own_images")
        module.read = read
        monkeypatch.setitem(sys.modules, "own_images", module)
        return "own_images.read"

    with own_code.consent(False):
        yield make


@pytest.mark.parametrize("case", WRONG)
def test_what_it_must_give(case, source):
    read, said = WRONG[case]
    with pytest.raises(InputError, match=rf"^data\.source=own_images\.read: .*{said}"):
        load_source(source(read), own=True)


def test_it_gets_the_settings_and_is_recorded_by_its_name(source):
    asked = []

    def read(path, options, download):
        asked.append((str(path), options.resolution, download))
        return POOL

    found = load_source(source(read), "some/where", resolution=4, download=True, classes=["b"], own=True)
    assert asked == [("some/where", 4, True)]
    assert found.source == "own_images.read" and found.indices.tolist() == [1, 4, 7, 10]
    assert found.provenance["where"] == ["x", 1] and found.provenance["classes"] == ["b"]


def test_a_record_is_read_back_with_consent(source, tmp_path):
    name = source(pool())
    with own_code.consent(False):
        wanted = choose(load_source(name, own=True), SubsetSpec(n=4, held_out=3))
        (tmp_path / "training_set.json").write_text(json.dumps(wanted.record()))
        assert from_record(tmp_path).hash == wanted.hash  # named by the user in this command
    with own_code.consent(False), pytest.raises(InputError, match=r"^data\.source=own_images\.read: .*--allow_code"):
        from_record(tmp_path)
    with own_code.consent(True):
        back = from_record(tmp_path)
        assert back.hash == wanted.hash and torch.equal(back.held_out_images, wanted.held_out_images)
    source(pool(images=PIXELS.flip(0)))
    with own_code.consent(True), pytest.raises(InputError, match="are not those of the record"):
        from_record(tmp_path)


@pytest.mark.parametrize("name", ["subprocess.run", "os.system", "shutil.copytree"])
def test_a_record_calls_no_function_that_nobody_named(name, tmp_path):
    record = choose(load_source("digits"), SubsetSpec(n=4, held_out=3)).record() | {"source": name}
    (tmp_path / "training_set.json").write_text(json.dumps(record))
    (tmp_path / "config.yaml").write_text("data: {source: x, path: 'touch sung'}")
    with own_code.consent(False), pytest.raises(InputError, match="--allow_code"):
        from_record(tmp_path)
