"""What is wrong with settings that a parser refused: they are compared with the classes' own signatures.

The parser's messages tell of its attempts, not of the mistake. This runs only after it has failed, so it may overlook
something, and then its message stands; what it finds is one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from cdmem.errors import InputError
from cdmem.io.class_paths import find_class

# Kinds of classes that settings name, and where the usual ones are.
HOMES = {
    "DiffusionModule": "cdmem.training",
    "NetworkConfig": "cdmem.networks",
    "DistillationMethod": "cdmem.distillation",
    "Distance": "cdmem.diffusion",
    "SampleMetric": "cdmem.metrics",
    "Callback": "callbacks",
    "Logger": "lightning.pytorch.loggers",
    "Optimizer": "torch.optim",
}
LISTS = (list, tuple, set, Sequence, Iterable)
WORDS = {int: "is no whole number", float: "is no number", bool: "is neither true nor false", str: "is no text"}
# Where settings are that other programs have at the top.
ELSEWHERE = {"lr": "model.optimization.optimizer.lr", "learning_rate": "model.optimization.optimizer.lr"}
ELSEWHERE |= {"optimizer": "model.optimization.optimizer", "batch_size": "data.batch_size"}
ELSEWHERE |= {"epochs": "trainer.max_steps", "steps": "trainer.max_steps", "gpus": "trainer.devices"}
TOPS = ("Settings", "Trainer", "MemorizationDataModule", "DiffusionTeacher", "Student")
Parameters = dict[str, tuple[Any, Any]]  # name -> (type, default or inspect.Parameter.empty)
EMPTY = inspect.Parameter.empty


def check_arguments(key: str, kind: Any, given: Mapping[str, Any], positional: int = 0) -> None:
    """Compare settings with the arguments of a class.

    Args:
        key: where they lie, dotted; '' for the top.
        kind: the class.
        given: plain values by name; keys may be dotted.
        positional: so many first arguments are not settings (an optimizer's parameters).

    Raises:
        InputError: the first that is unknown, missing, or of another type.
    """
    known, more = parameters(kind)
    known = dict(list(known.items())[positional:])
    prefix = f"{key}." if key else ""
    for name, value in given.items():
        if name in known:
            check_value(f"{prefix}{name}", value, *known[name])
        elif not more:
            raise no_setting(f"{prefix}{name}", value, [f"{prefix}{n}" for n in known], kind)
    for name, (hint, default) in known.items():
        if default is EMPTY and name not in given and key and not more:
            example = _example(hint)
            raise InputError(f"{prefix}{name}", None, f"is missing: {kind.__name__} needs it", example)


def no_setting(key: str, value: Any, known: Sequence[str], kind: Any = None) -> InputError:
    """The refusal of a key that is no setting, with the one that was probably meant."""
    name = key.rpartition(".")[2]
    same = [k for k in known if k.rpartition(".")[2] == name]
    elsewhere = ELSEWHERE.get(name) if getattr(kind, "__name__", "") in TOPS else None
    close = [elsewhere] if elsewhere and elsewhere != key else same or difflib.get_close_matches(key, known, 1, 0.75)
    if not close:  # the last name counts, not what they have in common
        names = {k.rpartition(".")[2]: k for k in known}
        close = [names[n] for n in difflib.get_close_matches(name, list(names), 1)]
    listed = f"known: {', '.join(k.rpartition('.')[2] for k in known)}"
    hint = f"did you mean {close[0]}?" if close else listed if len(listed) < 160 else "--help lists all settings"
    of = f" of {kind.__name__}" if inspect.isclass(kind) and kind.__name__ != TOPS[0] else ""
    return InputError(key or repr(key), shown(value), f"no such setting{of}", hint)


def shown(value: Any) -> Any:
    """A value as far as a message repeats it."""
    if isinstance(value, Mapping):
        return value.get("class_path", "{...}")
    text = str(value) if isinstance(value, str | float | bool | list | tuple | None) else "..."
    if isinstance(value, int) and abs(value) < 10**30:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def parameters(kind: Any) -> tuple[Parameters, bool]:
    """Arguments of a class, also those that it hands on to its bases; and whether it takes any others."""
    found: Parameters = {}
    if dataclasses.is_dataclass(kind):
        types_ = typing.get_type_hints(kind)
        made = {f.name: (types_[f.name], _default(f)) for f in dataclasses.fields(kind) if f.init}
        return made, False
    makers = [vars(base)["__init__"] for base in getattr(kind, "__mro__", ()) if "__init__" in vars(base)]
    if not inspect.isclass(kind):
        makers = [kind]
    for make in makers:
        if make is object.__init__:
            break
        hints: dict[str, Any] = {}
        with suppress(Exception):  # names that exist for type checkers only
            hints = typing.get_type_hints(make)
        try:
            signature = list(inspect.signature(make).parameters.values())[inspect.isclass(kind) :]
        except (ValueError, TypeError):
            return found, True
        for p in signature:
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                # What a base needs, its subclass may give it.
                default = None if p.default is EMPTY and make is not makers[0] else p.default
                found.setdefault(p.name, (hints.get(p.name, Any), default))
        if not any(p.kind is p.VAR_KEYWORD for p in signature):
            return found, False
    return found, bool(makers) and makers[-1] is not object.__init__


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return EMPTY if field.default_factory is dataclasses.MISSING else field.default_factory()


def check_value(key: str, value: Any, hint: Any, default: Any = EMPTY) -> None:
    """Raises InputError for a value that is not of a type; types that are not understood pass."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is EMPTY or (isinstance(value, str) and ("${" in value or is_file(value))):
        return
    if origin in (typing.Union, types.UnionType):
        _check_union(key, value, inner, default)
    elif hint is type(None):
        if value is not None:
            raise InputError(key, shown(value), "must be null", "leave it out")
    elif value is None and origin is not typing.Literal:
        if _is_group(hint):
            raise no_group(key, value)
        example = _example(hint) if default is EMPTY else "leave it out for the default"
        raise InputError(key, None, "is no value", example)
    elif origin is typing.Literal:
        if value not in inner:
            raise _none_of(key, value, inner)
    elif origin in LISTS or hint in LISTS:
        if isinstance(value, str | int | float | Mapping):
            raise InputError(key, shown(value), "is no list", f"write [{shown(value)}]")
        for item in value if inner and isinstance(value, list | tuple) else ():
            check_value(key, item, inner[0])
    elif origin is Callable:
        if inner and inspect.isclass(inner[-1]):
            _check_class(key, value, inner[-1], default, 1)
    elif _is_group(hint):
        if not isinstance(value, Mapping):
            raise no_group(key, value)
        check_arguments(key, hint, value)
    elif hint in WORDS:
        _check_scalar(key, value, hint, default)
    elif _is_named(hint):
        _check_class(key, value, hint, default)


def _is_group(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) and not _is_named(hint)


def _is_named(hint: Any) -> bool:
    """Whether settings name a class of this kind by its path."""
    return inspect.isclass(hint) and any(base.__name__ in HOMES for base in hint.__mro__)


def is_file(value: Any) -> bool:
    """Whether settings lie in a file of their own, which is read with its own consent."""
    return isinstance(value, str) and value.endswith((".yaml", ".yml"))


def no_group(key: str, value: Any) -> InputError:
    """The refusal of a value where settings by name are wanted."""
    word, _, rest = value.partition(" ") if isinstance(value, str) else ("", "", "")
    if rest and word.isidentifier():
        return InputError(key, shown(value), "is no group of settings: a colon is missing", f"write {word}: {rest}")
    told = shown(value)
    return InputError(key, told, "is a group of settings", f"write --{key}.SETTING VALUE, or leave it out")


def _none_of(key: str, value: Any, allowed: Sequence[Any]) -> InputError:
    names = list(dict.fromkeys(str(a) for a in allowed if a is not None))
    close = difflib.get_close_matches(str(value), names, 1)
    hint = f"did you mean {close[0]}?" if close else "choose one of them"
    return InputError(key, shown(value), f"is none of {', '.join(names)}", hint)


def _check_scalar(key: str, value: Any, kind: type, default: Any) -> None:
    number = None
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    good = {
        str: isinstance(value, str | int | float),
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: number is not None,
    }
    if good[kind]:
        return
    hint = {bool: "write true or false", str: "write one word"}.get(kind, "give a number")
    if isinstance(default, int | float) and default > 0 and kind in (int, float):
        hint = f"e.g. {default}"
    if kind is int and number is not None and number.is_integer():
        hint = f"write {int(number)}"
    problem = WORDS[kind] if not isinstance(value, list | Mapping) else f"{WORDS[kind]} but {_container(value)}"
    raise InputError(key, shown(value), problem, hint)


def _container(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a mapping"


def _check_union(key: str, value: Any, alternatives: Sequence[Any], default: Any) -> None:
    """The mistake is that of the alternative which the value most resembles."""
    errors: dict[Any, InputError] = {}
    plain = isinstance(value, str | int | float)
    for hint in alternatives:
        if plain and inspect.isclass(hint) and not _is_named(hint) and hint not in (*WORDS, type(None)):
            continue  # a tensor, a path: nothing that is written so
        try:
            return check_value(key, value, hint, default)
        except InputError as error:
            errors[hint] = error
    usual = {hint: error for hint, error in errors.items() if hint is not type(None)}
    if not usual:
        return
    literals = [v for hint in usual if typing.get_origin(hint) is typing.Literal for v in typing.get_args(hint)]
    named = isinstance(value, str) or (isinstance(value, Mapping) and "class_path" in value)
    for hint, error in usual.items():
        many = isinstance(value, list) and typing.get_origin(hint) in LISTS
        if many or (named and (_is_named(hint) or typing.get_origin(hint) is Callable)):
            raise error
    if literals and value is not None:
        error = _none_of(key, value, literals)
        if {int, float} & set(usual):
            raise InputError(key, shown(value), f"is no number and {error.problem.removeprefix('is ')}", error.hint)
        raise error
    raise usual[float] if float in usual else list(usual.values())[-1]


def _check_class(key: str, value: Any, kind: type, default: Any, positional: int = 0) -> None:
    """A class path with its settings; ``positional`` as in :func:`check_arguments`."""
    home = next((HOMES[base.__name__] for base in kind.__mro__ if base.__name__ in HOMES), "")
    if isinstance(value, list | int | float | bool):
        path = "false" if value is False else shown(value)  # YAML's word for no
        find_class(key, str(path), kind, home)
        return
    given = {} if isinstance(value, str) else dict(value)
    path = value if isinstance(value, str) else given.pop("class_path", None)
    inner = given.pop("init_args", None)
    given.pop("dict_kwargs", None)
    if isinstance(inner, Mapping):
        given |= inner
    elif inner is not None:
        raise InputError(f"{key}.init_args", shown(inner), "is a group of settings", "write NAME: VALUE below it")
    if path is None:
        found = default if inspect.isclass(default) else type(default) if isinstance(default, kind) else None
        if found is None:
            raise InputError(
                key, "...", f"names no class_path, though it has settings of a {kind.__name__}", _example(kind)
            )
    elif isinstance(path, str):
        found = find_class(key, path, kind, home)
    else:
        raise InputError(f"{key}.class_path", shown(path), "is no class path", _example(kind))
    if found is not None:
        check_arguments(key, found, given, positional)


def _example(hint: Any) -> str:
    """What to write for a type."""
    if inspect.isclass(hint) and (home := HOMES.get(hint.__name__)):
        names = {"cdmem.networks": "UNet", "cdmem.distillation": "ConsistencyDistillation", "cdmem.diffusion": "L2"}
        names |= {"cdmem.training": "DiffusionTeacher", "cdmem.metrics": "AdaptiveExtraction", "torch.optim": "Adam"}
        return f"e.g. {home}.{names.get(home, 'CSVLogger' if 'loggers' in home else 'MemorizationCallback')}"
    return "give a number" if hint in (int, float) else "give it by name" if _is_group(hint) else "give a value"
