"""Files that survive a crash: written beside their place, synced, renamed; folders that one process owns at a time."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cdmem.errors import InputError

LOCK = ".lock"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # Some file systems cannot sync a folder; a file that cannot be synced must not pass for safe.
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``target`` when the block ends: readers see the old file or the whole new one.

    The name is always the same, so that what a killed process left is overwritten and never piles up.
    """
    temporary = target.with_name(f".{target.stem}.part{target.suffix}")
    for name in (target, temporary):
        if name.is_dir() and not name.is_symlink():
            raise InputError("file", name, "is a folder where a file is to be written", "move it away")
    # A link of that name would be written through.
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def add_name(source: Path, name: Path) -> None:
    """Give a whole file a second name, atomically; its bytes are copied only where there are no hard links."""
    temporary = name.with_name(f".{name.stem}.part{name.suffix}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
        sync(temporary)
    os.replace(temporary, name)


def keep_inside(folder: Path, target: Path) -> Path:
    """The same target, proven to lie in its run folder: a folder from elsewhere may hold links to the user's files.

    Raises:
        InputError: the target, or a folder on the way to it, is a link that leads out, or the target is a link.
    """
    if target.is_symlink() or not target.parent.resolve().is_relative_to(folder.resolve()):
        hint = "remove the link; to keep runs elsewhere, make the whole run folder a link"
        raise InputError("run_dir", target, "is a link, or lies behind one that leaves the run folder", hint)
    return target


@contextmanager
def owned(folder: Path, by: bool = True) -> Iterator[None]:
    """Be the folder's only writer (``flock``: given back whatever ends the process); nothing happens without ``by``.

    Raises:
        InputError: another process has it, or an entry of it is a link that leaves it.
    """
    if by and folder.is_dir():
        for entry in folder.iterdir():
            if entry.is_symlink():
                keep_inside(folder, entry / "x")
    made = [place for place in (folder, *folder.parents) if by and not place.exists()]
    handle = _lock(folder) if by else None
    try:
        yield
    finally:
        if made and [file.name for file in folder.iterdir()] == [LOCK]:  # refused: leave no trace
            (folder / LOCK).unlink()
            for place in made:
                place.rmdir()
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise InputError("run_dir", folder, f"cannot be written ({error.strerror})", "choose another") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        who = os.read(handle, 100).decode(errors="replace").strip()
        os.close(handle)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            hint = "wait for it, stop it, or give another --run_dir"
            raise InputError("run_dir", folder, f"is in use by another process ({who})", hint) from None
        return None  # a file system without locks
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.write(handle, f"pid {os.getpid()} on {os.uname().nodename}\n".encode())
    return handle
