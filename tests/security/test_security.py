"""Somebody else's config runs no code, reads no environment and writes nowhere else (docs/security.md)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from cdmem.io import secrets as redacting
from cdmem.run.folder import RunFolder
from cdmem.run.provenance import environment
from cdmem.study.trust import admit, run_folders, trusted
from support.untrusted import STAGE, exits, refused, stage, write

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
            {"class_path": "callbacks.MetricCallback", "init_args": {"metric": {"class_path": "canary.Song"}}}
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
                "class_path": "callbacks.QualityCallback",
                "init_args": {
                    "features": {
                        "class_path": "cdmem.metrics.InceptionFeatures",
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


@pytest.mark.parametrize("name", [*CLASSES, *TEXTS])
def test_a_run_folders_config_imports_nothing(name, untrusted, canary, tmp_path, capsys):
    file = write(untrusted / "teacher" / "config.yaml", (CLASSES | TEXTS)[name])
    refused(["fit", "--config", file], capsys, tmp_path)
    assert not canary.exists() and "canary" not in sys.modules


def test_the_canary_sings_in_a_config_of_ones_own(canary, tmp_path, untrusted, capsys):
    """Otherwise the tests here would prove nothing; and one's own metric must go on working."""
    config = stage(trainer__callbacks=[{"class_path": "canary.Song"}])
    assert exits(["fit", "--config", write(tmp_path / "own.yaml", config), "--trainer.max_steps", "0"], capsys)[0] == 2
    assert canary.exists()
    canary.unlink()
    sys.modules.pop("canary")
    file = write(untrusted / "config.yaml", config)
    assert exits(["fit", "--config", file, "--allow_code", "--trainer.max_steps", "0"], capsys)[0] == 2
    assert canary.exists()


def test_a_name_on_the_command_line_is_the_users(canary, untrusted, capsys):
    file = write(untrusted / "config.yaml", STAGE)
    args = ["fit", "--config", file, "--trainer.callbacks", "canary.Song", "--trainer.max_steps", "0"]
    assert exits(args, capsys)[0] == 2 and canary.exists()


SAFE = {"class_path": "callbacks.MemorizationCallback", "init_args": {"cadence": {"samples": 8, "points": 1}}}


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
    root = Path(__file__).resolve().parents[2]
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
        "cdmem.run.folder.subprocess",
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
def test_a_run_folders_config_reads_no_environment(name, untrusted, tmp_path, capsys, monkeypatch):
    key = "k" * 40
    monkeypatch.setenv("WANDB_API_KEY", key)
    file = write(untrusted / "config.yaml", ENVIRONMENT[name])
    error = refused(["fit", "--config", file, "--run_dir", tmp_path / "r"], capsys, tmp_path)
    assert key not in error


def test_interpolation_within_a_run_folders_config_is_plain_data(untrusted):
    """Otherwise one's own run with ${data.n} could not be repeated from a copy of its config."""
    file = write(untrusted / "config.yaml", stage(threads=1, trainer__max_steps="${threads}"))
    admit(["--config", str(file)])


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
