"""Inception pool features as clean-fid computes them (Parmar et al. 2022): the only features whose distance is a FID.

Images are resized to 299 x 299 by clean-fid's own "clean" resizer (PIL bicubic, each channel in float, not rounded
afterwards) and go through the TorchScript translation of the TensorFlow network of Heusel et al. 2017.
"""

from __future__ import annotations

import io
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cdmem.errors import InputError
from cdmem.io.download import fetch
from cdmem.metrics.quality.weights import checked_bytes, named_file

FILE = "inception-2015-12-05.pt"
# Of the file at clean-fid's address (95 607 719 bytes), as k-diffusion's evaluation code pins it. clean-fid pins none.
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
VARIABLE = "CDMEM_INCEPTION"
FEATURES = 2048
WAIT = 600.0  # seconds that other processes give rank zero's download
KEY = "inception.weights"
OTHER = f"remove it and use the official {FILE}"


def hub_file() -> Path:
    """Where a download goes: the checkpoint folder of torch.hub."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE


def find_weights(weights: str | None = None) -> Path | None:
    """The given path, else the environment variable, else clean-fid's or torch.hub's copy, else None.

    Raises:
        InputError: the path or the variable names no file.
    """
    given = named_file(KEY, weights, VARIABLE, f"name {FILE}, or leave it out")
    if given is not None:
        return given
    # clean-fid keeps it in the working directory on Windows and in /tmp elsewhere.
    cleanfid = Path("." if platform.system() == "Windows" else "/tmp") / FILE
    return next((path for path in (hub_file(), cleanfid) if path.is_file()), None)


def process_rank() -> int:
    """This process among all, also before the process group exists (extractors are built before training starts)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def fetch_weights(sha256: str = SHA256, wait: float = WAIT) -> Path:
    """Download on rank zero; the others wait for the file, which appears whole and checked or not at all.

    Waiting for the file rather than on a barrier: it also works before the process group exists, and cannot hang.

    Args:
        sha256: what the file must have.
        wait: seconds.

    Raises:
        InputError: no connection, other content, or no file in time.
    """
    target = hub_file()
    if process_rank() == 0:
        _download(target, sha256)
        return target
    deadline = time.monotonic() + wait
    while not target.is_file():
        if time.monotonic() > deadline:
            problem = f"rank zero's download did not appear within {wait:g} s"
            raise InputError(KEY, target, problem, f"share the folder between nodes, or set {VARIABLE} on each")
        time.sleep(min(1.0, wait / 10))
    return target


def _download(target: Path, sha256: str) -> None:
    from cleanfid.downloads_helper import inception_url

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}.part")
    try:
        fetch(inception_url, part, FILE)
        checked_bytes(KEY, part, sha256, OTHER)
        part.replace(target)
    except OSError as error:
        hint = f"fetch it elsewhere and set {VARIABLE} to it"
        raise InputError(KEY, inception_url, f"download failed ({error})", hint) from error
    finally:
        part.unlink(missing_ok=True)


class InceptionFeatures(nn.Module):
    """2048 pool features of Inception-v3 with clean-fid's resizing, on which the Frechet distance is the FID.

    Args:
        weights: the TorchScript file; by default that of ``CDMEM_INCEPTION``, torch.hub or clean-fid.
        download: fetch the file where it is missing (96 MB, on rank zero only).
        sha256: of the file; the default is that of the official one as k-diffusion pins it.

    Raises:
        InputError: no file and no download, a failed download, or a file with another digest.
    """

    name = "inception"
    channels = 3

    def __init__(self, weights: str | None = None, download: bool = False, sha256: str = SHA256) -> None:
        super().__init__()
        from cleanfid.resize import build_resizer

        path = find_weights(weights)
        if path is None and not download:
            hint = f"give the path of {FILE}, set {VARIABLE} to it, or set download: true"
            raise InputError(KEY, None, "the network is not on this machine", hint)
        content = checked_bytes(KEY, path or fetch_weights(sha256), sha256, OTHER)
        self.network = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
        self.digest = sha256
        self._resize = build_resizer("clean")

    def resized(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 3, 299, 299) in 0..255, on the CPU."""
        pictures = [self._resize(image) for image in images.cpu().permute(0, 2, 3, 1).numpy()]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 2048)."""
        x = (self.resized(images).to(images.device) - 128) / 128
        return self.network.layers.forward(x).reshape(len(images), FEATURES)
