"""One language for every command: how values, lists and flags are written, what is refused, what ``--help`` says."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cdmem.audit.settings import AuditSettings
from cdmem.cli import help_pages
from cdmem.cli.arguments import new_file, parse
from cdmem.cli.audit import AuditCommand, run_audit
from cdmem.cli.export import ExportCommand
from cdmem.cli.main import COMMANDS, HELP
from cdmem.cli.plan import PlanCommand
from cdmem.cli.report import ReportCommand
from cdmem.cli.sample import SampleCommand
from cdmem.cli.workspace import WorkspaceCommand
from cdmem.errors import InputError
from cdmem.study.config import StudySettings
from cdmem.study.parsing import joined, options, words
from cdmem.study.stage import build


@dataclass(frozen=True)
class Group:
    """A group.

    Attributes:
        size: of it.
        levels: of it.
    """

    size: int = 1
    levels: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a test.

    Attributes:
        runs: folders.
        nfe: evaluations.
        rule: a word or a ratio.
        quiet: say nothing.
        name: a text.
        group: more.
    """

    runs: list[str]
    nfe: list[int] | None = None
    rule: float | str = "off"
    quiet: bool = False
    name: str | None = None
    group: Group = field(default_factory=Group)

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise InputError("name", self.name, "is bad", "give another")


def read(*args: str) -> Settings:
    return parse(Settings, args, "test", positional="runs")


FORMS = [
    (["a", "b"], {"runs": ["a", "b"]}),
    (["--runs", "a", "b"], {"runs": ["a", "b"]}),
    (["--runs=[a, b]"], {"runs": ["a", "b"]}),
    (["--name", "x", "a"], {"runs": ["a"], "name": "x"}),
    (["a", "--nfe", "1", "2"], {"nfe": [1, 2]}),
    (["a", "--nfe", "[1,2]"], {"nfe": [1, 2]}),
    (["a", "--nfe=3"], {"nfe": [3]}),
    (["a", "--nfe", "null"], {"nfe": None}),
    (["a", "--nfe", "1", "--nfe", "2"], {"nfe": [2]}),
    (["a", "--quiet"], {"quiet": True}),
    (["--quiet", "a"], {"quiet": True, "runs": ["a"]}),
    (["a", "--quiet=false"], {"quiet": False}),
    (["a", "--rule", "0.5"], {"rule": 0.5}),
    (["a", "--rule", "auto"], {"rule": "auto"}),
    (["a", "--name", "1.0"], {"name": "1.0"}),
    (["a", "--name=-1"], {"name": "-1"}),
    (["a", "--group.size", "-3"], {"group": Group(size=-3)}),
    (["a", "--group.levels", "1", "0.5"], {"group": Group(levels=[1.0, 0.5])}),
]


@pytest.mark.parametrize(("args", "wanted"), FORMS, ids=[" ".join(args) for args, _ in FORMS])
def test_how_settings_are_written(args, wanted):
    settings = read(*args)
    assert {key: getattr(settings, key) for key in wanted} == wanted


MISTAKES = [
    ([], "runs="),
    (["a", "--nfe", "x"], "nfe=x: is no whole number"),
    (["a", "--nfe", "[1,"], "nfe=[1,"),
    (["a", "--nfe", "1.5"], "nfe=1.5"),
    (["a", "--nfe"], "nfe=: has no value"),
    (["a", "--name"], "name=: has no value"),
    (["a", "--name", "bad"], "name=bad: is bad"),
    (["a", "--nam", "x"], "nam=x: no such setting; did you mean name?"),
    (["a", "--group.sise", "1"], "group.sise=1: no such setting; did you mean group.size?"),
    (["a", "--group", "1"], "group=1: is a group of settings"),
    (["a", "--group.size", "null"], "group.size=null"),
    (["a", "--group.size", str(10**30)], "group.size="),
    (["a", "--rule", ".nan"], "rule=.nan: is no finite number"),
]


@pytest.mark.parametrize(("args", "line"), MISTAKES, ids=[" ".join(args) or "nothing" for args, _ in MISTAKES])
def test_a_mistake_is_one_line_that_names_key_and_value(args, line):
    with pytest.raises(InputError) as caught:
        read(*args)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("kind", "args", "line"),
    [
        (Group, ["--size", "1", "b"], "arguments=b: belongs to no option"),
        (Settings, ["a", "--=x"], "runs=a: belongs to no option; write --runs a"),
        (Settings, ["--runs", "b", "--quiet", "a"], "arguments=a: belongs to no option"),
        (SampleCommand, ["runs/x"], "checkpoint=runs/x: belongs to no option; write --checkpoint runs/x"),
        (SampleCommand, [], "checkpoint="),
    ],
)
def test_words_without_an_option_are_refused_where_there_is_no_place_for_them(kind, args, line):
    with pytest.raises(InputError) as caught:
        parse(kind, args, "test")
    assert str(caught.value).startswith(line)


CADENCE = '--trainer.callbacks=[{"class_path": "callbacks.WhiteboxCallback", "init_args": {"cadence": %s}}]'


