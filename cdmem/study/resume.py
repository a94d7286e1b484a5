"""``--run_dir R`` alone: go on with the settings that the run folder holds (docs/rules.md).

They may be somebody else's words, so they are read only with ``--allow_code``, like every config of a run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cdmem.errors import InputError
from cdmem.io.own_code import FLAG, allows, split_consent
from cdmem.io.paths import usable_path
from cdmem.run.folder import CONFIG
from cdmem.study.parsing import options
from cdmem.study.start import command_line
from cdmem.study.sweep import RECORD, read_sweep


def with_own_settings(command: str, args: Sequence[str]) -> list[str]:
    """The command line with the settings of its run folder, where it names a folder that has some, and no config.

    Raises:
        InputError: ``--allow_code`` is missing; the line ends with the command that has it.
    """
    given = {key: values for key, values in options(args) if key}
    if given.keys() & {"config", "model", "model.class_path", "help"} or not given.get("run_dir"):
        return list(args)
    folder = usable_path("run_dir", given["run_dir"][-1])
    file = next((folder / n for n in (CONFIG, RECORD) if (folder / n).is_file()), None)
    if file is None or (file.name == RECORD and command != "study"):
        problem = f"no config is given, and {folder} holds none to go on with"
        raise InputError("config", None, problem, f"python -m cdmem {command} --config FILE --run_dir {folder}")
    rest, _ = split_consent(args)
    if not allows():
        problem = "goes on with that config of a run folder, and a config may name code to run"
        said = command_line([command, *args])
        raise InputError("config", file, problem, f"if you made that folder or trust who did: {said} {FLAG}")
    return _sweep(folder, rest) if file.name == RECORD else ["--config", str(file), *args]


def _sweep(folder: Path, rest: Sequence[str]) -> list[str]:
    """The command line that a sweep was started with."""
    sweep = read_sweep(folder)
    return [*sweep.base, *rest, "--sweep", *(f"{key}={','.join(values)}" for key, values in sweep.grid.items())]
