"""The user's W&B key, wherever it stands: in the environment, in a config, inside a URL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cdmem.errors import InputError
from cdmem.io.secrets import LEAST, redact, refuse_secrets, secrets
from cdmem.run.settings import changed_settings
from support.untrusted import exits, refused, stage, watching, write

KEY = "0123456789abcdef" * 2 + "01234567"  # 40 characters, as W&B's
NEWER = "wandb_v1_" + "Aa0-_" * 16
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def key(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    return KEY


def holders(folder: Path, key: str) -> list[str]:
    """Files, links and names that hold the key."""
    found = [p for p in folder.rglob("*") if key in p.name or (p.is_symlink() and key in str(p.readlink()))]
    return [str(p) for p in [*found, *(p for p in folder.rglob("*") if p.is_file() and key.encode() in p.read_bytes())]]


URLS = ("https://user:{}@api.wandb.ai/x", "https://{}@x/?api_key={}&x=1")


@pytest.mark.parametrize("url", URLS)
def test_a_key_in_a_url_of_a_config(url, key, tmp_path, capsys):
    """As a setting that is recorded, and as one that an error repeats."""
    url = url.replace("{}", key)
    config = stage(trainer__callbacks=watching(url))
    own = write(tmp_path / "own.yaml", config)
    assert exits(["fit", "--config", own, "--run_dir", tmp_path / "run"], capsys)[0] == 0
    assert holders(tmp_path / "run", key) == []
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert recorded["trainer"]["callbacks"][0]["init_args"]["dirpath"] == url.replace(key, "***")
    assert exits(["fit", "--config", own, "--run_dir", tmp_path / "run"], capsys)[0] == 0  # the same settings still
    error = refused(
        ["fit", "--config", write(tmp_path / "bad.yaml", stage(data__source="array", data__path=url))], capsys, tmp_path
    )
    assert key not in error and "***" in error


@pytest.mark.parametrize("value", [KEY, NEWER])
def test_what_is_hidden(value, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", value)
    inside = {"a": [f"x{value}y{value}", 1, None, (value,)], value: True}
    assert redact(inside) == {"a": ["x***y***", 1, None, ("***",)], "***": True}
    assert value not in json.dumps(redact(inside)) and redact(12.5) == 12.5
    for argument in (value, f"--x={value}", f"https://{value}@h"):
        with pytest.raises(InputError) as error:
            refuse_secrets(["fit", argument])
        assert value not in str(error.value) and value not in repr(error.value.value)
    refuse_secrets(["fit", "--config", "own.yaml"])


def test_what_is_no_secret(monkeypatch, tmp_path):
    """A short word in the variable must not blank half of every file."""
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for value in ("", "a", "x" * (LEAST - 1)):
        monkeypatch.setenv("WANDB_API_KEY", value)
        assert secrets() == [] and redact("axx") == "axx"


def test_keys_of_ones_own_server(monkeypatch, tmp_path):
    """W&B keeps the key of a private server in the netrc file under that server's name."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    file = tmp_path / "netrc"
    file.write_text(
        f"machine tracking.example login user password {KEY}\nmachine other.example login a password {NEWER}\n"
    )
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    assert secrets() == []
    monkeypatch.setenv("WANDB_BASE_URL", "https://tracking.example/api")
    assert secrets() == [KEY]
    for text in ("machine", "\xff\xfe", "machine api.wandb.ai login"):
        file.write_text(text, encoding="latin-1")
        assert secrets() == []


def test_the_same_settings_with_and_without_the_key(key, tmp_path):
    """A folder made under one key goes on under another."""
    old, new = {"a": f"https://{key}@x"}, {"a": "https://***@x"}
    assert changed_settings(redact(old), new, "the run", "none") == []


@pytest.mark.slow
def test_the_key_is_in_none_of_wandbs_own_files(tmp_path):
    """Offline W&B writes metadata, config and logs of its own; the key is in the environment and in the config."""
    own = write(tmp_path / "own.yaml", stage(wandb=True, trainer__callbacks=watching(f"https://u:{KEY}@x")))
    settings = {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "cdmem", "fit", "--config", str(own), "--run_dir", str(tmp_path / "run")]
    done = subprocess.run(command, env=os.environ | settings, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and KEY not in done.stdout + done.stderr
    assert len(list((tmp_path / "run/wandb").rglob("*.wandb"))) == 1
    own.unlink()
    assert holders(tmp_path, KEY) == []
