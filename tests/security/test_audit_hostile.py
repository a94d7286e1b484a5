"""The audit against hostile users and careless claims: one line for every bad input, no claim for a damaged student."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from cdmem.audit.distillation_curve import distillation_record
from cdmem.audit.reference_sets import load_references, with_held_out
from cdmem.cli.main import main
from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from cdmem.errors import InputError
from cdmem.images import to_float, to_uint8
from cdmem.metrics.comparison.equal_noise import fidelity_matched
from cdmem.metrics.comparison.paired import PairedWithTeacher, adjust, compare
from cdmem.metrics.comparison.verdict import judge
from cdmem.metrics.memorization.fraction import fraction
from cdmem.metrics.memorization.ratio import memorized, ratios
from cdmem.metrics.neighbors.index import group_index
from cdmem.metrics.quality.fidelity import Fidelity
from cdmem.metrics.whitebox.record import whitebox_record
from cdmem.models.pipelines import load_pipeline
from cdmem.run.folder import RunFolder


def audit(*args: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["audit", "--quiet", *map(str, args)])
    return int(stop.value.code)


def refused(capsys, *args: object) -> str:
    assert audit(*args) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("cdmem: error: ") and "\n" not in error
    return error


@pytest.fixture(scope="module")
def t():
    return choose(load_source("digits"), SubsetSpec(n=100, seed=0, held_out=400))


@pytest.fixture
def files(tmp_path, t):
    np.savez(tmp_path / "t.npz", images=t.images[:, 0].numpy())
    np.savez(tmp_path / "h.npz", images=t.held_out_images[:60, 0].numpy())
    np.savez(tmp_path / "g.npz", images=t.held_out_images[60:90, 0].numpy())
    return tmp_path


def test_places_that_cannot_be_written_are_refused_before_the_audit(files, capsys):
    common = ["--generator", files / "g.npz", "--training_set", files / "t.npz"]
    link = files / "link.json"
    link.symlink_to(files / "nowhere")
    (files / "folder.json").mkdir()
    for out in (link, files / "folder.json", files / "g.npz/o.json", "/proc/o.json", files / ("a" * 300 + ".json")):
        assert "out=" in refused(capsys, *common, "--out", out)
        assert capsys.readouterr().out == ""
    assert link.is_symlink() and not (files / "nowhere").exists()
    assert "out=" in refused(capsys, *common, "--out", "a\0b.json")
    assert audit(*common, "--metrics", "memorization", "--out", files / "no/such/o.json") == 0
    json.loads((files / "no/such/o.json").read_text(), parse_constant=pytest.fail)


def test_names_that_are_no_paths(files, capsys):
    for name in ("a" * 5000, "~no_such_user_at_all/x", "", "a\0b"):
        assert "generator=" in refused(capsys, "--generator", name, "--training_set", files / "t.npz")
        assert "training_set=" in refused(capsys, "--generator", files / "g.npz", "--training_set", name)


def test_options_that_would_be_ignored_and_devices_without_data(files, capsys):
    common = ["--generator", files / "g.npz", "--training_set", files / "t.npz"]
    assert "weights=" in refused(capsys, *common, "--weights", "raw")
    assert "teacher=" in refused(capsys, *common, "--teacher", files)
    assert "device=" in refused(capsys, *common, "--device", "meta")
    assert "near_duplicates=" in refused(capsys, *common, "--near_duplicates", "0.9999")


def test_two_images_have_a_fraction_but_no_distance(files, t, tmp_path):
    np.savez(tmp_path / "two.npz", images=t.images[:2, 0].numpy())
    common = ["--training_set", files / "t.npz", "--held_out", files / "h.npz", "--out", tmp_path / "o.json"]
    assert audit("--generator", tmp_path / "two.npz", *common) == 0
    (model,) = json.loads((tmp_path / "o.json").read_text())["models"]
    assert model["f_mem"]["value"] == 1.0 and model["quality"]["fd_pixels"] is None


def record_with(t, **changes):
    record = t.record() | changes
    return {k: v for k, v in record.items() if v is not KeyError}


BAD_FIELDS = [
    {"indices": ["5"] * 100},
    {"indices": [0.5] * 100},
    {"indices": [float("inf")] * 100},
    {"multiplicities": [-1] * 100},
    {"multiplicities": [0] * 100},
    {"multiplicities": [1.5] * 100},
    {"multiplicities": [10**30] * 100},
    {"multiplicities": [[1]] * 100},
    {"hash": 5},
    {"provenance": KeyError},
    {"provenance": []},
    {"provenance": {"resolution": 100_000}},
    {"provenance": {"crop": "x"}},
    {"source": KeyError},
    {"source": [1]},
    {"class_names": 5},
    {"flip": "no"},
    {"held_out_indices": [-1]},
]


@pytest.mark.parametrize("changes", BAD_FIELDS, ids=str)
def test_a_record_edited_by_hand(tmp_path, t, changes):
    (tmp_path / "training_set.json").write_text(json.dumps(record_with(t, **changes)))
    with pytest.raises(InputError, match="makes no sense") as caught:
        load_references(str(tmp_path), None, False)
    assert caught.value.key == "training_set"


def test_held_out_images_are_proven_too(tmp_path, t):
    """Other held-out images move every control; the record's own hash of them says so."""
    (tmp_path / "training_set.json").write_text(json.dumps(record_with(t, held_out_indices=t.indices.tolist()[:5])))
    with pytest.raises(InputError, match="held-out images are not those"):
        load_references(str(tmp_path), None, False)


