"""Somebody else's config runs no code, reads no environment and writes nowhere else (docs/security.md)."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import yaml

from cdmem import redact as redacting
from cdmem.cli import main
from cdmem.errors import InputError
from cdmem.run import RunFolder, environment
from cdmem.trust import admit, run_folders, trusted

STAGE = {
    "threads": 1,
    "wandb": False,
    "data": {"source": "digits", "n": 8, "held_out": 16, "batch_size": 4},
    "model": {
        "class_path": "cdmem.training.teacher.DiffusionTeacher",
        "init_args": {
            "network": {"class_path": "cdmem.networks.MLP", "init_args": {"width": 16, "depth": 1}},
            "ema_half_lives": [2],
        },
    },
    "trainer": {"accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False, "enable_model_summary": False},
}
CANARY = """
from pathlib import Path
Path({mark!r}).write_text("sung")
from callbacks.evaluation import EvaluationCallback
from cdmem.networks import MLP as Net
class Song(EvaluationCallback):
    prefix = "song"
    def measure(self, evaluation):
        return {{}}
"""


def tree(folder: Path) -> dict[str, str]:
    """Every file with its hash, every link with its target."""
    return {
        str(p.relative_to(folder)): str(p.readlink()) if p.is_symlink() else hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if (p.is_file() or p.is_symlink()) and "__pycache__" not in p.parts
    }


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module whose import leaves a file; the file's path."""
    place, mark = tmp_path / "path", tmp_path / "mark" / "sung"
    place.mkdir()
    mark.parent.mkdir()
    (place / "canary.py").write_text(CANARY.format(mark=str(mark)))
    monkeypatch.syspath_prepend(str(place))
    yield mark
    sys.modules.pop("canary", None)


@pytest.fixture
def stranger(tmp_path):
    """The run folder of somebody else."""
    folder = tmp_path / "stranger"
    folder.mkdir()
    (folder / "environment.json").write_text("{}")
    return folder


