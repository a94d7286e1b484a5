"""The container without Docker: files linted, entrypoint run, install steps carried out on the build context."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from support.source import ROOT

docker_utils = pytest.importorskip("docker.utils", reason="docker (test extra) reads .dockerignore")
dockerfile_parse = pytest.importorskip("dockerfile_parse", reason="dockerfile-parse (test extra) reads the Dockerfile")

TARGETS = ("gpu", "cpu")
SECRETS = re.compile(r"api_?key|token|secret|passw", re.IGNORECASE)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


DOCKERFILE, COMPOSE = text("Dockerfile"), text("docker/compose.yaml")
SERVICE = yaml.safe_load(COMPOSE)["services"]["cdmem"]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Stage name -> (image or stage it starts from, its instructions)."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for entry in dockerfile_parse.DockerfileParser(str(ROOT)).structure:
        instruction, value = entry["instruction"], entry["value"]
        if instruction == "FROM":
            origin, _, name = value.split()
            found[name] = (origin, [])
        elif found and instruction != "COMMENT":
            found[name][1].append((instruction, value))
    return found


def steps(target: str) -> list[tuple[str, str]]:
    """All instructions of a target, those of the stages it starts from first."""
    origin, own = stages()[target]
    return (steps(origin) if origin in stages() else []) + own


def last(target: str, instruction: str) -> str:
    return [value for name, value in steps(target) if name == instruction][-1]


def variables(target: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for name, value in steps(target) if name == "ENV" for pair in value.split())


def sent(root: Path) -> set[str]:
    """Files that `docker build .` sends from a tree: those that .dockerignore does not name."""
    lines = [line.strip() for line in text(".dockerignore").splitlines()]
    names = docker_utils.exclude_paths(str(root), [line for line in lines if line and not line.startswith("#")])
    return {name for name in names if (root / name).is_file()}


def built(target: str, folder: Path) -> Path:
    """/app of the image of a target: its COPY instructions carried out on what is sent."""
    for name in sent(ROOT):
        (folder / "sent" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "sent" / name)
    return build(target, folder / "sent", folder / "image") / "app"


def build(target: str, context: Path, image: Path) -> Path:
    """Carry out the COPY instructions of a target: the file system that the image gets, under ``image``."""
    for value in (value for instruction, value in steps(target) if instruction == "COPY"):
        *sources, destination = [word for word in value.split() if not word.startswith("--")]
        origin = re.search(r"--from=(\S+)", value)
        base = build(origin[1], context, image.with_name(f"{image.name}-{origin[1]}")) if origin else context
        into = image / (Path("/app") / destination).relative_to("/")
        for source in sources:
            found = base / source.lstrip("/")
            assert found.exists(), f"COPY {value}: {source} is not in the build context"
            if found.is_dir():
                shutil.copytree(found, into, dirs_exist_ok=True)
            else:
                goal = into / found.name if destination.endswith("/") or len(sources) > 1 else into
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, goal)
    return image


# ---- the Dockerfile -------------------------------------------------------------------------------------------------


SCHEMA = ("--builtin-schema", "vendor.compose-spec")
STYLE = ("--strict", "-d", "{extends: default, rules: {line-length: {max: 120}}}")
LINTERS = {
    "hadolint": ["Dockerfile"],
    "check-jsonschema": [*SCHEMA, "docker/compose.yaml"],
    "yamllint": [*STYLE, "docker/compose.yaml"],
    "shellcheck": [".ci/run", *(str(f.relative_to(ROOT)) for d in ("docker", ".ci") for f in ROOT.glob(f"{d}/*.sh"))],
}


@pytest.mark.parametrize("linter", LINTERS)
def test_no_fault_is_known_to(linter):
    tool = shutil.which(linter, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if tool is None:
        pytest.skip(f"{linter} is not installed (test extra; no wheel for this platform)")
    done = subprocess.run([tool, *LINTERS[linter]], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_gpu_is_the_default_and_cpu_differs_only_in_the_wheels():
    assert list(stages())[-1] == "gpu"
    cpu = [step for step in steps("cpu") if "CPU_INDEX=" not in step[1]]
    ((ours, theirs),) = [(a[1], b[1]) for a, b in zip(steps("gpu"), cpu, strict=True) if a != b]
    assert theirs.replace('--extra-index-url "${CPU_INDEX}" ', "") == ours
    assert "--extra-index-url" not in " ".join(value for _, value in steps("gpu"))


@pytest.mark.parametrize("target", TARGETS)
def test_signals_user_and_volumes(target):
    entrypoint = json.loads(last(target, "ENTRYPOINT"))
    assert entrypoint == ["/app/docker/entrypoint.sh"] and json.loads(last(target, "CMD")) == ["--help"]
    assert last(target, "STOPSIGNAL") == "SIGTERM"
    assert last(target, "USER") == "${UID}:${GID}"
    assert re.findall(r"^ARG (UID|GID)=(\d+)", DOCKERFILE, re.M) == [("UID", "1000"), ("GID", "1000")]
    assert json.loads(last(target, "VOLUME")) == ["/data", "/runs", "/cache"]
    # A stage knows an argument only where it names it: without these lines the user would be empty, that is, root.
    own = [value for name, value in stages()[target][1] if name == "ARG"]
    assert {"UID", "GID", "CDMEM_COMMIT"} <= set(own)


def test_base_is_slim_and_pinned_to_a_minor_version():
    origin = stages()["base"][0]
    default = re.search(r"^ARG PYTHON_VERSION=(\S+)", DOCKERFILE, re.M)[1]
    assert re.fullmatch(r"python:\$\{PYTHON_VERSION\}-slim-\w+", origin) and re.fullmatch(r"3\.1[1-3]", default)


def test_environment_of_the_image():
    env = variables("gpu")
    for name in ("HOME", "HF_HOME", "TORCH_HOME", "WANDB_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        assert env[name].startswith("/cache")
    assert env["OMP_WAIT_POLICY"] == "PASSIVE"
    assert env["NVIDIA_VISIBLE_DEVICES"] == "all" and env["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    # What the program reads under its own name; a path that is set must exist, so none is set here.
    code = "".join(f.read_text(encoding="utf-8") for f in (ROOT / "cdmem").rglob("*.py"))
    ours = {name for name in env if name.startswith("CDMEM_")}
    assert ours == {"CDMEM_COMMIT"} <= set(re.findall(r"CDMEM_\w+", code))


def test_no_secret_in_any_layer():
    """Values come from outside at start, by a file that git does not hold."""
    assert not SECRETS.search(DOCKERFILE) and "WANDB_API_KEY" in SERVICE["environment"]
    assert not any(SECRETS.search(str(value)) for value in SERVICE["build"]["args"])
    assert ".env" in text("docker/.gitignore").split()


PRIVATE = """
    .env docker/.env .git/config .venv/bin/python runs/a/config.yaml data/x.npz wandb/run cdmem/weights.ckpt
    configs/best.pt cdmem/.netrc cdmem/__pycache__/x.pyc teacher.safetensors tests/test_x.py id_rsa
    configs/wandb/run/key cdmem.egg-info/PKG-INFO