HOSTILE_YAML = [
    "data: !!python/object/apply:os.system ['touch sung']",
    "[" * 3000,
    "data: {source: array, path: [1]}",
    "data: {source: array, path: 2020-99-99}",
    "data: {source: array, path: '~no_such_user_at_all/x.npz'}",
    "data: {source: array, path: /no/such.npz}",
    "a: &a [x, x]\nb: &b [*a, *a]\ndata: {source: array, path: *b}",
]


@pytest.mark.parametrize("text", HOSTILE_YAML)
def test_a_hostile_config_beside_a_record(tmp_path, t, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training_set.json").write_text(json.dumps(record_with(t, source="array")))
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match="--data_path") as caught:
        load_references(str(tmp_path), None, False)
    assert caught.value.key == "data_path" and not (tmp_path / "sung").exists()


def stage(folder, steps=(3, 6, 9), **columns):
    rows = {name: np.arange(1, 6) for name in ("seeds", "squared1", "squared2")} | columns
    (folder / "evaluations").mkdir()
    for step in steps:
        np.savez(folder / f"evaluations/step={step:08d}_nfe=1.npz", **rows)
    (folder / "config.yaml").write_text("model: {init_args: {optimization: {schedule: constant}}}")
    return RunFolder(folder)


def test_evaluations_after_the_audited_checkpoint_do_not_count(tmp_path):
    folder = stage(tmp_path)
    (tmp_path / "evaluations/step=x_nfe=1.npz").write_bytes(b"")
    (tmp_path / "metrics.jsonl").write_bytes(b'\xff\n5\n[]\n{"a": 1}\n')
    assert distillation_record(folder, 1 / 3)["f_mem_trend"]["1"]["to_step"] == 9
    assert distillation_record(folder, 1 / 3, until=6)["f_mem_trend"]["1"] is None  # step 3 is not in its last third


