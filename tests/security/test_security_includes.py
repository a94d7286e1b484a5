"""A untrusted's config cannot lead out by files that it includes, by the folder it writes to, or as part of a study."""

from __future__ import annotations

import pytest

from cdmem.errors import InputError
from cdmem.study.trust import admit
from support.untrusted import STAGE, refused, stage, write

# ---- includes


def test_includes_are_held_to_the_rule(untrusted, canary, tmp_path, capsys):
    evil = write(untrusted / "evil.yaml", {"class_path": "canary.Song"})
    outside = write(tmp_path / "outside.yaml", {"class_path": "canary.Song"})
    (untrusted / "link.yaml").symlink_to(outside)
    (untrusted / "words").write_text("canary.Song\n")
    for value in (
        "evil.yaml",
        "../untrusted/evil.yaml",
        str(evil),
        "../outside.yaml",
        "link.yaml",
        str(outside),
        "words",
    ):
        write(untrusted / "config.yaml", stage(model=value))
        refused(["fit", "--config", untrusted / "config.yaml"], capsys, tmp_path)
        write(untrusted / "config.yaml", stage(trainer__callbacks=value))
        refused(["fit", "--config", untrusted / "config.yaml"], capsys, tmp_path)
    assert not canary.exists()


def test_ones_own_config_and_command_line_do_not_open_the_door(untrusted, canary, tmp_path, capsys):
    """An include, a sub-config, a list of files and a link that lead into a run folder."""
    evil = write(untrusted / "evil.yaml", {"class_path": "canary.Song"})
    own = write(tmp_path / "own.yaml", stage(model="untrusted/evil.yaml"))
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


def test_paths_to_data_and_teachers_are_no_configs(untrusted, tmp_path):
    write(untrusted / "evil.yaml", {"class_path": "canary.Song"})
    evil = str(untrusted / "evil.yaml")
    admit(["--model.teacher", evil, f"--ckpt_path={evil}", "--data.path", evil, "--run_dir", evil])
    admit(["--student.model.teacher", evil, "--teacher.data.path", evil], study=True)
    with pytest.raises(InputError):
        admit(["--teacher.config", evil], study=True)


# ---- where a run is written -----------------------------------------------------------------------------------------


def test_a_run_folders_config_does_not_choose_where_to_write(untrusted, tmp_path, capsys):
    victim = tmp_path / "victim"
    write(victim / "environment.json", "{}")
    file = write(untrusted / "config.yaml", stage(run_dir=str(victim)))
    assert "run_dir" in refused(["fit", "--config", file], capsys, tmp_path)
    assert "run_dir" in refused(["fit", "--run_dir", tmp_path / "r", "--config", file], capsys, tmp_path)
    admit(["--config", str(file), "--run_dir", str(tmp_path / "r")])
    admit(["--config", str(write(untrusted / "config.yaml", stage(run_dir=str(untrusted))))])


# ---- studies --------------------------------------------------------------------------------------------------------


def test_studies_of_a_run_folder(untrusted, canary, tmp_path, capsys):
    write(untrusted / "t.yaml", STAGE)
    evil = write(tmp_path / "elsewhere" / "evil.yaml", stage(model="canary.Song"))
    for teacher in (
        "../elsewhere/evil.yaml",
        {"config": str(evil)},
        {"config": "t.yaml", "model": "canary.Song"},
        {"config": "t.yaml", "trainer": {"callbacks": ["canary.Song"]}},
        {"config": "t.yaml", "trainer": {"logger": "${oc.env:HOME}"}},
        {"config": "t.yaml", "trainer.callbacks": ["canary.Song"]},
    ):
        file = write(untrusted / "study.yaml", {"teacher": teacher, "students": {"s": "t.yaml"}})
        refused(["study", "--config", file], capsys, tmp_path)
        refused(["plan", "--config", file], capsys, tmp_path)
        file = write(untrusted / "study.yaml", {"teacher": "t.yaml", "students": {"s": teacher}})
        refused(["study", "--config", file, "--sweep", "seed=0,1"], capsys, tmp_path)
    # A merge key puts "data" where the name of a student stands.
    text = "teacher: t.yaml\nstudents:\n  <<: [{data: {config: t.yaml, model: canary.Song}}]\n"
    refused(["study", "--config", write(untrusted / "study.yaml", text)], capsys, tmp_path)
    assert not canary.exists()


def test_a_study_of_ones_own_with_a_stage_of_a_stranger(untrusted, canary, tmp_path, capsys):
    write(untrusted / "t.yaml", stage(model="canary.Song"))
    file = write(tmp_path / "study.yaml", {"teacher": "untrusted/t.yaml", "students": {"s": "untrusted/t.yaml"}})
    refused(["study", "--config", file], capsys, tmp_path)
    own = write(tmp_path / "own.yaml", {"teacher": "s.yaml", "students": {"s": "s.yaml"}})
    write(tmp_path / "s.yaml", STAGE)
    refused(["study", "--config", own, "--teacher.config", untrusted / "t.yaml"], capsys, tmp_path)
    assert not canary.exists()
