"""Two thousand broken configs, subsets, overrides and files: one line and exit 2, or a valid run; nothing changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from checks.fuzz import (
    DATA,
    SCALARS,
    STUDENT,
    STUDY,
    TEACHER,
    VALUES,
    WORDS,
    Sandbox,
    changed,
    changed_json,
    damaged,
    furnish,
    leaves,
)
from checks.fuzz import dumped as to_yaml

CASES = 2000
TRAIN = ("fit", "validate", "test", "predict")
TEACHER_FILES = ["run/teacher/checkpoints/last.ckpt", "run/teacher/training_set.json", "run/teacher/config.yaml"]
STUDENT_FILES = [name.replace("teacher", "student") for name in TEACHER_FILES]
SUMMARY = "run/audit/summary.json"
RECORDS = [SUMMARY, "run/teacher/metrics.jsonl", "run/student/metrics.jsonl", "run/teacher/environment.json"]
FAST = ["--metrics", "memorization", "--out", "out.json"]
# Commands with the files that each reads.
READERS = [
    (["report", "run"], [SUMMARY, SUMMARY, *RECORDS, *TEACHER_FILES[1:], *STUDENT_FILES[1:]]),
    (["export", "--checkpoint", "run/student", "--out", "out"], [*STUDENT_FILES, STUDENT_FILES[0], SUMMARY]),
    (["sample", "--checkpoint", "run/student", "--samples", "2", "--out", "out.npz"], STUDENT_FILES[:1]),
    (["sample", "--checkpoint", TEACHER_FILES[0], "--samples", "2", "--out", "out.npz"], TEACHER_FILES[:1]),
    (["audit", "--generator", "run", "--training_set", "run", "--samples", "8", *FAST],
     [*TEACHER_FILES, *STUDENT_FILES]),
    (["audit", "--generator", "images.npz", "--training_set", "images.npy", "--samples", "8", *FAST],
     ["images.npz", "images.npy"]),
    (["audit", "--generator", "images.npz", "--training_set", "pictures", "--held_out", "run", *FAST],
     ["images.npz", "pictures/0.png", "run/teacher/training_set.json"]),
    (["audit", "--generator", "pictures", "--training_set", TEACHER_FILES[1], *FAST],
     ["pictures/0.png", TEACHER_FILES[1]]),
    (["plan", "--config", "run/teacher/config.yaml"], ["run/teacher/config.yaml"]),
    (["fit", "--config", "student.yaml", "--run_dir", "out"], TEACHER_FILES),
    (["fit", "--config", "teacher.yaml", "--run_dir", "out", "--ckpt_path", TEACHER_FILES[0]], TEACHER_FILES),
    (["study", "--config", "study.yaml", "--run_dir", "run"], [*TEACHER_FILES, *STUDENT_FILES, *RECORDS]),
]  # fmt: skip


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        furnish(folder)
    return folder


@pytest.fixture
def sandbox(furnished, monkeypatch):
    monkeypatch.chdir(furnished)
    return Sandbox(furnished)


@st.composite
def configs(draw):
    """A broken config for training, planning or a study."""
    command = draw(st.sampled_from([*TRAIN, "fit", "fit", "plan", "study", "plan study"]))
    if "study" in command:
        content = draw(changed({**STUDY, "data": dict(DATA)}))
        return [command.split()[0], "--config", "study.yaml"] + ([] if " " in command else ["--run_dir", "out"]), {
            "study.yaml": to_yaml(content)
        }
    name, base = draw(st.sampled_from([("teacher.yaml", TEACHER), ("student.yaml", {**TEACHER, "model": STUDENT})]))
    more = [] if command == "plan" else ["--run_dir", "out"]
    return [command, "--config", name, *more], {name: to_yaml(draw(changed(base)))}


@st.composite
def subsets(draw):
    """A broken description of the training set only."""
    config = {**TEACHER, "data": draw(changed(DATA))}
    return ["fit", "--config", "teacher.yaml", "--run_dir", "out"], {"teacher.yaml": to_yaml(config)}


@st.composite
def overrides(draw):
    """Broken options of every command."""
    command = draw(
        st.sampled_from([["fit", "--config", "teacher.yaml", "--run_dir", "out"], *(c for c, _ in READERS), ["theory"]])
    )
    if command[0] == "theory":
        command = ["theory", "two-gaussians", "--config", "edge.yaml", "--out", "out", "--quiet"]
    if command[0] == "fit":
        path = draw(st.sampled_from([p for p in leaves(TEACHER) if all(isinstance(k, str) for k in p)]))
        key = "--" + ".".join(path).replace("init_args.", draw(st.sampled_from(["", "init_args."])))
    else:
        ours = [o for o in command if o.startswith("--")]
        key = draw(
            st.sampled_from([*ours, "--seed", "--samples", "--nfe", "--n", "--out", "--config", "--nothing", "-x"])
        )
    value = draw(st.one_of(st.sampled_from(WORDS), VALUES.map(lambda v: json.dumps(v, default=str)), SCALARS.map(str)))
    added = draw(st.sampled_from([[f"{key}={value}"], [key, value], [key]]))
    return [*command, *(a.replace("\0", "") for a in added)], {}


@st.composite
def files(draw):
    """Damaged files under commands that read them; records also with changed values."""
    command, read = draw(st.sampled_from(READERS))
    name = draw(st.sampled_from(read))
    content = Path(name).read_bytes()
    if name.endswith(".json") and draw(st.booleans()):
        return command, {name: draw(changed_json(content))}
    return command, {name: draw(damaged(content))}


KINDS = {"configs": (configs, 800), "subsets": (subsets, 400), "overrides": (overrides, 500), "files": (files, 300)}
ASIDE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]


def throw(sandbox, kind, count):
    @settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=ASIDE,
              phases=[Phase.generate, Phase.shrink])  # fmt: skip
    @given(KINDS[kind][0]())
    def attempt(case):
        sandbox.attempt(*case)

    attempt()
    print(kind, count, sandbox.ends)
    assert sandbox.ends.get("2", 0) > 0.2 * count, "broken input must mostly be refused"
    assert sum(sandbox.ends.values()) >= 0.9 * count


def test_the_kinds_add_up():
    assert sum(count for _, count in KINDS.values()) == CASES


@pytest.mark.parametrize("kind", KINDS)
def test_some_broken_input(sandbox, kind):
    throw(sandbox, kind, KINDS[kind][1] // 25)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_broken_inputs(sandbox, kind):
    throw(sandbox, kind, KINDS[kind][1])


def test_what_the_sandbox_holds_is_valid(sandbox):
    """Otherwise every refusal would prove nothing."""
    for command, _ in READERS:
        sandbox.attempt(command, {})
        assert "2" not in sandbox.ends, f"{command}: {sandbox.said}"


def test_a_traceback_would_be_seen(sandbox, monkeypatch):
    def careless(args):
        raise ValueError("no line")

    monkeypatch.setattr("cdmem.report_command.run_report", careless)
    with pytest.raises(ValueError, match="no line"):
        sandbox.attempt(["report", "run"], {})


def test_a_changed_file_would_be_seen(sandbox, monkeypatch):
    def careless(args):
        Path("images.npy").write_bytes(b"lost")
        return 0

    monkeypatch.setattr("cdmem.report_command.run_report", careless)
    content = Path("images.npy").read_bytes()
    with pytest.raises(AssertionError, match="changed"):
        sandbox.attempt(["report", "run"], {})
    Path("images.npy").write_bytes(content)
