"""The language of every command line (``--key value``, ``--key=value``, ``--key a b``), and settings as dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import math
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from pydoc import locate
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from omegaconf.errors import OmegaConfBaseException

from cdmem.errors import InputError
from cdmem.io.class_paths import missing_package
from cdmem.study.diagnosis import check_arguments, no_setting

PARSING = (ArgumentError, OmegaConfBaseException, ValueError, TypeError)  # what parsing of settings can raise
HINT = "correct it; --help lists all settings"
# What of the library's long messages is said twice, or is advice about other things.
ASIDES = (
    "Expected a path but",
    "Given value",
    "Problem with given class_path",
    "Subclass types",
    "Subtypes:",
    "Errors:",
    "Does not validate",
    "tip:",
)
PRESETS = """Presets of --model.method: configs/methods/small.yaml, stable at small batch, the defaults;
configs/methods/cm.yaml, CIFAR-10 of Song et al. 2023, no target network, 800,000 steps of 512 there;
configs/methods/ict.yaml, Song & Dhariwal 2023, a grid that grows from 10 to 1280 intervals over the run, for long runs;
configs/methods/regression.yaml, a control, regression along the teacher's trajectories (docs/configs.md).
Settings of a model: --model.help cdmem.training.Student."""
UNKNOWN = re.compile(r"(?:unrecognized arguments?: -*|nested key ')([\w.+]+)(?:[ =](\S+))?", re.IGNORECASE)
KEY = re.compile(r'(?:Parser key "|are required: )([\w.]+)')
NESTED = re.compile(r"NestedArg\(key='([\w.]+)', val='?([^')]*)")
VALUE = re.compile(r"(?:Got value|Given value): (\S+)")
# A value deep inside: the key within a class's settings, what was expected, what was given.
INNER = re.compile(r'Parser key "([\w.]+)":\s+(Expected [^\n]*?)\. Got value: (\S+)')
LIMIT = 2**63
LONGEST = 160  # characters of a library's message
# Settings of other people's classes may be enumerations, which YAML has no word for.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))
Kind = TypeVar("Kind")

# ---- words ----------------------------------------------------------------------------------------------------------


def options(args: Sequence[str]) -> list[tuple[str, list[str]]]:
    """``--key a b`` and ``--key=a`` as (key, values), in order; words before the first option have the key ''.

    ``-c`` is ``--config``.
    """
    pairs: list[tuple[str, list[str]]] = [("", [])]
    for word in args:
        if word.startswith("--") or word == "-c":
            key, equals, value = word[2:].partition("=")
            pairs.append(("config" if word == "-c" else key, [value] if equals else []))
        else:
            pairs[-1][1].append(word)
    return pairs if pairs[0][1] else pairs[1:]


def words(pairs: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """The command line of :func:`options`."""
    line: list[str] = []
    for key, values in pairs:
        glued = bool(values) and values[0].startswith("--")
        line += [f"--{key}={values[0]}", *values[1:]] if glued else [*[f"--{key}"] * bool(key), *values]
    return line


def joined(args: Sequence[str]) -> list[str]:
    """The same command line for a parser that knows lists only as ``--key=[a, b]``."""
    pairs = options(args)
    lists = [len(values) > 1 and key and not any(re.match("-[A-Za-z]", v) for v in values) for key, values in pairs]
    return words([(key, [one_value(key, values)] if many else values) for (key, values), many in zip(pairs, lists)])


def one_value(key: str, values: Sequence[str]) -> str:
    """The value of an option as YAML; several words are a list.

    Raises:
        InputError: no value, or a word that belongs to no option.
    """
    if not key:
        raise InputError("arguments", " ".join(values), "belongs to no option", "write settings as --key value")
    if not values:
        raise InputError(key, "", "has no value", f"write --{key} VALUE")
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"


def config_file(args: Sequence[str]) -> str | None:
    """The last config file that a command line names."""
    names = [values[0] for key, values in options(args) if key == "config" and values]
    files = [name for name in names if name.endswith((".yaml", ".yml")) and "\n" not in name]
    return files[-1] if files else None


def config_name(file: str | Path | None) -> str:
    """The name of a run: its config file, relative to ``configs/`` if it lies there, without suffix."""
    if file is None:
        return "unnamed"
    parts = Path(file).with_suffix("").parts
    if "configs" in parts:
        parts = parts[len(parts) - parts[::-1].index("configs") :]
        return "/".join(parts)
    return parts[-1]


# ---- values ---------------------------------------------------------------------------------------------------------


def make_parser(kind: type, command: str = "") -> ArgumentParser:
    """A parser of a dataclass's settings: their meanings are read from its docstring."""
    parser = ArgumentParser(prog=f"python -m cdmem {command}", exit_on_error=False)
    parser.add_class_arguments(kind, None)
    return parser


