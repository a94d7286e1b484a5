"""The container's entrypoint, run as the script it is: arguments, signals, exit codes, volumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENTRYPOINT = ROOT / "docker" / "entrypoint.sh"


FAKE = """
import json, os, signal, sys, time
mode = os.environ.get("FAKE", "")
if mode == "sleep":
    def stop(*_):
        os.write(1, b"python got SIGTERM\\n")  # print may be interrupted in the middle of itself
        os._exit(143)
    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    time.sleep(60)
mask = os.umask(0)
print(json.dumps({"arguments": sys.argv[1:], "pid": os.getpid(), "umask": mask}))
sys.exit(int(os.environ.get("CODE", "0")))
"""


class Container:
    """The script as it stands, with /runs and /cache where a test may write, and a ``cdmem`` that tells what it got."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.cache = folder / "volume runs", folder / "cache"
        for made in (self.runs, self.cache, folder / "bin", folder / "app" / "cdmem"):
            made.mkdir(parents=True)
        text = ENTRYPOINT.read_text(encoding="utf-8")
        assert "for folder in /runs /cache; do" in text
        text = text.replace("for folder in /runs /cache", f"for folder in '{self.runs}' '{self.cache}'")
        self.script = folder / "entrypoint.sh"
        self.script.write_text(text)
        self.script.chmod(0o755)
        (folder / "app" / "cdmem" / "__init__.py").write_text("")
        (folder / "app" / "cdmem" / "__main__.py").write_text(FAKE)
        (folder / "bin" / "python").symlink_to(sys.executable)
        self.folder = folder
        self.env = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(self.cache / "home")}
        self.env["WANDB_DIR"] = str(self.cache / "wandb")

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        options = {"cwd": self.folder / "app", "env": {**self.env, **env}, "text": True}
        return subprocess.Popen([self.script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def run(self, *arguments: str, **env: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err


@pytest.fixture
def container(tmp_path):
    return Container(tmp_path)


def test_arguments_pass_unchanged(container):
    given = ["study", "--config", "a file.yaml", "", "--data.duplication", '[{"fraction": 0.5}]']
    given += ["$HOME *", "a\nb", "'\""]
    code, out, err = container.run(*given)
    assert (code, json.loads(out)["arguments"], err) == (0, given, "")
    assert json.loads(container.run()[1])["arguments"] == []


@pytest.mark.parametrize("code", [0, 1, 2, 130, 143])
def test_exit_code_passes(container, code):
    assert container.run("study", CODE=str(code))[0] == code


def test_python_takes_the_place_of_the_shell(container):
    process = container.start("fit", FAKE="sleep")
    assert process.stdout.readline() == "ready\n"
    command = Path(f"/proc/{process.pid}/cmdline")
    if command.exists():
        assert b"-m\0cdmem\0fit" in command.read_bytes()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (143, "python got SIGTERM\n", "")


def test_files_are_made_with_the_mask_asked_for(container):
    assert json.loads(container.run("--help")[1])["umask"] == 0o022
    assert json.loads(container.run("--help", UMASK="0002")[1])["umask"] == 0o002


def test_home_is_made_in_an_empty_cache(container):
    container.run("--help")
    assert (container.cache / "home").is_dir() and (container.cache / "wandb").is_dir()


@pytest.mark.parametrize("command", ["study", "fit", "validate", "test", "predict"])
def test_unwritable_runs_is_one_line(container, command):
    container.runs.rmdir()
    container.runs.write_text("")  # not even root can write into a file
    code, out, err = container.run(command, "--config", "x.yaml")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"cdmem: error: {container.runs}: user {os.getuid()}:{os.getgid()} cannot write")
    assert "chown" in err and "--user" in err


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_unwritable_runs_of_another_user():
    """The usual case: a folder of root's, mounted for user 12345. Not in pytest's folder, which is closed to others."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        container = Container(Path(folder))
        command, options = [container.script, "study"], {"user": 12345, "group": 12345, "extra_groups": []}
        done = subprocess.run(command, cwd="/", env=container.env, capture_output=True, text=True, **options)
    assert done.returncode == 2 and "user 12345:12345 cannot write" in done.stderr and done.stderr.count("\n") == 1


def test_reading_commands_need_no_runs(container):
    container.runs.rmdir()
    assert container.run("audit", "--generator", "x")[0] == 0
    assert container.run("--version")[0] == 0


def test_the_probe_leaves_nothing(container):
    container.run("study")
    assert list(container.runs.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="process 1 needs unshare, as root")
def test_process_one_saves_on_sigterm(tmp_path):
    """As in a container without an init: the entrypoint is process 1 of its space, and a stop leaves a checkpoint."""
    text = ENTRYPOINT.read_text(encoding="utf-8").replace("/runs /cache", f"{tmp_path} {tmp_path}")
    (tmp_path / "entrypoint.sh").write_text(text)
    (tmp_path / "bin").mkdir()
    env = {**os.environ, "HOME": str(tmp_path), "WANDB_DIR": str(tmp_path), "WANDB_MODE": "disabled"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    command = ["unshare", "--pid", "--fork", "--mount-proc", "sh", str(tmp_path / "entrypoint.sh"), "fit"]
    command += ["--config", "configs/debug/mlp_teacher.yaml", "--run_dir", str(tmp_path / "run")]
    command += ["--trainer.max_steps", "1000000", "--trainer.callbacks", "null"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        record, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
        while not record.is_file() or not record.read_text():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
