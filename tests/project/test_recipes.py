"""What CONTRIBUTING says is done word for word: its files written beside the user, its commands run, the files counted.

Every recipe but that of a figure works from outside the tree.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cdmem.models.load import load_model
from cdmem.training.checkpoint import read_checkpoint
from support.source import ROOT
from support.untrusted import main as cdmem

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")
OUTSIDE = {
    "A data source": 1,
    "A distance": 1,
    "A distillation method": 1,
    "A metric of the audit": 1,
    "A callback": 2,  # the class, and the config that names it
    "A network": 1,
}


def blocks(page: str, heading: str) -> list[tuple[str, str]]:
    """(language, text) of the code blocks of a section."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return BLOCK.findall(text.split(f"\n## {heading}\n")[1].split("\n## ")[0])


def files(parts: list[tuple[str, str]]) -> dict[str, str]:
    """Name -> text of the blocks whose first line names a file."""
    named = [(FILE.match(text), text) for _, text in parts]
    return {match[1]: text for match, text in named if match}


def commands(parts: list[tuple[str, str]]) -> list[list[str]]:
    """Arguments of ``python -m cdmem``, of every line of the shell blocks."""
    lines = [line for language, text in parts if language == "bash" for line in text.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    assert all(w[:3] == ["python", "-m", "cdmem"] for w in words)
    return [w[3:] for w in words]


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The user's own folder: Python finds modules in it, and the shipped configs lie in it."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("my_")]:  # of another test
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def needs_consent(arguments: list[str], named: str, capsys) -> None:
    """A command that reads a file which names the user's code: one line without --allow_code, and it works with it."""
    forget()
    capsys.readouterr()
    assert cdmem(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cdmem: error: {named}: is code of one's own") and error.count("\n") == 1
    assert "add --allow_code" in error and not any(name.startswith("my_") for name in sys.modules)
    assert cdmem(*arguments, "--allow_code") == 0, capsys.readouterr().err


def forget() -> None:
    """Python as a new process has it: without the user's modules."""
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def carry_out(heading: str, folder: Path) -> Path:
    """Write a recipe's files, run its one command; the run folder."""
    parts = blocks("CONTRIBUTING.md", heading)
    written = files(parts)
    assert len(written) == OUTSIDE[heading]
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    (arguments,) = commands(parts)
    assert cdmem(*arguments) == 0
    return folder / arguments[arguments.index("--run_dir") + 1] if "--run_dir" in arguments else folder


def settings(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def test_every_recipe_is_tested():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n# Recipes\n")[1]
    assert re.findall(r"^## (.+)$", text, re.M) == [*OUTSIDE, "A figure of the page"]


def test_a_data_source(beside, capsys):
    run = carry_out("A data source", beside)
    record = json.loads((run / "training_set.json").read_text())
    assert (record["source"], len(record["indices"]), record["shape"]) == ("my_source.read_noise", 16, [1, 8, 8])
    sets = ["--training_set", str(run), "--samples", "8", "--metrics", "memorization", "--quiet"]
    needs_consent(["audit", "--generator", str(run), *sets], "data.source=my_source.read_noise", capsys)


@pytest.mark.parametrize("name", ["no_such_module.read", "json.no_such_function", "json.loads", "nothing"])
def test_a_data_source_that_is_none(name, beside, capsys):
    assert cdmem("fit", "--config", "configs/debug/teacher.yaml", "--data.source", name) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("cdmem: error: data.source") and "\n" not in error


def test_a_distance(beside):
    method = settings(carry_out("A distance", beside))["model"]["init_args"]["method"]
    assert method["class_path"] == "cdmem.distillation.ConsistencyTraining"
    assert method["init_args"]["distance"] == {"class_path": "my_distance.Charbonnier", "init_args": {"epsilon": 0.01}}


def test_a_distillation_method(beside):
    run = carry_out("A distillation method", beside)
    method = settings(run)["model"]["init_args"]["method"]
    assert (method["class_path"], method["init_args"]["p_mean"]) == ("my_method.DenoiserMatching", -1.0)
    student = load_model(run)  # a student's record names no code of its method
    assert student.sampler(1)(range(2)).isfinite().all()


def images(path: Path, count: int, seed: int) -> np.ndarray:
    """uint8 (count, 8, 8), written as .npz."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    np.savez(path, images=pixels)
    return pixels


def test_a_metric_of_the_audit(beside):
    sizes = {"samples": 20, "train": 8, "test": 30}
    pixels = [images(beside / f"{name}.npz", n, k) for k, (name, n) in enumerate(sizes.items())]
    carry_out("A metric of the audit", beside)
    summary = json.loads((beside / "audit.json").read_text())
    values = summary["models"][0]["metrics"]["my_metric.Contrast"]
    expected = [float(p.reshape(len(p), -1).std(1, ddof=1).mean()) for p in pixels[:2]]
    assert [values["samples"], values["train"]] == pytest.approx(expected, rel=1e-6)
    # Rows of T as samples: what a perfect copier reads.
    copies = summary["control"]["copycat"]["metrics"]["my_metric.Contrast"]
    deviations = pixels[1].reshape(8, -1).std(1, ddof=1)
    assert deviations.min() <= copies["samples"] <= deviations.max()


def test_a_callback(beside):
    run = carry_out("A callback", beside)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [row["weights/norm"] for row in rows if "weights/norm" in row]
    assert values and all(v > 0 for v in values)
    assert "weights/mean" in {key for row in rows for key in row}


SHORT = ["--trainer.max_steps", "2", "--trainer.callbacks", "[]", "--wandb", "false"]
OWN = ["--model.network", "my_network.Convolutions", "--model.network.width", "12"]


def test_a_network(beside, capsys):
    """Trained, trained on, sampled, distilled in both ways, started from, audited, and not exported."""
    run = carry_out("A network", beside)
    named = "checkpoint.network=my_network.Convolutions"
    assert read_checkpoint(run)["state_dict"]["raw.network.first.weight"].shape == (12, 1, 3, 3)
    needs_consent(["sample", "--checkpoint", str(run), "--samples", "2", "--out", "samples.npz"], named, capsys)
    teacher = ["fit", "--config", "configs/debug/teacher.yaml", *SHORT]
    student = ["fit", "--config", "configs/debug/student.yaml", *SHORT, "--model.teacher", str(run)]
    needs_consent([*student, "--run_dir", "runs/student"], named, capsys)
    assert read_checkpoint("runs/student")["cdmem"]["network"]["init_args"] == {"width": 12}
    metrics = ["--samples", "8", "--metrics", "memorization", "--quiet"]
    audit = ["audit", "--generator", "runs/student", "--training_set", str(run), *metrics]
    needs_consent(audit, named, capsys)
    assert "teacher (heun)" in capsys.readouterr().out
    # A command that names the class itself chooses it.
    forget()
    assert cdmem(*student, *OWN, "--run_dir", "runs/own_student") == 0
    assert cdmem(*teacher, *OWN, "--weights_from", str(run), "--run_dir", "runs/started") == 0
    longer = ["--model.optimization.longer", "restart", "--trainer.max_steps", "3"]
    assert (
        cdmem(*teacher, *OWN, "--ckpt_path", str(run / "checkpoints/last.ckpt"), *longer, "--run_dir", "runs/on") == 0
    )
    assert read_checkpoint("runs/on")["global_step"] == 3
    # An own teacher that cannot be loaded is said, not passed over.
    mlp = ["--model.network", "cdmem.networks.MLP", "--run_dir", "runs/mlp"]
    assert cdmem(*student, *mlp, "--allow_code") == 0
    forget()
    capsys.readouterr()
    assert cdmem("audit", "--generator", "runs/mlp", "--training_set", str(run), *metrics) == 0
    assert "no paired comparison (checkpoint.network=my_network.Convolutions" in capsys.readouterr().out
    # diffusers has no form for it: nothing is run to find that out.
    assert cdmem("export", "--checkpoint", str(run), "--out", "exported") == 2
    error = capsys.readouterr().err
    assert error.startswith("cdmem: error: checkpoint=my_network.Convolutions: is not a UNet2DModel")
    assert "my_network" not in sys.modules
    assert cdmem("export", "--checkpoint", str(run), "--out", "exported", "--allow_code") == 2
    assert not (beside / "exported").exists()


def test_a_study_of_ones_own_network_and_data(beside, capsys):
    """In one command, which names both; again from other words."""
    for heading in ("A network", "A data source"):
        for name, text in files(blocks("CONTRIBUTING.md", heading)).items():
            (beside / name).write_text(text, encoding="utf-8")
    stages = "teacher: configs/debug/teacher.yaml\nstudents: {student: configs/debug/student.yaml}\n"
    (beside / "study.yaml").write_text(f"{stages}audit: {{samples: 8, metrics: [memorization]}}\n")
    short = [f"--{s}.trainer.{setting}" for s in ("teacher", "student") for setting in ("max_steps=2", "callbacks=[]")]
    data = ["--data.source", "my_source.read_noise", "--data.n", "16", "--data.held_out", "32"]
    own = [f"--teacher.{word.removeprefix('--')}" if word.startswith("--") else word for word in OWN]
    assert cdmem("study", "--config", "study.yaml", "--run_dir", "runs/s", *data, *own, *short, "--wandb", "false") == 0
    assert read_checkpoint("runs/s/student")["cdmem"]["network"]["init_args"] == {"width": 12}
    assert (beside / "runs/s/report.html").is_file()
    sets = ["--training_set", "runs/s", "--samples", "8", "--metrics", "memorization", "--quiet"]
    needs_consent(["audit", "--generator", "runs/s", *sets], "data.source=my_source.read_noise", capsys)
    forget()
    assert cdmem("report", "runs/s") == 0 and "my_network" not in sys.modules


def test_a_figure_of_the_page(tmp_path):
    """Within the tree, in one file; in a copy of it."""
    parts = blocks("CONTRIBUTING.md", "A figure of the page")
    ((name, text),) = files(parts).items()
    assert commands(parts) == [["report", "runs/quickstart"]]
    shutil.copytree(ROOT / "cdmem", tmp_path / "cdmem", ignore=shutil.ignore_patterns("__pycache__"))
    run = shutil.copytree(ROOT / "tests/fixtures/old_run", tmp_path / "runs/quickstart")
    file = tmp_path / name
    before = file.read_text()
    drawn = "\n    yield from medians(run)\n\n\n"
    after = re.sub(r"(def distributions.*?)\n\n\n", rf"\1{drawn}", before, count=1, flags=re.S)
    assert after.count("medians") == 1
    file.write_text(f"{after}\n\n{text}")
    command = [sys.executable, "-m", "cdmem", "report", "runs/quickstart"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (run / "report" / "median_ratio.png").is_file() and (run / "report" / "median_ratio.csv").is_file()
    assert "Median d1/d2 by cost." in (run / "report.html").read_text()


# ---- README and the page of configs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_own_photos(beside):
    """README's line, on pictures of another size, with stages of two steps."""
    (shell,) = [text for language, text in blocks("README.md", "Your own photos") if language == "bash"]
    arguments = commands([("bash", shell)])[0]
    for k in range(100):
        (beside / "photos").mkdir(exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(beside / "photos" / f"{k}.png")
    small = [f"--{s}.trainer.{setting}" for s in ("teacher", "student") for setting in ("max_steps=2", "callbacks=[]")]
    study = (ROOT / "configs/digits32.yaml").read_text().replace("digits32/", "configs/digits32/")
    (beside / "study.yaml").write_text(study.replace("samples: 2000", "samples: 16\n  metrics: [memorization]"))
    assert cdmem(*["study.yaml" if a == "configs/digits32.yaml" else a for a in arguments], *small) == 0
    record = json.loads((beside / "runs/photos/training_set.json").read_text())
    assert (record["shape"], record["source"], len(record["indices"])) == ([3, 16, 16], "folder", 32)


def test_the_readmes_metric(beside):
    (code, shell) = [text for _, text in blocks("README.md", "Your own metric")]
    (beside / "my_metric.py").write_text(code)
    pixels = images(beside / "train.npz", 8, 0)
    (arguments,) = commands([("bash", shell)])
    arguments = ["train.npz" if word == "runs/mine" else word for word in arguments]
    assert cdmem(*arguments, "--out", "audit.json", "--quiet") == 0
    values = json.loads((beside / "audit.json").read_text())["models"][0]["metrics"]["my_metric.MeanBrightness"]
    assert values["mean"] == pytest.approx(float(pixels.mean()), rel=1e-6)


CONFIGS = {
    "Teacher": "--config configs/debug/teacher.yaml --config model.yaml",
    "Student": "--config configs/debug/ct_control.yaml --config model.yaml "
    "--model.teacher analytic:gaussian --model.network cdmem.networks.MLP",
}


@pytest.mark.parametrize("role", CONFIGS)
def test_the_settings_on_the_page_of_configs_are_settings(role, beside):
    """Every key of the two examples is one, with the value that it has there."""
    (text,) = [text for language, text in blocks("docs/configs.md", role) if language == "yaml"]
    model = yaml.safe_load(text)["model"]
    (beside / "model.yaml").write_text(yaml.safe_dump({"model": model}))
    steps = ["--trainer.max_steps", "1", "--trainer.callbacks", "[]", "--run_dir", "runs/page"]
    assert cdmem("fit", *CONFIGS[role].split(), *steps) == 0
    written = settings(beside / "runs/page")["model"]["init_args"]
    for key in model["init_args"].keys() - {"seeds", "network", "teacher"}:
        assert_within(model["init_args"][key], written[key], key)
    assert read_checkpoint(beside / "runs/page")["state_dict"]


def assert_within(part: object, whole: object, key: str) -> None:
    """Everything that ``part`` says stands in ``whole``."""
    if isinstance(part, dict):
        for name, value in part.items():
            assert_within(value, whole.get(name), f"{key}.{name}")
    else:
        assert whole == part, key
