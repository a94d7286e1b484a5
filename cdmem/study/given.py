"""The settings of one stage as the user wrote them: its config files and, over them, its command line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from cdmem.errors import InputError
from cdmem.io.own_code import split_consent
from cdmem.io.text import parse_settings, read_text
from cdmem.study.consent import check_consent
from cdmem.study.diagnosis import check_arguments, check_value, is_file, no_group, no_setting, parameters
from cdmem.study.parsing import explain, found_by, one_value, options, own_mistake, word_value
from cdmem.training.datamodule import MemorizationDataModule
from cdmem.training.module import DiffusionModule

SECTIONS: dict[str, type] = {"trainer": Trainer, "data": MemorizationDataModule, "model": DiffusionModule}
OWN: dict[str, Any] = {"run_dir": str | None, "seed": int, "weights_from": str | None, "threads": int | None}
OWN |= {"wandb": bool, "config": Any}
LIGHTNINGS = ("model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule", "self")


class Settings:
    """What a stage is told, for messages."""


def given_settings(args: Sequence[str]) -> dict[str, Any]:
    """Plain values, nested.

    Raises:
        InputError: a config of a run folder that is not admitted.
        OSError, ValueError: a config that cannot be read.
    """
    rest, _ = split_consent(args)
    settings: dict[str, Any] = {}
    for key, values in options(rest):
        if not key or not values:
            continue
        value = values[0] if len(values) == 1 else one_value(key, values)
        if is_file(value) and Path(value).is_file():
            check_consent(value)
            content: Any = parse_settings(read_text(Path(value)))
        elif is_file(value) and (key == "config" or (key.startswith(("model", "trainer")) and key != "model.teacher")):
            raise InputError(key, value, "no such file", "give a YAML file that is there")
        else:
            content = word_value(value)
        if key == "config" and not isinstance(content, dict):
            raise InputError("config", value, "no such file", "give the YAML file of a stage")
        if key == "config":
            _merge(settings, content)
        else:
            _put(settings, key, content)
    return settings


def _merge(settings: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(settings.get(key), dict):
            _merge(settings[key], value)
        elif key.endswith("+"):
            _put(settings, key, value)
        else:
            settings[key] = dict(value) if isinstance(value, Mapping) else value


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    *groups, name = key.split(".")
    inner = settings
    for group in groups:
        below = inner.get(group)
        below = below if isinstance(below, dict) else {"class_path": below} if isinstance(below, str) else {}
        inner[group] = below
        inner = below.setdefault("init_args", {}) if "class_path" in below and name != "class_path" else below
    if name.endswith("+"):
        before = inner.get(name[:-1]) or []
        inner[name[:-1]] = [*(before if isinstance(before, list) else [before]), *_items(value)]
    else:
        inner[name] = value


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_given(command: str, settings: Mapping[str, Any]) -> None:
    """Compare the settings of a stage with the signatures of what they describe.

    Raises:
        InputError: the first that is unknown, missing, or of another type.
    """
    method = inspect.signature(getattr(Trainer, command)).parameters
    own = OWN | {name: Any for name in method if name not in LIGHTNINGS}
    known = [*SECTIONS, *own]
    known += [f"{section}.{name}" for section in ("trainer", "data") for name in parameters(SECTIONS[section])[0]]
    for key, value in settings.items():
        if key in own:
            check_value(key, value, own[key])
        elif key not in SECTIONS:
            raise no_setting(str(key), value, known, Settings)
        elif is_file(value):
            continue
        elif not isinstance(value, Mapping) and (key != "model" or not isinstance(value, str | None)):
            raise no_group(key, value)
    for key, kind in SECTIONS.items():
        if isinstance(settings.get(key), Mapping) and key != "model":
            check_arguments(key, kind, settings[key])
    if settings.get("model") is None:
        example = "give --config FILE, or --model cdmem.training.DiffusionTeacher"
        raise InputError("model", None, "nothing says what is trained", example)
    check_value("model", settings["model"], DiffusionModule)


def refusal(error: BaseException, command: str, args: Sequence[str]) -> InputError:
    """One line about a failure of parsing: what the settings themselves show, before what the parser says."""
    settings: dict[str, Any] = {}

    def check() -> None:
        settings.update(given_settings(args))
        check_given(command, settings)

    found, told = found_by(check), explain(error, settings)
    # What a class of ours says of its own setting counts, unless the class of that very setting was not found.
    return found if found and (not own_mistake(error) or found.key.startswith(told.key)) else told
