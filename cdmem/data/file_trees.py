"""The files of an image set, in a folder or in a zip archive: nothing leaves it, nothing is unpacked to disk."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Protocol

from cdmem.errors import InputError

MAX_MEMBERS = 2_000_000  # ImageNet has 1.3 million
LEADS_OUT = re.compile(r"/|[A-Za-z]:/|(.*/)?\.\.(/|$)")
MAX_RATIO, FREE = 200, 2**26  # pictures are packed already; a small member may be as empty as it likes


class Tree(Protocol):
    """Files below one place.

    Attributes:
        title: of the place, for errors and records.
        names: relative POSIX paths of files, sorted.
        odd: of those, what is no regular file.
        links: links to folders, which are not followed.
    """

    title: str
    names: list[str]
    odd: set[str]
    links: int

    def open(self, name: str) -> Path | BytesIO:
        """The file of a name."""

    def head(self, name: str) -> bytes:
        """Its first 16 bytes."""

    def packed(self, names: Collection[str]) -> int:
        """Bytes that files take where they lie."""


class Folder:
    """A folder and what is below it. Links to its own files are followed; links that lead out are refused.

    Raises:
        InputError: a link out of the folder, or a folder that cannot be listed.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.title, self.links = root, root.name, 0
        self.names, self.odd = [], set[str]()
        inside = root.resolve()
        for place, folders, files in os.walk(root, onerror=self._refuse):
            for entry in [*folders, *files]:
                path = Path(place, entry)
                name = path.relative_to(root).as_posix()
                if path.is_symlink() and not is_hidden(name) and not _stays_inside(path, inside):
                    problem = f"{name} is a link out of the folder"
                    raise InputError("data.path", root, problem, "copy the files into the folder or remove the link")
                if path.is_dir() and not is_hidden(name):
                    self.links += path.is_symlink()
                    continue
                self.names.append(name)  # a hidden folder counts as one
                if not path.is_file():
                    self.odd.add(name)
            folders[:] = [name for name in folders if not is_hidden(name)]
        self.names.sort()

    def _refuse(self, error: OSError) -> None:
        problem = f"a folder cannot be listed ({error.strerror}: {error.filename})"
        raise InputError("data.path", self.root, problem, "make it readable, or move it away")

    def open(self, name: str) -> Path:
        """Where it lies."""
        return self.root / name

    def head(self, name: str) -> bytes:
        """Its first 16 bytes; none of what is no regular file."""
        try:
            if name in self.odd:
                return b""
            with (self.root / name).open("rb") as stream:
                return stream.read(16)
        except OSError:
            return b""

    def packed(self, names: Collection[str]) -> int:
        """Bytes on disk."""
        return sum((self.root / name).stat().st_size for name in names)


class Archive:
    """The members of a zip archive, looked at as a whole before any is read."""

    def __init__(self, file: Path, archive: zipfile.ZipFile) -> None:
        self.title, self.links, self._archive = file.name, 0, archive
        infos = [info for info in archive.infolist() if not info.is_dir()]
        names = [info.filename.replace("\\", "/") for info in infos]
        problem, hint = "", "make the archive anew, of pictures only"
        if len(names) > MAX_MEMBERS:
            problem = f"has more than {MAX_MEMBERS:,} members"
        elif len(set(names)) < len(names):
            problem = "has several members of one name"
        elif sum(info.compress_size for info in infos) > file.stat().st_size:
            problem = "has members that overlap"
        wrong = next((name for name in names if LEADS_OUT.match(name)), None)
        bomb = next((i for i in infos if i.file_size > max(FREE, MAX_RATIO * i.compress_size)), None)
        if wrong is not None:
            problem = f"its member {wrong} would lie outside it"
        elif bomb is not None:
            problem = f"{bomb.filename} would unpack {bomb.compress_size:,} bytes to {bomb.file_size:,}"
        elif any(info.flag_bits & 1 for info in infos):
            problem = "is encrypted"
        if problem:
            raise InputError("data.path", file.name, problem, hint)
        # What a zipped folder adds in front of all.
        top = {name.partition("/")[0] for name in names if not is_hidden(name)}
        only = f"{top.pop()}/" if len(top) == 1 else ""
        only = only if all(name.startswith(only) for name in names if not is_hidden(name)) else ""
        self._infos = {name.removeprefix(only): info for name, info in zip(names, infos)}
        self.names = sorted(self._infos)
        self.odd = {name for name, i in self._infos.items() if stat.S_ISLNK(i.external_attr >> 16)}

    def open(self, name: str) -> BytesIO:
        """Its content in memory."""
        info = self._infos[name]
        with self._archive.open(info) as member:
            return BytesIO(member.read(info.file_size))

    def head(self, name: str) -> bytes:
        """Its first 16 bytes."""
        try:
            with self._archive.open(self._infos[name]) as member:
                return member.read(16)
        except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError):
            return b""

    def packed(self, names: Collection[str]) -> int:
        """Bytes in the archive."""
        return sum(self._infos[name].compress_size for name in names)


@contextmanager
def open_archive(file: Path) -> Iterator[Archive]:
    """A zip archive as a tree.

    Raises:
        InputError: no zip archive, or one that no honest program makes.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        problem = f"is no readable zip archive ({type(error).__name__})"
        raise InputError("data.path", file.name, problem, "make it anew") from None
    with archive:
        yield Archive(file, archive)


def is_hidden(name: str) -> bool:
    """Whether a part of a name hides it: ``.thumbnails/a.png``, ``._a.png``, macOS's own folder in archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _stays_inside(link: Path, root: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # broken or circular
        return False
