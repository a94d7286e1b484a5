"""What a checkpoint file may hold, looked at before torch reads it: stored tensors and plain values.

``torch.load(weights_only=True)`` is the second gate, not the only one: its unpickler has had holes of its own
(CVE-2025-32434), makes a bytearray of any size that a file asks for, and unpacks compressed parts whole.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

MAGIC = b"PK\x03\x04"
MAX_PICKLE = 64 * 2**20  # the structure without the tensors; a large network with many averages has 1 MB
# What checkpoints of plain values and tensors name. No bytearray: its size is a number in the file.
NAMES = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|parameter)|collections (OrderedDict|Counter|defaultdict)"
    r"|torch (\w+Storage|Size|device|(u?int|float|bfloat|complex)\d+|bool)|torch\.storage UntypedStorage"
    r"|torch\.nn\.parameter Parameter|(__builtin__|builtins) (set|complex|dict)|_codecs encode"
)
# Other ways of naming or making objects than torch.save uses.
OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER"}


def check_archive(file: Path) -> None:
    """Refuse whatever is no archive of ``torch.save`` with tensors and plain values; compare every part's checksum.

    Raises:
        zipfile.BadZipFile: torn, a byte has changed, or no such archive.
        ValueError: its structure names code, or is no pickle.
    """
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise zipfile.BadZipFile("no archive of torch.save")
    with zipfile.ZipFile(file) as parts:
        infos = parts.infolist()
        structure = _structure(infos, file.stat().st_size)
        check_names(parts.read(structure))
        damaged = parts.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} has changed since it was written")


def _structure(infos: list[zipfile.ZipInfo], size: int) -> zipfile.ZipInfo:
    """The part with the pickle, once all parts are known to be as ``torch.save`` writes them."""
    names = [info.filename for info in infos]
    top = {name.partition("/")[0] for name in names}
    if len(top) != 1 or len(set(names)) < len(names) or any({"..", ".", ""} & set(name.split("/")) for name in names):
        raise zipfile.BadZipFile("parts of unusual names")
    if any(info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size for info in infos):
        raise zipfile.BadZipFile("parts are compressed")
    if sum(info.file_size for info in infos) > size:
        raise zipfile.BadZipFile("parts overlap")
    second = {name.split("/")[1] for name in names if "/" in name}
    if second & {"code", "constants.pkl"}:
        raise zipfile.BadZipFile("a TorchScript program")
    pickles = [info for info in infos if info.filename.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
        raise zipfile.BadZipFile("no structure of usual size")
    return pickles[0]


def check_names(content: bytes) -> None:
    """Read a pickle's instructions without following them.

    Raises:
        ValueError: it names something that is no tensor or plain value.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in OPCODES:
            raise ValueError(f"pickled with {opcode.name}, as torch.save does not")
        if opcode.name == "GLOBAL" and not NAMES.fullmatch(str(argument)):
            name = str(argument).replace(" ", ".")[:80]
            raise ValueError(f"names {name}, which is no tensor and no plain value")


def check_tensors(value: Any) -> None:
    """Refuse tensors larger than their storage: a few bytes that claim to be terabytes as soon as they are copied.

    Raises:
        ValueError: there is one, or one that is not a plain array in memory.
    """
    stack, seen = [value], set()
    while stack:
        part = stack.pop()
        if isinstance(part, torch.Tensor):
            if part.layout != torch.strided or part.device.type != "cpu":
                raise ValueError(f"holds a tensor of layout {part.layout} on {part.device}")
            if part.numel() * part.element_size() > part.untyped_storage().nbytes():
                raise ValueError(f"holds a tensor of shape {tuple(part.shape)} over a smaller storage")
        elif isinstance(part, dict | list | tuple | set) and id(part) not in seen:
            seen.add(id(part))
            stack.extend([*part.keys(), *part.values()] if isinstance(part, dict) else part)
