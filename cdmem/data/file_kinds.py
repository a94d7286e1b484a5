"""What each file of an image set is, by its name and its first bytes, and which levels of folders are splits."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from cdmem.data.file_trees import Tree, is_hidden

# By suffix, without the dot.
PICTURES = re.compile(r"a?png|jpe?g|jpe|jfif|mpo|webp|bmp|tiff?|gif|p[pgbn]m|avif|j[p2][2k]|qoi")
# Pictures too, in formats that are not read: they may hold programs, or have no form of 8 bits.
UNREAD = re.compile(
    r"hei[cf]|dib|psd|svgz?|ico|icns|tga|pcx|sgi|eps|jxl|exr|hdr|pfm|dds|fits|x[bp]m|[we]mf|cur|xcf|dcm|j2c|jp[xf]"
    r"|raw|dng|cr[23]|nef|arw|orf|rw2|raf"
)
MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"qoif", b"\0\0\0\x0cjP  ")
PICKLED = re.compile(r"data_batch_\d+|test_batch")
IDX = re.compile(r".*idx[34][-.]ubyte(\.gz)?")
TRAIN = re.compile(r"(.*[_.-])?train(ing)?([_.-]?(set|images?|imgs?|data|split|part|[ab]|\d))*")
TEST = re.compile(
    r"(.*[_.-])?(test(ing)?|val(id(ation)?)?|dev|eval(uation)?|held[_-]?out|holdout|t10k)"
    r"([_.-]?(set|images?|imgs?|data|split|part|[ab]|\d))*"
)
BARE = re.compile(r"train(ing)?|test(ing)?|val(id(ation)?)?|dev|eval(uation)?|held[_-]?out|holdout", re.IGNORECASE)


@dataclass
class Kinds:
    """The files of a tree.

    Attributes:
        pictures: to be decoded, sorted.
        containers: files that hold many images, by kind: ``parquet``, ``idx``, ``pickle``.
        unread: pictures that are not read, by reason.
        example: one of these, by reason.
        skipped: all other files, by reason.
    """

    pictures: list[str] = field(default_factory=list)
    containers: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unread: Counter[str] = field(default_factory=Counter)
    example: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    def refuse(self, reason: str, name: str) -> None:
        """Count a picture that is not read."""
        self.unread[reason] += 1
        self.example.setdefault(reason, name)


def sorted_out(tree: Tree) -> Kinds:
    """Every file of a tree in one of the classes of :class:`Kinds`."""
    kinds = Kinds()
    if tree.links:
        kinds.skipped["links to folders within"] = tree.links
    for name in tree.names:
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        if is_hidden(name):
            kinds.skipped["hidden"] += 1
        elif name in tree.odd:
            kinds.refuse("no regular file", name) if PICTURES.fullmatch(suffix[1:]) else kinds.skipped.update(
                ["no regular file"]
            )
        elif PICTURES.fullmatch(suffix[1:]):
            kinds.pictures.append(name)
        elif UNREAD.fullmatch(suffix[1:]):
            kinds.refuse(suffix, name)
        elif suffix == ".parquet":
            kinds.containers["parquet"].append(name)
        elif IDX.fullmatch(path.name):
            kinds.containers["idx"].append(name)
        elif PICKLED.fullmatch(path.name):
            kinds.containers["pickle"].append(name)
        elif _is_picture(tree.head(name)):
            kinds.pictures.append(name)
        else:
            kinds.skipped[suffix or "without a suffix"] += 1
    return kinds


def _is_picture(head: bytes) -> bool:
    return head.startswith(MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def splits(names: Iterable[str]) -> tuple[str, list[str]] | None:
    """The first level of folders that separates training from test images, as (folder, names of its parts).

    A folder ``train`` alone among others may be a class; beside ``test`` or ``val`` it is not.
    """
    children: dict[str, set[str]] = defaultdict(set)
    for name in names:
        parts = name.split("/")
        for depth in range(len(parts) - 1):
            children["/".join(parts[:depth])].add(parts[depth])
    for place, found in sorted(children.items()):
        if _mixed(found) or (place == "" and all(BARE.fullmatch(part) for part in found)):
            return place, sorted(found)
    return None


def mixed_stems(names: Collection[str]) -> list[str]:
    """Names of container files where some are of training and others of test images; else none."""
    stems = {re.sub(r"[-_.]?(\d+-of-\d+|images?[-.]idx[34][-.]ubyte)$", "", _stem(name)) for name in names}
    return sorted(names) if _mixed(stems) else []


def _stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".gz").removesuffix(".parquet")


def _mixed(found: Collection[str]) -> bool:
    low = [name.lower() for name in found]
    return any(map(TRAIN.fullmatch, low)) and any(map(TEST.fullmatch, low))