def help_text(kind: type, command: str, about: str = "") -> str:
    """Every setting of a command with its meaning and default."""
    listed = re.sub(r",\s+--[\w.]+\+ \S+", "", make_parser(kind, command).format_help())  # no appending here
    groups = re.findall(r"\n  --([\w.]+) CONFIG\s+Path to a configuration file\.", listed)  # a group has no file
    for group in groups:
        listed = re.sub(rf"\n  --{group} CONFIG\s+Path to a configuration file\.|\s*\[--{group} CONFIG\]", "", listed)
    return f"{(about or kind.__doc__ or '').split('    Attributes:')[0].strip()}\n\n{listed}"


def field_type(kind: type, key: str) -> Any:
    """The type of a field, also of a nested dataclass's (``group.key``); None for a key that is no field."""
    name, _, inner = key.partition(".")
    hint = typing.get_type_hints(kind).get(name)
    return field_type(hint, inner) if inner and dataclasses.is_dataclass(hint) else None if inner else hint


def _names(kind: type, key: str) -> list[str]:
    """The settings among which a key is looked for: those of its group, if there is one."""
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    name, _, inner = key.partition(".")
    group = field_type(kind, name)
    return [f"{name}.{n}" for n in _names(group, inner)] if inner and dataclasses.is_dataclass(group) else names


def is_list(hint: Any) -> bool:
    """Whether a type is a list, or a list or nothing."""
    return list in map(typing.get_origin, (hint, *typing.get_args(hint)))


def read_settings(kind: type[Kind], values: Mapping[str, Any], section: str = "") -> Kind:
    """A dataclass from plain values: what a YAML file holds, or the words of a command line.

    Args:
        kind: a dataclass that checks its values in ``__post_init__``.
        values: by field; of a list, one element may stand for itself. Keys of nested dataclasses may be dotted.
        section: where the values lie, for messages.

    Raises:
        InputError: an unknown key, a missing one, or a value of another type or out of range.
    """
    prefix = f"{section}." if section else ""
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    plain: dict[str, Any] = {}
    for key, value in values.items():
        hint = field_type(kind, str(key))
        if hint is None:
            raise no_setting(f"{prefix}{key}", value, [f"{prefix}{name}" for name in _names(kind, str(key))])
        if value is None and hint is not Any and type(None) not in typing.get_args(hint):
            raise InputError(f"{prefix}{key}", value, "is no value", "leave it out for the default")
        if dataclasses.is_dataclass(hint) and not isinstance(value, Mapping):
            hint = f"write --{prefix}{key}.SETTING VALUE"
            raise InputError(f"{prefix}{key}", _shown(value), "is a group of settings", hint)
        alone = is_list(hint) and not isinstance(value, list | None) and not re.match(r"\[|null$", str(value))
        plain[key] = [value] if alone else value
    try:
        parser = make_parser(kind)
        parsed = parser.parse_object(plain)
        check_values(parsed, finite=True)
        settings = vars(parser.instantiate(parsed))
        return kind(**{name: settings[name] for name in names})
    except (*PARSING, InputError, OSError, ArithmeticError, RecursionError) as error:
        told = own_mistake(error) or found_by(lambda: check_arguments("", kind, _grouped(plain))) or explain(error)
        word = plain.get(told.key)
        value = word if isinstance(word, str) else told.value
        raise InputError(f"{prefix}{told.key}", value, told.problem, told.hint) from None


def _grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings, and words of the command line as values."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = str(key).split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = word_value(value)
    return nested


def word_value(word: Any) -> Any:
    """A word of the command line as the YAML value that it is."""
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_load(word) if isinstance(word, str) else word
    return word


def found_by(check: Callable[[], None]) -> InputError | None:
    """The mistake that a check of :mod:`cdmem.study.diagnosis` finds; None if it finds or understands nothing."""
    try:
        check()
    except InputError as error:
        return error
    except Exception:  # the settings have already been refused, whatever this trips over
        return None
    return None


def _shown(value: object) -> str:
    return value if isinstance(value, str) else "..."  # Python refuses to print the longest numbers


