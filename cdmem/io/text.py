"""Text files of somebody else, as plain values: nothing endless is read, and nothing grows when it is parsed."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cdmem.errors import InputError

LIMIT = 2**20  # bytes of a config or record without long lists
MAX_NODES = 200_000  # of a YAML text with every alias written out


def read_text(file: Path, limit: int = LIMIT) -> str:
    """The content of a small regular file; a pipe or device would be read for ever.

    Raises:
        OSError: missing or unreadable.
        ValueError: larger than ``limit`` bytes, not UTF-8, or no regular file.
    """
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("is no regular file")
    if about.st_size > limit:
        raise ValueError(f"is larger than {limit:,} bytes")
    with file.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:  # files below /proc have no size
        raise ValueError(f"is larger than {limit:,} bytes")
    return content.decode("utf-8")


def parse_json(text: str) -> Any:
    """JSON as plain types.

    Raises:
        ValueError: no JSON, nested deeper than Python can follow, or a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """YAML as plain types.

    ``yaml.safe_load`` builds no objects, but a merge key copies what an alias names, and whoever walks the result or
    writes it out follows every alias: nine lines become gigabytes.

    Raises:
        ValueError: no YAML, foreign tags, nested too deeply, within itself, or too large once aliases are written out.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _expanded(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(f"is no plain YAML: {yaml_mistake(error, text)}") from None
    except (RecursionError, TypeError, AttributeError) as error:  # the last two: odd keys and merge keys
        raise ValueError(f"is no plain YAML ({type(error).__name__})") from None


def parse_settings(text: str, lists: bool = False) -> Any:
    """A mapping from the YAML text of a config; with ``lists`` also a list, as files of callbacks hold.

    Raises:
        ValueError: as :func:`parse_yaml`; no mapping, or a key that is there twice, of which one would be ignored.
    """
    content = parse_yaml(text)
    if not isinstance(content, dict | list if lists else dict):
        raise ValueError("is empty" if content is None else "is no mapping: write SETTING: VALUE, with a colon")
    _refuse_twice(yaml.compose(text, yaml.SafeLoader))
    return content


def _refuse_twice(node: yaml.Node) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item)
    seen: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        line = key.start_mark.line + 1
        if key.value in seen and key.value != "<<" and isinstance(key, yaml.ScalarNode):
            raise ValueError(f"line {line}: {key.value} is there twice, on line {seen[key.value]} first")
        if isinstance(key, yaml.ScalarNode):
            seen[key.value] = line
        _refuse_twice(value)


def yaml_mistake(error: yaml.YAMLError, text: str = "") -> str:
    """What is wrong with a YAML text and in which line, without the parser's own words where they mislead."""
    mark = getattr(error, "problem_mark", None)
    said = " ".join(str(getattr(error, "problem", None) or error).split())[:100]
    if mark is None:
        return said
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        said = "a tab; YAML is indented with spaces"
    elif "mapping values are not allowed" in said:
        said = "a colon is missing in the line before, or this one is indented too far"
    elif "could not find expected ':'" in said:
        said = "a colon is missing"
    elif "unexpected end of stream" in said:
        start = getattr(error, "context_mark", None)
        said = "a quote or bracket is not closed" + (f" (opened in line {start.line + 1})" if start else "")
    return f"line {mark.line + 1}: {said}"


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Nodes below and including one, aliases written out; ``sizes`` holds those known, 0 while one is looked at."""
    known = sizes.get(id(node))
    if known is not None:
        if known == 0:
            raise ValueError("contains itself")
        return known
    sizes[id(node)] = 0
    total = 1
    if isinstance(node, yaml.MappingNode):
        total += sum(_expanded(key, sizes) + _expanded(value, sizes) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_expanded(value, sizes) for value in node.value)
    if total > MAX_NODES:
        raise ValueError(f"has more than {MAX_NODES:,} parts once its aliases are written out")
    sizes[id(node)] = total
    return total


def read_json(file: Path, key: str, hint: str = "give a diffusers folder", limit: int = LIMIT) -> dict[str, Any]:
    """A mapping from a small JSON file.

    Raises:
        InputError: missing, larger than ``limit`` bytes, torn, or no mapping.
    """
    return _mapping(file, key, hint, lambda: parse_json(read_text(file, limit)))


def read_yaml(file: Path, key: str, hint: str) -> dict[str, Any]:
    """A mapping from a small YAML file; raises as :func:`read_json`."""
    return _mapping(file, key, hint, lambda: parse_settings(read_text(file)))


def _mapping(file: Path, key: str, hint: str, read: Callable[[], Any]) -> dict[str, Any]:
    try:
        content = read()
        if not isinstance(content, dict):
            raise ValueError("is no mapping")
        return content
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise InputError(key, file, problem, hint) from None
