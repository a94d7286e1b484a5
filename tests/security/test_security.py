"""A config of a run folder is read only with consent; the user's W&B key is in no file (docs/security.md)."""

from __future__ import annotations

import sys

import pytest

from cdmem.io.secrets import redact, secrets
from cdmem.run.provenance import environment
from cdmem.study.consent import run_folder_of
from support.untrusted import STAGE, exits, refused, stage, student, watching, write

CANARY = """
from pathlib import Path
from callbacks.evaluation import EvaluationCallback
Path({mark!r}).write_text("sung")
class Song(EvaluationCallback):
    prefix = "song"
    def measure(self, evaluation):
        return {{}}
"""


@pytest.fixture
def canary(tmp_path, tmp_path_factory, monkeypatch):
    """A module whose import leaves a file; the file's path."""
    mark = tmp_path_factory.mktemp("mark") / "sung"
    write(tmp_path / "path/canary.py", CANARY.format(mark=str(mark)))
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    yield mark
    sys.modules.pop("canary", None)


STOP = ["--trainer.max_steps", "0"]  # nothing is trained after the parsing
SONG = {"class_path": "canary.Song"}  # its import leaves a file
EVIL = stage(trainer__callbacks=[SONG])
STUDY = {"teacher": "t.yaml", "students": {"s": "t.yaml"}}
FILES = {
    "untrusted/environment.json": {},
    "own.yaml": STAGE,
    "t.yaml": STAGE,
    "study.yaml": STUDY,
    "includes.yaml": stage(model="untrusted/model.yaml"),
    "includes_callbacks.yaml": stage(trainer__callbacks="untrusted/callbacks.yaml"),
    "untrusted/config.yaml": EVIL,
    "untrusted/a/b.yaml": EVIL,
    "untrusted/model.yaml": SONG,
    "untrusted/callbacks.yaml": [SONG],
    "untrusted/t.yaml": EVIL,
    "untrusted/study.yaml": STUDY,
    "untrusted/outside.yaml": STUDY | {"teacher": {"config": "../t.yaml", "trainer.callbacks": ["canary.Song"]}},
}
# Ways to a config of a run folder, directly, by a link, as part of another config, as a stage of a study.
WAYS = """
    fit --config untrusted/config.yaml
    fit --config=untrusted/a/b.yaml
    validate --config untrusted/config.yaml
    predict --config untrusted/config.yaml
    fit --config own.yaml --config untrusted/config.yaml
    fit --config link.yaml
    fit --config includes.yaml
    fit --config includes_callbacks.yaml
    fit --config own.yaml --model untrusted/model.yaml
    fit --config own.yaml --trainer.callbacks=[untrusted/model.yaml]
    plan --config untrusted/config.yaml
    study --config untrusted/study.yaml
    study --config untrusted/outside.yaml
    study --config study.yaml --teacher.config untrusted/t.yaml
    study --config untrusted/study.yaml --sweep seed=0,1
    plan --config untrusted/study.yaml
"""


@pytest.mark.parametrize("way", [line.strip() for line in WAYS.strip().splitlines()])
def test_a_config_of_a_run_folder_needs_consent(way, canary, tmp_path, capsys):
    for file, content in FILES.items():
        write(tmp_path / file, content)
    (tmp_path / "link.yaml").symlink_to("untrusted/config.yaml")
    args = [*way.split(), *([] if way.startswith(("plan", "study")) else STOP)]
    error = refused(args, capsys, tmp_path)
    said = f"lies in the run folder {tmp_path / 'untrusted'}, and a config may name code"
    assert "--allow_code" in error and said in error
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


def test_ones_own_words_name_what_they_like(canary, tmp_path, capsys):
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
    args = ["fit", "--config", write(tmp_path / "s.yaml", student()), "--model.teacher", tmp_path / "run"]
    assert exits(args, capsys)[0] == 0, "a teacher is no config"


# ---- the user's key -------------------------------------------------------------------------------------------------


KEY = "0123456789abcdef" * 3


def test_the_wandb_key_is_in_no_file_of_a_run(tmp_path, capsys, monkeypatch):
    """Of a setting, behind an interpolation, on the command line."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("NAME_OF_RUN", f"runs-{KEY}")
    monkeypatch.setattr(sys, "argv", ["cdmem", "fit", f"--x={KEY}"])
    own = write(tmp_path / "own.yaml", stage(trainer__callbacks=watching("${oc.env:NAME_OF_RUN}")))
    assert exits(["fit", "--config", own, "--run_dir", tmp_path / "run"], capsys)[0] == 0
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
    lines = f"machine api.wandb.ai login user password {KEY}\nmachine x.org login a password {KEY[::-1]}\n"
    write(tmp_path / "netrc", lines).chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert secrets() == [KEY]
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert secrets() == [] and redact(KEY) == KEY
