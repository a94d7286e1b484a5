"""Exports: diffusers alone, in a fresh process, makes our pictures; the card is true; nothing is overwritten."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

import support
from cdmem.cli.export import run_export
from cdmem.diffusion.ddpm import VPSchedule
from cdmem.diffusion.noise import karras_sigmas
from cdmem.diffusion.sampling import ConsistencySampler, NoiseSource, sample_ode
from cdmem.diffusion.solvers import euler_step
from cdmem.errors import InputError
from cdmem.images import to_uint8
from cdmem.models import export, pipelines
from cdmem.models.load import load_model
from cdmem.networks.unet import UNet
from cdmem.training.checkpoint import weights_digest
from support.diffusers_alone import SCRIPT
from support.stages import cdmem

SMALL = UNet(channels=[8, 16], layers=1, norm_groups=4)
SEEDS = [3, 1_000_004, 7]
TIMES = [14, 9, 4, 0]  # indices into the pipeline's grid
STEPS = 8  # divides 1000: otherwise DDIM steps to other levels than it visits next


def save(stage, module, training_set, step=40, seed=0):
    """The checkpoint of a module with random weights, and the record of its training set."""
    support.hand_over(module, training_set).prepare(training_set)
    for k, network in enumerate([module.raw.network, *module.ema.copies]):
        draw = support.rng(10 * seed + k)
        for p in network.parameters():
            p.data += 0.05 * torch.randn(p.shape, generator=draw)
    checkpoint = {"state_dict": module.state_dict(), "global_step": step}
    module.on_save_checkpoint(checkpoint)
    (stage / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, stage / "checkpoints" / "last.ckpt")
    (stage / "training_set.json").write_text(json.dumps(training_set.record()))
    return stage


def data(channels=1, shape=(8, 8)):
    return support.make_training_set(support.random_images(8, (channels, *shape)))


def labelled():
    return replace(data(), labels=torch.arange(8) % 3, class_names=("a", "b", "c"))


def student(**options):
    return support.make_student(**({"network": SMALL, "mid_sigmas": [0.8, 0.3]} | options))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Run folders and their exports, by name."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("exports")
    runs = {
        "gray": (student(points=19), data()),
        "rgb": (student(curriculum="doubling", start_points=10, weighting="inverse_gap", mu=0.0, points=40), data(3)),
        "wide": (student(), data(1, (8, 12))),
        "edm": (support.make_teacher(network=SMALL, sampler_points=5), data()),
        "classes": (support.make_teacher(network=SMALL, conditional=True), labelled()),
        "ddpm": (support.make_teacher(network=SMALL, parameterization="vp", sampler_points=6, solver="euler"), data()),
    }
    for seed, (name, (module, training_set)) in enumerate(runs.items()):
        save(home / "runs" / name, module, training_set, seed=seed)
    # Its boundary form is not that of diffusers' consistency scheduler.
    of_ddpm = student(teacher=str(home / "runs/ddpm"), network=None, ema_half_lives=[3])
    save(home / "runs" / "vp", of_ddpm, data())
    # One with classes needs a teacher with classes, whose about it inherits.
    of_classes = student(teacher=str(home / "runs/classes"), network=None)
    save(home / "runs" / "labelled", of_classes, labelled())
    for name in [*runs, "vp", "labelled"]:
        assert run_export(["--checkpoint", str(home / "runs" / name), "--out", str(home / name)]) == 0
    return home


def module_of(home, name):
    return load_model(home / "runs" / name)


# ---- diffusers makes our pictures -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(home):
    script = home / "script.py"
    script.write_text(SCRIPT % repr((SEEDS, TIMES, STEPS)))
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, str(script), str(home)], cwd=home, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    with np.load(home / "theirs.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def shown(images):
    return (images / 2 + 0.5).clamp(0, 1)


def inner(images):
    """Enough pixels are neither black nor white, so that clamping hides no difference."""
    assert ((images > 0) & (images < 1)).float().mean() > 0.3
    return images


def close(ours, theirs, atol):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize("name", ["gray", "rgb"])
def test_one_step_in_a_fresh_process(home, theirs, name):
    ours = module_of(home, name).sampler(1)(SEEDS)
    close(shown(ours), inner(theirs[f"{name}/one"]), 1e-6)
    if name == "rgb":
        assert torch.equal(theirs["rgb/latents"], theirs["rgb/one"])
        close(ours, theirs["rgb/unclamped"], 1e-6)


@pytest.mark.parametrize(("name", "points"), [("gray", 19), ("rgb", 41)])
def test_several_steps_on_the_pipelines_own_grid(home, theirs, name, points):
    """``ict`` doubles its intervals up to 40, which are 41 points. By itself the pipeline takes index N // 2."""
    module = module_of(home, name)
    grid = karras_sigmas(points)
    for key, indices in {"two": [points // 2], "more": TIMES[-2::-1]}.items():
        mids = [float(grid[k]) for k in indices]
        ours = ConsistencySampler(module.function(), 80.0, 0.002, module.shape, mids)(SEEDS)
        close(shown(ours), inner(theirs[f"{name}/{key}"]), 1e-5)


def test_class_labels_reach_the_network(home, theirs):
    module = module_of(home, "labelled")
    x, sigma = NoiseSource(SEEDS, module.shape).next() * 80.0, torch.full((3,), 80.0)
    with torch.no_grad():
        ours, other = (module.function()(x, sigma, torch.tensor(k)) for k in ([2, 0, 1], [0, 1, 2]))
    close(shown(ours), inner(theirs["labelled/one"]), 1e-6)
    assert not torch.allclose(shown(other), shown(ours), atol=1e-3)


def test_ddim_is_our_euler_walk_along_the_ddpms_levels(home, theirs):
    """In x / sqrt(abar) DDIM is Euler's method; its first noise has variance 1 = abar (1 + sigma^2)."""
    module = module_of(home, "ddpm")
    levels = VPSchedule().sigma(theirs["ddpm/times"]).double()
    x = NoiseSource(SEEDS, module.shape).next().double() * (1 + levels[0] ** 2).sqrt()
    ours = sample_ode(module.function(), x, torch.cat([levels, torch.zeros(1)]), euler_step)
    scale = float(theirs["ddpm/ddim"].abs().max())
    close(ours / scale, theirs["ddpm/ddim"] / scale, 2e-6)


# ---- and back -------------------------------------------------------------------------------------------------------


FORMS = {"gray": "consistency", "labelled": "consistency", "ddpm": "ddpm"}


@pytest.mark.parametrize("name", ["gray", "wide", "vp", "labelled", "edm", "classes", "ddpm"])
def test_cdmem_reads_its_folder_back(home, name):
    module, back = module_of(home, name), load_model(home / name)
    metadata = json.loads((home / name / "cdmem.json").read_text())
    assert metadata["form"] == FORMS.get(name, "network") and metadata["role"] == module.role == back.role
    assert (home / name / "model_index.json").exists() == (name in FORMS)
    assert weights_digest(back.function().network) == metadata["digest"] == weights_digest(module.function().network)
    for nfe in module.default_nfe:
        assert torch.equal(back.sampler(nfe)(SEEDS), module.sampler(nfe)(SEEDS))
    assert back.record.training_set == module.record.training_set and back.record.step == 40
    with pytest.raises(InputError):
        back.function("ema_2")  # one set of weights


def test_other_weights_can_be_chosen(home, tmp_path):
    module = module_of(home, "gray")
    assert run_export(["--checkpoint", str(home / "runs/gray"), "--out", str(tmp_path / "x"), "--weights", "raw"]) == 0
    raw, averaged = weights_digest(module.raw.network), weights_digest(module.function().network)
    assert weights_digest(load_model(tmp_path / "x").raw.network) == raw != averaged


def test_weights_are_safetensors_and_no_path_of_this_machine_is_told(home):
    for name in ("gray", "vp", "edm", "ddpm"):
        files = [f for f in (home / name).rglob("*") if f.is_file()]
        weights = [f for f in files if f.suffix == ".safetensors"]
        assert len(weights) == 1 and not [f for f in files if f.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
        with safe_open(weights[0], "pt") as tensors:
            assert not any(str(home) in v for v in (tensors.metadata() or {}).values())
        for file in files:
            assert str(home).encode() not in file.read_bytes(), file
        assert not [p for p in home.iterdir() if p.name.startswith(".")], "temporary folders are gone"


# ---- the card -------------------------------------------------------------------------------------------------------


def parts(folder):
    text = (folder / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def blocks(folder):
    return re.findall(r"```python\n(.*?)```", parts(folder)[1], re.S)


@pytest.mark.parametrize("name", ["vp", "edm", "classes", "ddpm"])
def test_the_cards_code_with_our_library(home, name, monkeypatch):
    monkeypatch.chdir(home / name)
    found = {}
    exec(blocks(home / name)[-1], found)
    module = module_of(home, name)
    nfe = 3 if name == "vp" else None
    assert torch.equal(found["images"], to_uint8(module.sampler(nfe)(range(16))))


@pytest.mark.parametrize("name", ["gray", "labelled", "ddpm"])
def test_the_cards_code_with_diffusers(home, name, monkeypatch):
    monkeypatch.chdir(home / name)
    found = {}
    code = blocks(home / name)[0]
    assert "cdmem" not in code
    exec(code.replace("num_inference_steps=1000", "num_inference_steps=3"), found)
    assert len(found["images"]) == 16
    if name == "gray":
        ours = to_uint8(module_of(home, name).sampler(1)(range(16)))[:, 0].numpy().astype(int)
        theirs = np.stack([np.array(image) for image in found["images"]]).astype(int)
        assert np.abs(ours - theirs).max() <= 1  # rounding of a half


def test_the_header_says_what_it_is(home):
    header, body = parts(home / "gray")
    module, about = module_of(home, "gray"), header["cdmem"]
    assert about["role"] == "student" and about["weights"] == "ema_2" and about["step"] == 40
    assert about["training_set"] == module.record.training_set
    assert about["teacher_digest"] == "analytic:empirical" and about["digest"] in body
    teacher = weights_digest(module_of(home, "ddpm").function().network)
    assert parts(home / "vp")[0]["cdmem"]["teacher_digest"] == teacher
    assert "license" not in header and "None was stated" in body


def test_the_nearest_points_of_the_grid(home):
    m = json.loads((home / "gray/cdmem.json").read_text())
    grid = karras_sigmas(19)
    for (sigma, k, level), mid in zip(export.nearest_indices(m), [0.8, 0.3]):
        assert sigma == mid and level == pytest.approx(float(grid[k]), rel=1e-6)
        assert abs(np.log(level / mid)) == pytest.approx(min(abs(np.log(float(g) / mid)) for g in grid))


def audit(digest, **more):
    row = {"name": "student", "role": "student", "method": "consistency", "nfe": 1, "samples": 200, "digest": digest}
    row |= {"f_mem": {"value": 0.25, "ci95": [0.2, 0.31]}, "variance_ratio": 0.95, "rmse_to_teacher": None}
    row |= {"verdict": {"claim": "reduced"}} | more
    other = row | {"digest": "f" * 64, "nfe": 2, "f_mem": {"value": 0.77, "ci95": [0.7, 0.8]}}
    # Of a teacher's weights too, but no way to sample it.
    ceiling = row | {"role": "ceiling", "f_mem": {"value": 0.66, "ci95": [0.6, 0.7]}}
    control = {"heldout_f_mem": {"value": 0.01, "ci95": [0.0, 0.02], "samples": 100}}
    return {"training_set": {"hash": "ab" * 32}, "models": [row, other, ceiling], "control": control}


def exported(home, out, *options):
    run_export(["--checkpoint", str(home / "runs/gray"), "--out", str(out), *map(str, options)])
    return parts(out)


def test_only_rows_of_these_weights_are_shown(home, tmp_path):
    digest = weights_digest(module_of(home, "gray").function().network)
    file = tmp_path / "audit.json"
    file.write_text(json.dumps(audit(digest)))
    header, body = exported(home, tmp_path / "a", "--audit", file, "--licence", "CC-BY-4.0")
    assert "| consistency | 1 | 200 | 25.0 % [20.0, 31.0] | 0.950 | - | - | reduced |" in body
    assert "77.0" not in body and "66.0" not in body and "1.0 % [0.0, 2.0]" in body
    assert header["license"] == "cc-by-4.0"
    # A name may hold what Markdown or HTML would act on.
    file.write_text(json.dumps(audit(digest, method="<img src=x>|\n# ![](http://x)")))
    header, body = exported(home, tmp_path / "b", "--audit", file, "--licence", "mine: |\n only")
    assert "<img" not in body and "](" not in body and header["license"] == "other"
    assert header["license_name"] == "mine: |\n only"


@pytest.mark.parametrize("place", ["audit", "../audit"])
def test_an_audit_beside_the_run_is_found(home, tmp_path, place):
    stage = tmp_path / "study" / "gray"
    stage.parent.mkdir()
    (stage / "checkpoints").mkdir(parents=True)
    (stage / "checkpoints/last.ckpt").write_bytes((home / "runs/gray/checkpoints/last.ckpt").read_bytes())
    folder = stage / place
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(audit(weights_digest(module_of(home, "gray").function().network))))
    run_export(["--checkpoint", str(stage), "--out", str(tmp_path / "out")])
    assert "25.0 % [20.0, 31.0]" in parts(tmp_path / "out")[1]
    run_export(["--checkpoint", str(stage), "--out", str(tmp_path / "raw"), "--weights", "raw"])
    assert "Not audited" in parts(tmp_path / "raw")[1]
    (folder / "summary.json").write_text("{")  # nobody asked for it
    run_export(["--checkpoint", str(stage), "--out", str(tmp_path / "torn")])
    assert "Not audited" in parts(tmp_path / "torn")[1]


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file", "dangling"])
def test_nothing_is_overwritten(home, tmp_path, kind, capsys):
    out = tmp_path / "out"
    {"folder": out.mkdir, "file": out.touch, "dangling": lambda: out.symlink_to(tmp_path / "nowhere")}[kind]()
    assert cdmem("export", "--checkpoint", home / "runs/gray", "--out", out) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "exists already" in said
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (kind != "folder" or not any(out.iterdir()))


def test_an_mlp_has_no_place_in_diffusers(tmp_path):
    save(tmp_path / "run", support.make_teacher(), data())
    with pytest.raises(InputError, match="UNet2DModel"):
        run_export(["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--weights", "ema_9"], "weights="),
        (["--audit", "missing.json"], "audit="),
        (["--audit", "list.json"], "audit="),
        (["--audit", "odd.json"], "audit="),
        (["--audit", "others.json"], "audit="),
        (["--checkpoint", "missing"], "checkpoint="),
        (["--out", "file/inside"], "out="),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(home, tmp_path, options, key):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "odd.json").write_text('{"models": [{}]}')
    (tmp_path / "others.json").write_text(json.dumps(audit("e" * 64)))
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    usual = ["--checkpoint", str(home / "runs/gray"), "--out", "out"]
    with pytest.raises(InputError) as error:
        run_export([*usual, *options])
    assert str(error.value).startswith(key) and "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_write_that_fails_leaves_nothing(home, tmp_path, monkeypatch):
    def full(self, folder, **options):
        assert folder.parent == tmp_path, "beside its place, so that the rename is atomic"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(diffusers.ConsistencyModelPipeline, "save_pretrained", full)
    with pytest.raises(InputError, match="No space left"):
        run_export(["--checkpoint", str(home / "runs/gray"), "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_weights_and_metadata_belong_together(home, tmp_path):
    """A folder put together from two exports is not what its card says."""
    shutil.copytree(home / "edm", tmp_path / "mixed")
    shutil.copytree(home / "ddpm" / "unet", tmp_path / "mixed" / "unet", dirs_exist_ok=True)
    with pytest.raises(InputError, match="not those"):
        load_model(tmp_path / "mixed")


def test_an_export_is_a_generator_for_audits(home):
    (sampler,), name, _ = pipelines.load_pipeline(home / "gray", None)
    assert name == "CMStochasticIterativeScheduler"
    close(sampler(SEEDS), module_of(home, "gray").sampler(1)(SEEDS), 1e-6)
