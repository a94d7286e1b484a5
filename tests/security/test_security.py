"""A config of a run folder is read only with consent; the user's W&B key is in no file (docs/security.md)."""

from __future__ import annotations

import json
import sys

import pytest

from cdmem.io import secrets as redacting
from cdmem.run.folder import RunFolder
from cdmem.run.provenance import environment
from cdmem.study.consent import run_folder_of
from support.untrusted import STAGE, exits, refused, stage, write

STOP = ["--trainer.max_steps", "0"]  # nothing is trained after the parsing
STUDY = {"teacher": "t.yaml", "students": {"s": "t.yaml"}}
# How a config of a run folder is reached: the command, and the files it needs by name; each would import `canary`.
EVIL = stage(trainer__callbacks=[{"class_path": "canary.Song"}])
SONG = {"class_path": "canary.Song"}
WAYS = {
    "fit": (["fit", "--config", "untrusted/config.yaml", *STOP], {"untrusted/config.yaml": EVIL}),
    "fit, deep inside": (["fit", "--config=untrusted/a/b.yaml", *STOP], {"untrusted/a/b.yaml": EVIL}),
    "validate": (["validate", "--config", "untrusted/config.yaml", *STOP], {"untrusted/config.yaml": EVIL}),
    "predict": (["predict", "--config", "untrusted/config.yaml", *STOP], {"untrusted/config.yaml": EVIL}),
    "second config": (
        ["fit", "--config", "own.yaml", "--config", "untrusted/config.yaml", *STOP],
        {"own.yaml": STAGE, "untrusted/config.yaml": EVIL},
    ),
    "link": (["fit", "--config", "link.yaml", *STOP], {"untrusted/config.yaml": EVIL, "link.yaml": "->config.yaml"}),
    "include": (
        ["fit", "--config", "own.yaml", *STOP],
        {"own.yaml": stage(model="untrusted/evil.yaml"), "untrusted/evil.yaml": SONG},
    ),
    "included callbacks": (
        ["fit", "--config", "own.yaml", *STOP],
        {"own.yaml": stage(trainer__callbacks="untrusted/evil.yaml"), "untrusted/evil.yaml": [SONG]},
    ),
    "option": (["fit", "--config", "own.yaml", "--model", "untrusted/evil.yaml", *STOP],
               {"own.yaml": STAGE, "untrusted/evil.yaml": SONG}),
    "option with a list": (
        ["fit", "--config", "own.yaml", "--trainer.callbacks=[untrusted/evil.yaml]", *STOP],
        {"own.yaml": STAGE, "untrusted/evil.yaml": SONG},
    ),
    "plan": (["plan", "--config", "untrusted/config.yaml"], {"untrusted/config.yaml": EVIL}),
    "study": (["study", "--config", "untrusted/study.yaml"], {"untrusted/study.yaml": STUDY, "untrusted/t.yaml": EVIL}),
    "study from outside": (
        ["study", "--config", "untrusted/study.yaml"],
        {"untrusted/study.yaml": STUDY | {"teacher": {"config": "../t.yaml", "trainer.callbacks": ["canary.Song"]}},
         "t.yaml": STAGE, "untrusted/t.yaml": STAGE},
    ),
    "stage of a study": (
        ["study", "--config", "study.yaml", "--teacher.config", "untrusted/t.yaml"],
        {"study.yaml": STUDY, "t.yaml": STAGE, "untrusted/t.yaml": EVIL},
    ),
    "sweep": (["study", "--config", "untrusted/study.yaml", "--sweep", "seed=0,1"],
              {"untrusted/study.yaml": STUDY, "untrusted/t.yaml": EVIL}),
    "plan of a study": (["plan", "--config", "untrusted/study.yaml"],
                        {"untrusted/study.yaml": STUDY, "untrusted/t.yaml": EVIL}),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_a_config_of_a_run_folder_needs_consent(name, untrusted, canary, tmp_path, capsys):
    args, files = WAYS[name]
    for file, content in files.items():
        if isinstance(content, str):
            (tmp_path / file).symlink_to(untrusted / content.removeprefix("->"))
        else:
            write(tmp_path / file, content)
    error = refused(args, capsys, tmp_path)
    assert "--allow_code" in error and f"lies in the run folder {untrusted}, and a config may name code" in error
    assert not canary.exists() and "canary" not in sys.modules
    exits([*args, "--allow_code"], capsys)
    assert canary.exists(), "otherwise the refusal proves nothing"


@pytest.mark.parametrize("mark", ["environment.json", "audit/summary.json", "checkpoints/step=1.ckpt", "cdmem.json"])
def test_what_makes_a_run_folder(mark, tmp_path):
    write(tmp_path / "run" / mark, {})
    assert run_folder_of(tmp_path / "run/a/config.yaml") == tmp_path / "run"
    assert run_folder_of(tmp_path / "config.yaml") is None
    (tmp_path / "link.yaml").symlink_to(tmp_path / "run/config.yaml")
    assert run_folder_of(tmp_path / "link.yaml") == tmp_path / "run"


def test_ones_own_words_name_what_they_like(canary, untrusted, tmp_path, capsys):
    """A config outside run folders, and the command line: one's own metric must go on working."""
    write(tmp_path / "own.yaml", EVIL)
    exits(["fit", "--config", "own.yaml", *STOP], capsys)
    assert canary.exists()
    canary.unlink()
    sys.modules.pop("canary")
    write(tmp_path / "plain.yaml", STAGE)
    exits(["fit", "--config", "plain.yaml", "--trainer.callbacks", "canary.Song", *STOP], capsys)
    assert canary.exists()


def test_ones_own_run_goes_on_and_its_config_is_usable(tmp_path, capsys):
    """By the config that it was started with as ever; by the one in its folder with consent."""
    safe = {"class_path": "callbacks.MemorizationCallback", "init_args": {"cadence": {"samples": 8, "points": 1}}}
    own = write(tmp_path / "own.yaml", stage(trainer__callbacks=[safe]))
    start = ["fit", "--config", own, "--run_dir", tmp_path / "run"]
    assert exits(start, capsys)[0] == 0 and exits(start, capsys)[0] == 0
    written = tmp_path / "run" / "config.yaml"
    assert "--allow_code" in refused(["fit", "--config", written], capsys, tmp_path)
    assert exits(["fit", "--config", written, "--allow_code"], capsys)[0] == 0
    assert exits(["validate", "--config", written, "--allow_code"], capsys)[0] == 0
    student = stage(model={"class_path": "cdmem.training.Student", "init_args": {"averaging": {"half_lives": [2]}}})
    args = ["fit", "--config", write(tmp_path / "s.yaml", student), "--model.teacher", tmp_path / "run"]
    assert exits(args, capsys)[0] == 0, "a teacher is no config"


# ---- the user's key -------------------------------------------------------------------------------------------------


KEY = "0123456789abcdef" * 3


def test_the_wandb_key_is_in_no_file_of_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    own = write(tmp_path / "own.yaml", stage(data__held_out_path=None, model__init_args__averaging__weights="ema_2"))
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