def check_values(settings: Any, key: str = "", finite: bool = False) -> None:
    """Look through nested settings for what the parser lets pass.

    Raises:
        InputError: a whole number that no array, seed or counter of 64 bits holds; a value that is no mapping where a
            class takes a group of settings; with ``finite`` a nan or inf. The key is dotted.
    """
    if finite and isinstance(settings, float) and not math.isfinite(settings):
        raise InputError(key, settings, "is no finite number", "give a finite one")
    if isinstance(settings, int) and not -LIMIT <= settings < LIMIT:
        about = f"about {'-' * (settings < 0)}2^{settings.bit_length()}"  # Python refuses to print the longest ones
        raise InputError(key, about, "is beyond the 64 bits of a whole number", "give a smaller one")
    inner = vars(settings) if isinstance(settings, Namespace) else settings
    items = enumerate(inner) if isinstance(inner, list | tuple) else inner.items() if isinstance(inner, Mapping) else ()
    for name, value in items:
        check_values(value, f"{key}.{name}" if key else str(name), finite)
    if isinstance(inner, Mapping) and isinstance(inner.get("init_args"), Namespace):
        for name, value in vars(inner["init_args"]).items():
            if name in _groups(inner["class_path"]) and not isinstance(value, Namespace):
                raise InputError(f"{key}.{name}", value, "is a group of settings", "give them by name, or leave it out")


def _groups(class_path: str) -> set[str]:
    """Arguments of a class that are groups of settings: their default is a dataclass."""
    makers = [vars(base).get("__init__") for base in getattr(locate(class_path), "__mro__", ())]
    parameters = [p for make in makers if inspect.isfunction(make) for p in inspect.signature(make).parameters.values()]
    return {p.name for p in parameters if dataclasses.is_dataclass(p.default)}


# ---- messages -------------------------------------------------------------------------------------------------------


def one_line(message: str) -> str:
    """The informative lines of a long message, joined."""
    text = re.sub(r'Parser key "[\w.]+":\s*', "", message)
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(ASIDES) and "NoneType" not in line] or lines
    return " ".join(" ".join(dict.fromkeys(kept)).split())[:LONGEST]


def own_mistake(error: BaseException) -> InputError | None:
    """The :class:`InputError` of ours that a parsing failure came from."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, InputError):
            return inner
        inner = inner.__cause__ or inner.__context__
    return None


def explain(error: BaseException, settings: Mapping[str, Any] | None = None) -> InputError:
    """A parsing failure in one line that names key and value; an :class:`InputError` of ours is unwrapped.

    Args:
        settings: as they were given, to find the class that needs a missing package.
    """
    if own := own_mistake(error):
        return own
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ImportError):
            return missing_package(*_maker(inner, settings or {}), inner)
        inner = inner.__cause__ or inner.__context__
    text = str(error)
    if missing := UNKNOWN.search(text):
        return InputError(missing[1], missing[2] or "", "no such setting", "check the spelling; --help lists all")
    key, nested, value = KEY.search(text), NESTED.search(text), VALUE.search(text)
    name = key[1] if key else "config"
    deep = INNER.search(text)
    if deep and deep[1] != name:
        return InputError(f"{name}.{deep[1]}", deep[3], deep[2][:LONGEST], HINT)
    if nested:
        return InputError(f"{name}.{nested[1]}", nested[2], one_line(text), HINT)
    said = value[1] if value and not value[1].startswith(("{", "[", "Namespace")) else "..."
    return InputError(name, said, one_line(text), HINT)


def _maker(error: ImportError, settings: Mapping[str, Any]) -> tuple[str, str]:
    """Key and class path of the configured class whose construction needs a package."""
    names = [match[1] for match in re.finditer(r"class_path='([\w.]+)'", str(error))]
    trace = error.__traceback__
    while trace is not None:
        names.append(type(trace.tb_frame.f_locals.get("self")).__name__)
        trace = trace.tb_next
    for key, path in class_paths(settings):
        if path.rpartition(".")[2] in [name.rpartition(".")[2] for name in names]:
            return key, path
    return ("wandb", "true") if "wandb" in f"{error} {error.name}" else ("config", "...")


def class_paths(settings: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every class path within settings, with its dotted key."""
    if isinstance(settings, list | tuple):
        for item in settings:
            yield from class_paths(item, key)
    elif isinstance(settings, Mapping):
        if isinstance(settings.get("class_path"), str):
            yield key, settings["class_path"]
        for name, value in settings.items():
            plain = name in ("init_args", "class_path")
            yield from class_paths(value, key if plain else f"{key}.{name}".lstrip("."))
    elif isinstance(settings, str) and re.fullmatch(r"(\w+\.)*[A-Z]\w*", settings) and not key.endswith("class_path"):
        yield key, settings


def quiet_libraries() -> None:
    """Hide warnings about things that are so on purpose; everything else stays visible."""
    # Device banners and advertisements; warnings and errors still come through.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for pattern in (
        ".*does not have many workers.*",
        ".*IterableDataset.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*GPU available but not used.*",
        ".*isinstance.treespec.*",
        ".*in eval mode at the start of training.*",
        ".*Trainer already configured with model summary.*",
        ".*You called `self.log.*",
        ".*args parameter is intended to run from within Python.*",
        ".*lr_scheduler.step.*",
    ):
        warnings.filterwarnings("ignore", pattern)
