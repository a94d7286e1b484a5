"""The container without Docker: files linted, entrypoint run, install steps carried out on the build context."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

docker_utils = pytest.importorskip("docker.utils", reason="docker (test extra) reads .dockerignore")
dockerfile_parse = pytest.importorskip("dockerfile_parse", reason="dockerfile-parse (test extra) reads the Dockerfile")

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "docker" / "compose.yaml"
ENTRYPOINT = ROOT / "docker" / "entrypoint.sh"
TARGETS = ("gpu", "cpu")
SECRETS = re.compile(r"api_?key|token|secret|passw", re.IGNORECASE)


def tool(name: str) -> str:
    """A linter beside this interpreter or on the path; the test is skipped without it."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} is not installed (test extra; no wheel for this platform)")
    return found


def check(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Stage name -> (image or stage it starts from, its instructions)."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    with DOCKERFILE.open("rb") as stream:
        for entry in dockerfile_parse.DockerfileParser(fileobj=stream).structure:
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


def context(folder: Path) -> Path:
    """What `docker build .` sends: the tree less what .dockerignore names."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return copy_named(ROOT, docker_utils.exclude_paths(str(ROOT), patterns), folder)


def copy_named(root: Path, names: set[str], folder: Path) -> Path:
    for name in sorted(names):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    return folder


def build(target: str, sent: Path, image: Path) -> Path:
    """Carry out the COPY instructions of a target: the file system that the image gets, under ``image``."""
    for instruction, value in steps(target):
        if instruction != "COPY":
            continue
        *sources, destination = [word for word in value.split() if not word.startswith("--")]
        origin = re.search(r"--from=(\S+)", value)
        base = build(origin[1], sent, image.with_name(f"{image.name}-{origin[1]}")) if origin else sent
        into = image / (destination.lstrip("/") if destination.startswith("/") else f"app/{destination}")
        for source in sources:
            found = base / source.lstrip("/")
            assert found.exists(), f"COPY {value}: {source} is not in the build context"
            if found.is_dir():
                shutil.copytree(found, into, dirs_exist_ok=True)
            else:
                whole = destination.endswith("/") or len(sources) > 1
                goal = into / found.name if whole else into
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, goal)
    return image


# ---- the Dockerfile -------------------------------------------------------------------------------------------------


def test_dockerfile_has_no_fault_known_to_hadolint():
    check(tool("hadolint"), str(DOCKERFILE))


def test_gpu_is_the_default_and_cpu_differs_only_in_the_wheels():
    assert list(stages())[-1] == "gpu"
    differing = [
        (a, b)
        for a, b in zip(steps("gpu"), [s for s in steps("cpu") if "CPU_INDEX=" not in s[1]], strict=True)
        if a != b
    ]
    assert [b[1].replace('--extra-index-url "${CPU_INDEX}" ', "") for _, b in differing] == [a[1] for a, _ in differing]
    assert len(differing) == 1
    assert "--extra-index-url" not in " ".join(value for _, value in steps("gpu"))


@pytest.mark.parametrize("target", TARGETS)
def test_signals_user_and_volumes(target):
    entrypoint = json.loads(last(target, "ENTRYPOINT"))
    assert entrypoint == ["/app/docker/entrypoint.sh"] and json.loads(last(target, "CMD")) == ["--help"]
    assert last(target, "STOPSIGNAL") == "SIGTERM"
    assert last(target, "USER") == "${UID}:${GID}"
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert re.findall(r"^ARG (UID|GID)=(\d+)", text, re.M) == [("UID", "1000"), ("GID", "1000")]
    assert json.loads(last(target, "VOLUME")) == ["/data", "/runs", "/cache"]
    # A stage knows an argument only where it names it: without these lines the user would be empty, that is, root.
    own = [value for name, value in stages()[target][1] if name == "ARG"]
    assert {"UID", "GID", "CDMEM_COMMIT"} <= set(own)


def test_base_is_slim_and_pinned_to_a_minor_version():
    origin = stages()["base"][0]
    default = re.search(r"^ARG PYTHON_VERSION=(\S+)", DOCKERFILE.read_text(encoding="utf-8"), re.M)[1]
    assert re.fullmatch(r"python:\$\{PYTHON_VERSION\}-slim-\w+", origin) and re.fullmatch(r"3\.1[1-3]", default)


def test_environment_of_the_image():
    env = variables("gpu")
    for name in ("HOME", "HF_HOME", "TORCH_HOME", "WANDB_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        assert env[name].startswith("/cache")
    assert env["OMP_WAIT_POLICY"] == "PASSIVE"
    assert env["NVIDIA_VISIBLE_DEVICES"] == "all" and env["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    # What the program reads under its own name; a path that is set must exist, so none is set here.
    code = "".join(f.read_text(encoding="utf-8") for f in (ROOT / "cdmem").rglob("*.py"))
    assert (
        {name for name in env if name.startswith("CDMEM_")} == {"CDMEM_COMMIT"} <= set(re.findall(r"CDMEM_\w+", code))
    )


def test_no_secret_in_any_layer(tmp_path):
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert not SECRETS.search(text)
    # Values come from outside at start.
    service = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["cdmem"]
    assert "WANDB_API_KEY" in service["environment"]
    assert not any(SECRETS.search(str(value)) for value in service["build"]["args"])


def test_build_context_holds_the_source_and_nothing_private(tmp_path):
    """A copy of the tree with everything beside it that must stay out."""
    root = tmp_path / "tree"
    private = [
        ".env",
        "docker/.env",
        ".git/config",
        ".venv/bin/python",
        "runs/a/config.yaml",
        "data/x.npz",
        "wandb/run",
    ]
    private += [
        "cdmem/weights.ckpt",
        "configs/best.pt",
        "cdmem/.netrc",
        "cdmem/__pycache__/x.pyc",
        "teacher.safetensors",
    ]
    private += ["tests/test_x.py", "id_rsa", "configs/wandb/run/key", "cdmem.egg-info/PKG-INFO"]
    public = [
        "cdmem/data/files.py",
        "cdmem/cli.py",
        "callbacks/onset.py",
        "configs/debug/data.yaml",
        "docker/entrypoint.sh",
    ]
    public += ["pyproject.toml", "README.md", "LICENSE", ".ci/highest.txt"]
    for name in private + public:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    sent = {name for name in docker_utils.exclude_paths(str(root), patterns) if (root / name).is_file()}
    assert sent == set(public)


@pytest.mark.parametrize("target", TARGETS)
def test_everything_that_the_package_needs_is_copied(target, tmp_path):
    app = build(target, context(tmp_path / "sent"), tmp_path / "image") / "app"
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
    app = build("gpu", context(tmp_path / "sent"), tmp_path / "image") / "app"
    code = "import json; from cdmem.run.provenance import git_state; print(json.dumps(git_state()))"
    env = {**os.environ, "CDMEM_COMMIT": "0123abc", "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=app, env=env, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"commit": "0123abc", "dirty": None}, done.stderr


# ---- compose --------------------------------------------------------------------------------------------------------


def test_compose_file_is_valid():
    check(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE))
    check(tool("yamllint"), "--strict", "-d", "{extends: default, rules: {line-length: {max: 120}}}", str(COMPOSE))


def test_compose_stops_gently_and_goes_on():
    service = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["cdmem"]
    assert service["init"] is True and service["stop_signal"] == "SIGTERM"
    assert re.fullmatch(r"[1-9]\d*m", service["stop_grace_period"]) and service["restart"].startswith("on-failure")
    assert service["shm_size"] == "8gb"
    mounted = {volume.rsplit(":", 1)[1] for volume in service["volumes"]}
    assert mounted == set(json.loads(last("gpu", "VOLUME")))
    device = service["deploy"]["resources"]["reservations"]["devices"][0]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert (COMPOSE.parent / service["build"]["context"]).resolve() == ROOT
    assert set(service["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE.read_text(encoding="utf-8"), re.M))


def test_every_variable_of_compose_is_explained():
    text = COMPOSE.read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{(\w+)", text)) | {"WANDB_API_KEY"}
    explained = (ROOT / "docker" / ".env.example").read_text(encoding="utf-8")
    said = explained + (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
    assert not {name for name in used if name not in said}
    key = re.search(r"^#?WANDB_API_KEY=(.*)$", explained, re.M)
    assert key and key[1] == ""
    default = re.search(r"study --config \$\{CDMEM_STUDY:-(\S+?)\}", text)[1]
    assert (ROOT / default).is_file()


def test_the_key_file_stays_out_of_git():
    assert ".env" in (ROOT / "docker" / ".gitignore").read_text(encoding="utf-8").split()


def test_scripts_have_no_fault_known_to_shellcheck():
    scripts = [*sorted((ROOT / "docker").glob("*.sh")), ROOT / ".ci" / "run", *sorted((ROOT / ".ci").glob("*.sh"))]
    check(tool("shellcheck"), *map(str, scripts))


# ---- the image, as far as it goes without Docker --------------------------------------------------------------------


@pytest.mark.slow
def test_install_steps_of_the_image_work(tmp_path):
    """The context as it is sent, the files as they are copied, the RUN lines as they stand, in a new environment."""
    app = build("gpu", context(tmp_path / "sent"), tmp_path / "image") / "app"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "CDMEM"))}
    env |= {"PATH": f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path / "home")}
    env |= {"OMP_WAIT_POLICY": "PASSIVE", "WANDB_MODE": "offline", "CDMEM_COMMIT": "0123abc"}
    env |= {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    commands = [re.sub(r"--mount=\S+\s+", "", value) for name, value in steps("gpu") if name == "RUN"]
    commands = [command for command in commands if "useradd" not in command]
    assert [("requirements.txt" in c, "--editable ." in c) for c in commands] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    for command in commands:
        done = subprocess.run(["sh", "-c", command], cwd=app, env=env, capture_output=True, text=True)
        assert done.returncode == 0, command + done.stdout[-3000:] + done.stderr[-3000:]

    def cdmem(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", app / "docker" / "entrypoint.sh", *arguments],
            cwd=app,
            env={**env, "WANDB_DIR": str(tmp_path / "wandb")},
            capture_output=True,
            text=True,
            timeout=600,
        )

    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    assert cdmem("--version").stdout == f"{version}\n"
    (app / "docker" / "entrypoint.sh").write_text(ENTRYPOINT.read_text().replace("/runs /cache", f"{app} {tmp_path}"))
    quick = cdmem("fit", "--config", "configs/debug/teacher.yaml", "--trainer.fast_dev_run", "true")
    assert quick.returncode == 0, quick.stdout[-2000:] + quick.stderr[-3000:]
    whole = cdmem("fit", "--config", "configs/debug/teacher.yaml", "--trainer.max_steps", "2", "--wandb", "false")
    assert whole.returncode == 0, whole.stdout[-2000:] + whole.stderr[-3000:]
    record = json.loads((app / "runs" / "debug" / "teacher" / "environment.json").read_text(encoding="utf-8"))
    assert record["git"] == {"commit": "0123abc", "dirty": None}
