"""A file from the network, with its progress."""

from __future__ import annotations

import urllib.request
from http.client import HTTPException
from pathlib import Path

from cdmem.io.progress import progress

CHUNK = 2**20  # bytes


def fetch(url: str, target: Path, what: str) -> None:
    """Write what lies at ``url`` to ``target``; who calls checks what came.

    Raises:
        OSError: no connection, no such address, or no room for the file.
    """
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as answer,
            target.open("wb") as file,
            progress(getattr(answer, "length", None), what) as bar,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    except HTTPException as error:
        raise OSError(f"the answer is no proper HTTP ({type(error).__name__}: {error})") from error