def exits(args: list[object], capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    return int(stop.value.code or 0), capsys.readouterr().err.strip()


def refused(args: list[object], capsys, folder: Path) -> str:
    """Exit code 2, one line, and not a byte below ``folder`` has changed."""
    before = tree(folder)
    code, error = exits(args, capsys)
    assert code == 2 and error.startswith("cdmem: error: ") and "\n" not in error, error
    assert tree(folder) == before
    return error


def stage(**parts) -> dict:
    config = json.loads(json.dumps(STAGE))
    for key, value in parts.items():
        *outer, last = key.split("__")
        inner = config
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return config


HEAD = yaml.safe_dump({k: v for k, v in STAGE.items() if k != "model"})
ESCAPED = '{"class_path": "canary\\u002eSong"}'
CLASSES = {
    "callback": stage(trainer__callbacks=[{"class_path": "canary.Song"}]),
    "callback_as_text": stage(trainer__callbacks="canary.Song"),
    "callbacks_as_text": stage(trainer__callbacks=["canary.Song"]),
    "append": stage(**{"trainer__callbacks+": [{"class_path": "canary.Song"}]}),
    "dotted_key": stage(**{"trainer__logger.class_path": "canary.Song"}),
    "logger": stage(trainer__logger={"class_path": "canary.Song"}),
    "strategy": stage(trainer__strategy="canary.Song"),
    "plugins": stage(trainer__plugins=[{"class_path": "canary.Song"}]),
    "profiler": stage(trainer__profiler="canary.Song"),
    "accelerator": stage(trainer__accelerator="canary.Song"),
    "model": stage(model={"class_path": "canary.Song"}),
    "model_as_text": stage(model="canary.Song"),
    "network": stage(model__init_args__network="canary.Net"),
    "optimizer": stage(model__init_args__optimizer="canary.Song"),
    "optimizer_class": stage(model__init_args__optimizer={"class_path": "canary.Song"}),
    "data": stage(data="canary.Song"),
    "data_class": stage(data__class_path="canary.Song"),
    "nested_metric": stage(
        trainer__callbacks=[
            {"class_path": "callbacks.metric.MetricCallback", "init_args": {"metric": {"class_path": "canary.Song"}}}
        ]
    ),
    "callable_of_a_trusted_class": stage(
        trainer__callbacks=[
            {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": "canary.Song"}}
        ]
    ),
    "lambda_callback": stage(
        trainer__callbacks=[
            {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "canary.Song"}}
        ]
    ),
    "short_name": stage(trainer__callbacks=["LambdaCallback"]),
    "through_a_module": stage(trainer__callbacks=[{"class_path": "cdmem.networks.Path.home"}]),
    "text_in_text": stage(trainer__callbacks=["{class_path: canary.Song}"]),
    "escape_in_text": stage(trainer__callbacks=[ESCAPED]),
    "own_digest": stage(
        trainer__callbacks=[
            {
                "class_path": "callbacks.quality.QualityCallback",
                "init_args": {
                    "features": {
                        "class_path": "cdmem.metrics.inception.InceptionFeatures",
                        "init_args": {"weights": "/tmp/program", "sha256": "0" * 64},
                    }
                },
            }
        ]
    ),
    "interpolated": stage(data__path="canary.npz") | {"model": {"class_path": "${data.path}"}},
    "interpolated_text": stage(data__path="canary.npz", trainer__callbacks=["${data.path}"]),
    "joined": stage(seed="canary", trainer__callbacks=["${seed}.Song"]),
    "twice_interpolated": stage(seed="data.path", trainer__callbacks=["${${seed}}"]),
}
TEXTS = {
    "python_tag": HEAD + "model: !!python/object/apply:canary.Song []\n",
    "python_name": HEAD + "model: !!python/name:canary.Song\n",
    "own_tag": HEAD + "model: !canary.Song {}\n",
    "value_key": HEAD + "model: {class_path: !!str {=: canary.Song}}\n",
    "binary": HEAD + "model: {class_path: !!binary Y2FuYXJ5LlNvbmc=}\n",
    "alias": HEAD.replace("source: digits", "source: &a canary.Song\n  path: x") + "model: *a\n",
    "merge": HEAD + "x: &m {class_path: canary.Song}\nmodel: {<<: *m}\n",
    "merged_list": HEAD + "model: {<<: [{class_path: canary.Song}]}\n",
    "merge_above": "x: &m {model: canary.Song}\n<<: [*m]\n" + HEAD,
    "last_of_two": HEAD + "model: {class_path: canary.Song}\nmodel: {class_path: cdmem.networks.MLP}\n",
    "json": json.dumps(stage(model="canary.Song")),
    "deep": HEAD + "model: " + "[" * 3000 + "\n",
    "laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
    + HEAD,
    "list": "- canary.Song\n",
    "large": HEAD + "x: " + "y" * 2**20 + "\n",
}
ENVIRONMENT = {
    "oc.env": stage(model__init_args__weights="${oc.env:WANDB_API_KEY}"),
    "oc.env_in_data": stage(data__path="${oc.env:WANDB_API_KEY}"),
    "oc.decode": stage(run_dir="${oc.decode:${oc.env:WANDB_API_KEY}}"),
    "with_words": stage(run_dir="runs/${oc.env:HOME}"),
}


def write(file: Path, config: dict | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return file


@pytest.mark.parametrize("name", [*CLASSES, *TEXTS])
def test_a_run_folders_config_imports_nothing(name, stranger, canary, tmp_path, capsys):
    file = write(stranger / "teacher" / "config.yaml", (CLASSES | TEXTS)[name])
    refused(["fit", "--config", file], capsys, tmp_path)
    assert not canary.exists() and "canary" not in sys.modules


def test_the_canary_sings_in_a_config_of_ones_own(canary, tmp_path, stranger, capsys):
    """Otherwise the tests here would prove nothing; and one's own metric must go on working."""
    config = stage(trainer__callbacks=[{"class_path": "canary.Song"}])
    assert exits(["fit", "--config", write(tmp_path / "own.yaml", config), "--trainer.max_steps", "0"], capsys)[0] == 2
    assert canary.exists()
    canary.unlink()
    sys.modules.pop("canary")
    file = write(stranger / "config.yaml", config)
    assert exits(["fit", "--config", file, "--allow_code", "--trainer.max_steps", "0"], capsys)[0] == 2
    assert canary.exists()


def test_a_name_on_the_command_line_is_the_users(canary, stranger, capsys):
    file = write(stranger / "config.yaml", STAGE)
    args = ["fit", "--config", file, "--trainer.callbacks", "canary.Song", "--trainer.max_steps", "0"]
    assert exits(args, capsys)[0] == 2 and canary.exists()


SAFE = {"class_path": "callbacks.memorization.MemorizationCallback", "init_args": {"samples": 8, "points": 1}}


def test_what_cdmem_writes_is_admitted(tmp_path, capsys):
    """The config.yaml of a run, with callbacks, optimizer, strategy and duplication, is usable as --config."""
    config = stage(trainer__callbacks=[SAFE], data__duplication=[{"fraction": 0.25, "copies": 2}])
    config["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.RAdam", "init_args": {"lr": 1e-3}}
    own = write(tmp_path / "own.yaml", config)
    assert exits(["fit", "--config", own, "--run_dir", tmp_path / "run"], capsys)[0] == 0
    written = tmp_path / "run" / "config.yaml"
    assert run_folders(written) == [tmp_path / "run"]
    assert exits(["fit", "--config", written], capsys)[0] == 0  # it is finished; the folder is its own
    assert exits(["validate", "--config", written], capsys)[0] == 0


def test_every_class_of_ours_that_a_config_names_is_trusted():
    """Callbacks, networks and models of the package's own configs and of README."""
    root = Path(__file__).resolve().parent.parent
    names = set()
    for file in [*root.glob("configs/**/*.yaml"), root / "README.md", *root.glob("docs/*.md")]:
        words = file.read_text().replace("}", " ").replace("`", " ").split("class_path: ")[1:]
        names |= {word.split()[0].strip(",") for word in words}
    mine = {n for n in names if n.startswith(("cdmem.", "callbacks.", "torch."))}
    assert len(mine) >= 10 and all(map(trusted, mine))


def test_what_is_not_trusted():
    for name in (
        "os.system",
        "torch.load",
        "torch.optim.lr_scheduler.LambdaLR",
        "torch.hub.load",
        "torch.optim",
        "cdmem.run.subprocess",
        "cdmem.networks.json.loads",
        "cdmem.metrics.Evil.x",
        "cdmem.metrics..Evil",
        "callbacks.mine.Metric",
        "lightning.pytorch.callbacks.LambdaCallback",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.WandbLogger",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.strategies.DeepSpeedStrategy",
        "lightning.pytorch.profilers.SimpleProfiler",
        "MLP",
        "",
        "cdmem.networks.MLP\n",
        " cdmem.networks.MLP",
    ):
        assert not trusted(name), name


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_a_run_folders_config_reads_no_environment(name, stranger, tmp_path, capsys, monkeypatch):
    key = "k" * 40
    monkeypatch.setenv("WANDB_API_KEY", key)
    file = write(stranger / "config.yaml", ENVIRONMENT[name])
    error = refused(["fit", "--config", file, "--run_dir", tmp_path / "r"], capsys, tmp_path)
    assert key not in error


def test_interpolation_within_a_run_folders_config_is_plain_data(stranger):
    """Otherwise one's own run with ${data.n} could not be repeated from a copy of its config."""
    file = write(stranger / "config.yaml", stage(threads=1, trainer__max_steps="${threads}"))
    admit(["--config", str(file)])


# ---- includes -------------------------------------------------------------------------------------------------------


def test_includes_are_held_to_the_rule(stranger, canary, tmp_path, capsys):
    evil = write(stranger / "evil.yaml", {"class_path": "canary.Song"})
    outside = write(tmp_path / "outside.yaml", {"class_path": "canary.Song"})
    (stranger / "link.yaml").symlink_to(outside)
    (stranger / "words").write_text("canary.Song\n")
    for value in (
        "evil.yaml",
        "../stranger/evil.yaml",
        str(evil),
        "../outside.yaml",
        "link.yaml",
        str(outside),
        "words",
    ):
        write(stranger / "config.yaml", stage(model=value))
        refused(["fit", "--config", stranger / "config.yaml"], capsys, tmp_path)
        write(stranger / "config.yaml", stage(trainer__callbacks=value))
        refused(["fit", "--config", stranger / "config.yaml"], capsys, tmp_path)
    assert not canary.exists()


def test_ones_own_config_and_command_line_do_not_open_the_door(stranger, canary, tmp_path, capsys):
    """An include, a sub-config, a list of files and a link that lead into a run folder."""
    evil = write(stranger / "evil.yaml", {"class_path": "canary.Song"})
    own = write(tmp_path / "own.yaml", stage(model="stranger/evil.yaml"))
    refused(["fit", "--config", own], capsys, tmp_path)
    plain = write(tmp_path / "plain.yaml", STAGE)
    (tmp_path / "link.yaml").symlink_to(evil)
    for option in (
        ["--model", evil],
        [f"--model={evil}"],
        ["--trainer.callbacks", f"[{evil}]"],
        ["--model", "link.yaml"],
    ):
        refused(["fit", "--config", plain, *option], capsys, tmp_path)
    assert not canary.exists()


def test_paths_to_data_and_teachers_are_no_configs(stranger, tmp_path):
    write(stranger / "evil.yaml", {"class_path": "canary.Song"})
    evil = str(stranger / "evil.yaml")
    admit(["--model.teacher", evil, f"--ckpt_path={evil}", "--data.path", evil, "--run_dir", evil])
    admit(["--student.model.teacher", evil, "--teacher.data.path", evil], study=True)
    with pytest.raises(InputError):
        admit(["--teacher.config", evil], study=True)


# ---- where a run is written -----------------------------------------------------------------------------------------


def test_a_run_folders_config_does_not_choose_where_to_write(stranger, tmp_path, capsys):
    victim = tmp_path / "victim"
    write(victim / "environment.json", "{}")
    file = write(stranger / "config.yaml", stage(run_dir=str(victim)))
    assert "run_dir" in refused(["fit", "--config", file], capsys, tmp_path)
    assert "run_dir" in refused(["fit", "--run_dir", tmp_path / "r", "--config", file], capsys, tmp_path)
    admit(["--config", str(file), "--run_dir", str(tmp_path / "r")])
    admit(["--config", str(write(stranger / "config.yaml", stage(run_dir=str(stranger))))])


# ---- studies --------------------------------------------------------------------------------------------------------


def test_studies_of_a_run_folder(stranger, canary, tmp_path, capsys):
    write(stranger / "t.yaml", STAGE)
    evil = write(tmp_path / "elsewhere" / "evil.yaml", stage(model="canary.Song"))
    for teacher in (
        "../elsewhere/evil.yaml",
        {"config": str(evil)},
        {"config": "t.yaml", "model": "canary.Song"},
        {"config": "t.yaml", "trainer": {"callbacks": ["canary.Song"]}},
        {"config": "t.yaml", "trainer": {"logger": "${oc.env:HOME}"}},
        {"config": "t.yaml", "trainer.callbacks": ["canary.Song"]},
    ):
        file = write(stranger / "study.yaml", {"teacher": teacher, "students": {"s": "t.yaml"}})
        refused(["study", "--config", file], capsys, tmp_path)
        refused(["plan", "--config", file], capsys, tmp_path)
        file = write(stranger / "study.yaml", {"teacher": "t.yaml", "students": {"s": teacher}})
        refused(["study", "--config", file, "--sweep", "seed=0,1"], capsys, tmp_path)
    # A merge key puts "data" where the name of a student stands.
    text = "teacher: t.yaml\nstudents:\n  <<: [{data: {config: t.yaml, model: canary.Song}}]\n"
    refused(["study", "--config", write(stranger / "study.yaml", text)], capsys, tmp_path)
    assert not canary.exists()


def test_a_study_of_ones_own_with_a_stage_of_a_stranger(stranger, canary, tmp_path, capsys):
    write(stranger / "t.yaml", stage(model="canary.Song"))
    file = write(tmp_path / "study.yaml", {"teacher": "stranger/t.yaml", "students": {"s": "stranger/t.yaml"}})
    refused(["study", "--config", file], capsys, tmp_path)
    own = write(tmp_path / "own.yaml", {"teacher": "s.yaml", "students": {"s": "s.yaml"}})
    write(tmp_path / "s.yaml", STAGE)
    refused(["study", "--config", own, "--teacher.config", stranger / "t.yaml"], capsys, tmp_path)
    assert not canary.exists()


# ---- the user's key -------------------------------------------------------------------------------------------------


KEY = "0123456789abcdef" * 3


def test_the_wandb_key_is_in_no_file_of_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    own = write(tmp_path / "own.yaml", stage(data__held_out_path=None, model__init_args__weights="ema_2"))
    sys_args = ["cdmem", "fit", f"--x={KEY}"]
    monkeypatch.setattr(sys, "argv", sys_args)
    monkeypatch.setenv("NAME_OF_RUN", f"runs-{KEY}")
    args = [
        "fit",
        "--config",
        own,
        "--run_dir",
        tmp_path / "run",
        "--trainer.default_root_dir",
        "${oc.env:NAME_OF_RUN}",
    ]
    assert exits(args, capsys)[0] == 0
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert len(files) >= 5 and all(KEY.encode() not in p.read_bytes() for p in files)
    assert "runs-***" in (tmp_path / "run" / "config.yaml").read_text()
    assert "--x=***" in (tmp_path / "run" / "environment.json").read_text()
    assert environment(1)["command"][-1].endswith(KEY)  # hidden where it is written


def test_a_key_on_the_command_line_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    error = refused(["sample", "--checkpoint", KEY], capsys, tmp_path)
    assert KEY not in error and "***" in error


def test_keys_of_the_netrc_file(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    file = write(
        tmp_path / "netrc", f"machine api.wandb.ai login user password {KEY}\nmachine x.org login a password b\n"
    )
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    assert redacting.secrets() == [KEY]
    RunFolder(tmp_path / "run").write_json("a.json", {"a": [f"<{KEY}>"], KEY: 1})
    assert json.loads((tmp_path / "run" / "a.json").read_text()) == {"a": ["<***>"], "***": 1}
    assert redacting.redact(("a", {1: KEY})) == ("a", {1: "***"})
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert redacting.secrets() == [] and redacting.redact(KEY) == KEY