"""
PUBLIC = """
    cdmem/data/files.py cdmem/cli.py callbacks/onset.py configs/debug/data.yaml docker/entrypoint.sh pyproject.toml
    README.md LICENSE .ci/highest.txt
"""


def test_build_context_holds_the_source_and_nothing_private(tmp_path):
    """Of a tree with everything that must stay out."""
    for name in (PRIVATE + PUBLIC).split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert sent(tmp_path) == set(PUBLIC.split())


@pytest.mark.parametrize("target", TARGETS)
def test_everything_that_the_package_needs_is_copied(target, tmp_path):
    app = built(target, tmp_path)
    for folder in ("cdmem", "callbacks", "configs"):
        ours = {f.relative_to(ROOT) for f in (ROOT / folder).rglob("*") if f.is_file() and "__pycache__" not in f.parts}
        assert ours == {f.relative_to(app) for f in (app / folder).rglob("*") if f.is_file()}
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        assert (app / name).read_bytes() == (ROOT / name).read_bytes()
    assert (app / "highest.txt").read_bytes() == (ROOT / ".ci" / "highest.txt").read_bytes()
    assert os.access(app / "docker" / "entrypoint.sh", os.X_OK)


def test_the_source_comes_after_the_dependencies():
    """An edit of the source must not install torch again."""
    install = next(k for k, (_, value) in enumerate(steps("gpu")) if "pip install" in value)
    before = [value for name, value in steps("gpu")[:install] if name == "COPY"]
    assert before == ["pyproject.toml .ci/highest.txt ./"]


def test_the_commit_reaches_the_record(tmp_path):
    """`--build-arg CDMEM_COMMIT=...` becomes the variable that the code reads where there is no repository."""
    assert variables("gpu")["CDMEM_COMMIT"] == variables("cpu")["CDMEM_COMMIT"] == "${CDMEM_COMMIT}"
    app = built("gpu", tmp_path)
    code = "import json; from cdmem.run.provenance import git_state; print(json.dumps(git_state()))"
    env = {**os.environ, "CDMEM_COMMIT": "0123abc", "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=app, env=env, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"commit": "0123abc", "dirty": None}, done.stderr


# ---- compose --------------------------------------------------------------------------------------------------------


def test_compose_stops_gently_and_goes_on():
    assert SERVICE["init"] is True and SERVICE["stop_signal"] == "SIGTERM"
    assert re.fullmatch(r"[1-9]\d*m", SERVICE["stop_grace_period"]) and SERVICE["restart"].startswith("on-failure")
    assert SERVICE["shm_size"] == "8gb"
    mounted = {volume.rsplit(":", 1)[1] for volume in SERVICE["volumes"]}
    assert mounted == set(json.loads(last("gpu", "VOLUME")))
    device = SERVICE["deploy"]["resources"]["reservations"]["devices"][0]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert (ROOT / "docker" / SERVICE["build"]["context"]).resolve() == ROOT
    assert set(SERVICE["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))


def test_every_variable_of_compose_is_explained():
    used = set(re.findall(r"\$\{(\w+)", COMPOSE)) | {"WANDB_API_KEY"}
    explained = text("docker/.env.example")
    assert not {name for name in used if name not in explained + text("docs/docker.md")}
    assert re.findall(r"^#?WANDB_API_KEY=(.*)$", explained, re.M) == [""]
    assert (ROOT / re.search(r"study --config \$\{CDMEM_STUDY:-(\S+?)\}", COMPOSE)[1]).is_file()


# ---- the image, as far as it goes without Docker --------------------------------------------------------------------


def test_pips_cache_is_where_pip_looks():
    """Of another folder nothing would be kept between builds."""
    text_ = text("Dockerfile")
    (cache,) = re.findall(r"XDG_CACHE_HOME=(\S+)", text_)
    targets = re.findall(r"--mount=type=cache,target=(\S+)", text_)
    assert targets and set(targets) == {f"{cache}/pip"}


@pytest.mark.slow
def test_install_steps_of_the_image_work(tmp_path):
    """The context as it is sent, the files as they are copied, the RUN lines as they stand, in a new environment."""
    app = built("gpu", tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True).stdout.strip()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "CDMEM"))}
    env |= {"PATH": f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path / "home")}
    env |= {"PIP_CACHE_DIR": cache, "PIP_NO_COMPILE": "1"}  # pip's cache is mounted; of gigabytes little is imported
    env |= {"OMP_WAIT_POLICY": "PASSIVE", "CDMEM_COMMIT": "0123abc", "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    env |= {"WANDB_DIR": str(tmp_path / "wandb")}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=app, env=env, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, f"{command} {done.stdout[-3000:]} {done.stderr[-3000:]}"
        return done.stdout

    commands = [re.sub(r"--mount=\S+\s+", "", value) for name, value in steps("gpu") if name == "RUN"]
    write, install, itself = (command for command in commands if "useradd" not in command)
    assert "> requirements.txt" in write and "--requirement requirements.txt" in install and "--editable ." in itself
    for command in (write, install, itself):
        run("sh", "-c", command)
    entrypoint = app / "docker" / "entrypoint.sh"
    assert run("sh", entrypoint, "--version").strip() == tomllib.loads(text("pyproject.toml"))["project"]["version"]
    entrypoint.write_text(text("docker/entrypoint.sh").replace("/runs /cache", f"{app} {tmp_path}"))
    run("sh", entrypoint, "fit", "--config", "configs/debug/teacher.yaml", "--trainer.max_steps", "2", "--wandb=false")
    record = json.loads((app / "runs/debug/teacher/environment.json").read_text(encoding="utf-8"))
    assert record["git"] == {"commit": "0123abc", "dirty": None}