@pytest.mark.parametrize("damage", ["torn", "pickle", "short", "nan", "twice", "schedule"])
def test_damaged_evaluations_are_not_passed_over(tmp_path, damage):
    bad = {
        "pickle": {"squared1": np.array([{}] * 5, dtype=object)},
        "short": {"squared1": np.arange(3)},
        "nan": {"squared_error": np.full(5, np.nan)},
        "twice": {"seeds": np.zeros(5, np.int64)},
    }
    folder = stage(tmp_path, **bad.get(damage, {}))
    if damage == "torn":
        file = tmp_path / "evaluations/step=00000006_nfe=1.npz"
        file.write_bytes(file.read_bytes()[:100])
    if damage == "schedule":
        (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(InputError, match="config=" if damage == "schedule" else "evaluations="):
        distillation_record(folder, 1 / 3)


def test_a_model_with_classes_needs_labels(t):
    """Images without labels must not pass for the first class."""
    other = with_held_out(t, t.held_out_images[:5], False)
    assert set(other.held_out_labels.tolist()) == {-1}
    assert with_held_out(t, t.held_out_images, True).held_out_labels.equal(t.held_out_labels)
    model = SimpleNamespace(num_classes=3, role="teacher")
    empty = torch.zeros(1, dtype=torch.int64)
    record = whitebox_record(model, t, None, t.images[:1], empty, empty.bool(), torch.device("cpu"))
    assert set(record) == {"unavailable"}


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


BAD_PIPELINES = {
    "unet/config.json": [{"sample_size": None}, {"sample_size": 10**6}, {"sample_size": "x"}, {"num_class_embeds": 3}],
    "scheduler/scheduler_config.json": [{"prediction_type": "x"}, {"num_train_timesteps": 1}],
}


@pytest.mark.parametrize(("file", "changes"), [(f, c) for f, cases in BAD_PIPELINES.items() for c in cases], ids=str)
def test_a_pipeline_edited_by_hand(tmp_path, file, changes):
    """``num_class_embeds`` asks for weights that the file lacks: drawn at random they would be audited as the model."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16)}
    unet = UNet2DModel(**sizes, **blocks, layers_per_block=1, add_attention=False)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    assert len(load_pipeline(tmp_path, [2])[0]) == 1
    edit(tmp_path / file, **changes)
    with pytest.raises(InputError, match="generator"):
        load_pipeline(tmp_path, [2])


# ---- students that only look forgetful ------------------------------------------------------------------------------

SEEDS = 600
STOPPED = {"trend": "stopped", "change": 0.0, "low": -0.01, "high": 0.01, "from_step": 1, "to_step": 2, "samples": 999}


@pytest.fixture(scope="module")
def bench(t):
    """A teacher that copies 80 % of its seeds, and the verdict on any student of it."""
    draw = torch.Generator().manual_seed(1)
    copies = to_float(t.images[torch.randint(100, (SEEDS,), generator=draw)])
    copies = copies + 0.02 * torch.randn(copies.shape, generator=draw)
    new = to_float(t.held_out_images[torch.randint(400, (SEEDS,), generator=draw)])
    x = torch.where((torch.arange(SEEDS) < 480)[:, None, None, None], copies, new)
    noise, search, seeds = torch.randn(x.shape, generator=draw), group_index(t), torch.arange(SEEDS)
    control = search.query(t.held_out_images, 2).squared
    fidelity = Fidelity(interval=True).prepare(t)

    def rows(y):
        found = search.query(to_uint8(y), 2)
        return {"seeds": seeds, "squared": found.squared, "groups": found.groups}

    def distance(y):
        fidelity.reset()
        fidelity.update(to_uint8(y), seeds)
        return fidelity.compute()

    def ci95(squared):
        return tuple(fraction(memorized(squared[:, 0], squared[:, 1]))["ci95"])

    teacher, bound = rows(x), distance(x)["fd_pixels_high"]

    def verdict(y):
        student = rows(y)
        paired = compare(teacher, student, 1 / 3)
        adjust([paired])
        paired["matched"] = fidelity_matched(to_uint8(x), teacher, student, search, 1 / 3, ratios(control))
        pair = PairedWithTeacher()
        pair.prepare(t)
        pair.update(y, x, seeds)
        return judge(
            variance_ratio=pair.compute()["variance_ratio"],
            paired=paired,
            teacher_ci95=ci95(teacher["squared"]),
            control_ci95=ci95(control),
            f_mem_trend=STOPPED,
            rmse_trend=STOPPED,
            annealed=False,
            as_real=distance(y)["fd_pixels_low"] <= bound,
        )

    return SimpleNamespace(x=x, new=new, noise=noise, verdict=verdict)


@pytest.mark.parametrize("level", [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0])
def test_noise_of_renormalised_variance_is_no_forgetting(bench, level):
    mean, variance = bench.x.mean(0), bench.x.var(0, correction=0).mean()
    student = mean + (bench.x - mean + level * bench.noise) / (1 + level**2 / variance) ** 0.5
    assert bench.verdict(student).claim == "undecided"


def test_other_damage_of_equal_variance_is_no_forgetting(bench):
    mean, variance = bench.x.mean(0), bench.x.var(0, correction=0).mean()
    for student in (-bench.x, bench.x + 0.3, bench.x + 1.0, bench.x.flip(-1), bench.x.roll(1, -1)):
        assert bench.verdict(student).claim == "undecided"
    assert bench.verdict(mean + variance**0.5 * bench.noise).claim == "undecided"


def test_students_that_do_forget_are_found(bench):
    assert bench.verdict(bench.new).claim == "reduced"
    half = bench.x.clone()
    half[:300] = bench.new[:300]
    assert bench.verdict(half).claim == "reduced"
    assert bench.verdict(bench.x).claim == "unchanged"
