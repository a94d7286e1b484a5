"""Files of other projects that hold a model, recognised by their content and never opened: what they are, what to do.

A pickle's instructions are read, not followed; see :mod:`cdmem.io.torch_archive`.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path

from cdmem.errors import InputError

HEAD = 2**22  # bytes of a pickle that are looked at; names come before tensors
PICKLE = b"\x80"
ARCHIVE = b"PK\x03\x04"
SEE = "see docs/export.md, Files of other projects"
OPENAI = {"time_embed.0.weight", "input_blocks.0.0.weight"}
UNET2D = {"conv_in.weight", "time_embedding.linear_1.weight"}
CONSISTENCY = ("cd_", "ct_")


def refuse_other_project(path: str | Path, key: str) -> None:
    """Raises InputError for a file that is the model of another project, with the way to convert it.

    Args:
        path: any file or folder; whatever is not recognised passes.
        key: the setting that names it.
    """
    file = Path(path)
    words = set(_words(file)) if file.is_file() else set()
    if not words:
        return
    if any("torch_utils.persistence" in w for w in words):
        networks = sorted(w for w in words if w.endswith(("Precond", "Net")) and len(w) < 40)
        about = f"is a pickle of NVlabs' EDM ({', '.join(networks[:2]) or 'a network'}), which runs its own code"
        images = "for an audit give the folder of its generate.py --outdir"
        raise InputError(key, path, about, f"{images}; for a teacher write unet/ and scheduler/: {SEE}")
    if words >= OPENAI:
        about = "is a state dict of OpenAI's guided-diffusion or consistency_models"
        if key.endswith("teacher") or not file.name.startswith(CONSISTENCY):
            hint = "for an audit give the .npz that its image_sample.py writes"
        else:
            hint = f"diffusers' scripts/convert_consistency_to_diffusers.py --unet_path {file.name} --dump_path FOLDER"
        raise InputError(key, path, about, f"{hint}; {SEE}")
    if words >= UNET2D:
        hint = f"save it in diffusers with safe_serialization=True as a folder with config.json; {SEE}"
        raise InputError(key, path, "is a pickled state dict of a diffusers UNet2DModel", hint)
    if "cdmem" not in words and {"state_dict", "pytorch-lightning_version"} <= words:
        raise InputError(key, path, "is a Lightning checkpoint of another program", f"write a diffusers folder; {SEE}")
    if file.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin") and "cdmem" not in words:
        raise InputError(key, path, "is a pickle of another program, and may run code", f"write a folder; {SEE}")


def _words(file: Path) -> Iterator[str]:
    """Texts and names in the pickles of a file, or of an archive of ``torch.save``."""
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD)
        if head.startswith(ARCHIVE):
            with zipfile.ZipFile(file) as parts:
                names = [i for i in parts.infolist() if i.filename.endswith("data.pkl")]
                head = parts.open(names[0]).read(HEAD) if names else b""
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return
    while head.startswith(PICKLE):  # the older format has several, one after the other
        end = 0
        try:
            for _, argument, place in pickletools.genops(head):
                if isinstance(argument, str):
                    yield from (argument, *argument.split(" "))
                end = (place or 0) + 1
        except Exception:  # cut off, or no pickle any more
            return
        head = head[end:]