@pytest.mark.parametrize(
    ("arg", "line"),
    [
        ("--model.averaging=null", "model.averaging=None: is a group of settings"),
        ("--model.seeds=null", "model.seeds=None: is a group of settings"),
        (CADENCE % 7, "trainer.callbacks.0.cadence=7: is a group of settings"),
        (CADENCE % "null", "trainer.callbacks.0.cadence=None: is a group of settings"),
    ],
)
def test_what_stands_in_the_place_of_a_group_of_settings_is_named(arg, line):
    config = Path(__file__).resolve().parents[2] / "configs/debug/mlp_teacher.yaml"
    with pytest.raises(InputError) as caught:
        build("fit", ["--config", str(config), arg])
    assert str(caught.value).startswith(line)


def test_an_audit_names_its_generator(tmp_path):
    """Also where a stage of a study is no checkpoint."""
    (tmp_path / "study/teacher/checkpoints").mkdir(parents=True)
    (tmp_path / "study/teacher/checkpoints/last.ckpt").write_text("none")
    np.savez(tmp_path / "images.npz", images=np.zeros((4, 8, 8, 1), dtype=np.uint8))
    with pytest.raises(InputError, match=r"^generator=study/teacher.* cannot be read"):
        run_audit(["--generator", "study", "--training_set", "images.npz"])


@pytest.mark.parametrize(
    "line", [[], ["a", "--b", "c", "d"], ["--b=--c", "d"], ["--b", "--c", "-1", "--d", ""], ["--b", "--b", "x"]]
)
def test_a_command_line_survives_being_taken_apart(line):
    assert words(options(line)) == line


def test_lists_for_the_parser_of_stages():
    line = ["--data.classes", "3", "8", "--data.n", "9", "-c", "a.yaml", "--p", "-1", "-2"]
    assert joined(line) == ["--data.classes", "[3, 8]", "--data.n", "9", "--config", "a.yaml", "--p", "[-1, -2]"]
    assert joined(["-h"]) == ["-h"] and joined([]) == []


def test_a_file_to_write_is_checked_before_the_work(tmp_path):
    assert new_file("out", str(tmp_path / "new/a.json"), ".json") == tmp_path / "new/a.json"
    (tmp_path / "b.json").write_text("mine")
    (tmp_path / "link.json").symlink_to("nowhere")
    for name in ("/proc/o.json", "b.json", "link.json", "c.txt", "b.json/d.json", f"{'x' * 250}.json", ""):
        with pytest.raises(InputError, match=r"^out="):
            new_file("out", str(tmp_path / name) if name else "", ".json")


KINDS = {
    "audit": AuditCommand,
    "sample": SampleCommand,
    "export": ExportCommand,
    "report": ReportCommand,
    "study": StudySettings,
    "plan": PlanCommand,
    "wandb-workspace": WorkspaceCommand,
}


@pytest.mark.parametrize("command", KINDS)
def test_help_says_what_every_setting_means_and_its_default(command, monkeypatch):
    monkeypatch.setattr(help_pages, "COLUMNS", "400")  # nothing is wrapped
    said = help_pages.page(command)
    assert f"usage: python -m cdmem {command}" in said
    for setting in dataclasses.fields(KINDS[command]):
        if setting.name == "audit" and command == "study":
            assert "\n  --audit.samples " in said
            continue
        text = re.search(rf"^  --{setting.name} .*\n(?:   .*\n)*", said, re.MULTILINE)[0]
        meaning = text.partition(" (")[0].split()[2:]
        assert ("default: " in text) is not ("(required" in text), text
        assert any(word.islower() and word.isalpha() for word in meaning), f"{setting.name} is not explained"


def test_every_command_is_in_the_overview():
    assert all(f"\n  {command} " in HELP for command in COMMANDS)


def test_study_and_audit_share_their_settings():
    """One default for each; the command adds what it needs and changes none."""
    shared = {f.name: f for f in dataclasses.fields(AuditSettings)}
    command = {f.name: f for f in dataclasses.fields(AuditCommand)}
    assert all(command[name].default == f.default for name, f in shared.items())
    assert AuditSettings().device == "auto" and AuditSettings().torch_device.type in ("cpu", "cuda")


WRONG = [
    ({"samples": 1}, "samples=1"),
    ({"nfe": []}, "nfe=[]"),
    ({"nfe": [2, 0]}, "nfe=[2, 0]"),
    ({"threshold": 0.0}, "threshold=0.0"),
    ({"threshold": 1.01}, "threshold=1.01"),
    ({"near_duplicates": "maybe"}, "near_duplicates=maybe"),
    ({"near_duplicates": 1.0}, "near_duplicates=1.0"),
    ({"features": ["vgg"]}, "features=vgg"),
    ({"metrics": ["everything"]}, "metrics=everything"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"device": "tpu9"}, "device=tpu9"),
    ({"device": "meta"}, "device=meta"),
]


@pytest.mark.parametrize(("change", "line"), WRONG, ids=[line for _, line in WRONG])
def test_settings_of_an_audit_are_checked_when_they_are_made(change, line):
    with pytest.raises(InputError) as caught:
        AuditSettings(**change)
    assert str(caught.value).startswith(f"{line}: ")


def test_bounds_of_an_audit_are_inside():
    settings = AuditSettings(samples=2, nfe=[4, 1, 4], threshold=1.0, near_duplicates=0.99, batch_size=1)
    assert settings.nfe == [1, 4], "a repeated one would count twice in Holm's family"
