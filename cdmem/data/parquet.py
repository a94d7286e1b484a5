"""Images in Parquet files as Hugging Face's ``datasets`` writes them: a column of encoded pictures, one of labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdmem.data.counts import counted
from cdmem.data.image_arrays import read_labels
from cdmem.data.pixels import SKIP, ImagePool, PixelOptions, decode
from cdmem.errors import InputError, brief
from cdmem.io.text import parse_json

IMAGES = ("image", "img", "images", "picture")
LABELS = ("label", "labels", "fine_label")
BATCH = 256
MAX_RATIO, FREE = 200, 2**28


def read_parquet(files: Sequence[Path], options: PixelOptions) -> ImagePool:
    """The pictures of one or several shards, in order of their names and rows; labels where a column holds them.

    Raises:
        InputError: pyarrow is missing, no column of pictures, or content that cannot be read.
    """
    try:
        import pyarrow
    except ImportError:
        hint = "pip install 'cdmem[parquet]' (or pip install pyarrow), or give the images as .npz"
        raise InputError("data.path", files[0].name, "reading Parquet needs pyarrow", hint) from None
    files = sorted(files)
    try:
        rows, labels, classes, skipped = _rows(files, options.skip_unreadable)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        reason = brief(error) or type(error).__name__
        problem = f"not readable as Parquet with a column of pictures ({reason})"
        raise InputError("data.path", files[0].name, problem, f"give a shard that datasets wrote, {SKIP}") from None
    names = [f"row {k}" for k in range(len(rows))]
    made = decode(names, lambda name: BytesIO(rows[int(name[4:])]), sum(map(len, rows)), options)
    numbers, digits = read_labels(None if labels is None else np.asarray(labels), len(rows), files[0].name)
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "big") + row)
    kept = torch.tensor(made.kept)
    counts = counted(len(kept), made.formats, made.skipped + skipped, made.notes)
    return ImagePool(
        images=made.images,
        labels=numbers[kept],
        class_names=classes if len(classes) >= len(digits) > 0 else digits,
        indices=kept,
        source="array",
        provenance={"file": [file.name for file in files], "pictures_sha256": digest.hexdigest()} | counts,
    )


def _rows(files: Sequence[Path], spare: bool) -> tuple[list[bytes], list[Any] | None, tuple[str, ...], Counter[str]]:
    """Encoded pictures, labels, class names and columns that were not read; ``spare`` allows pictures among these."""
    import pyarrow.parquet as parquet

    rows: list[bytes] = []
    labels: list[Any] = []
    classes: tuple[str, ...] = ()
    rest: Counter[str] = Counter()
    label: str | None = None
    for k, file in enumerate(files):
        with parquet.ParquetFile(file) as shard:
            schema = shard.schema_arrow
            pictures = sorted(filter(lambda n: _encoded(schema.field(n)), schema.names), key=lambda n: n not in IMAGES)
            if not pictures or (len(pictures) > 1 and not spare):
                raise ValueError(f"pictures in the columns {', '.join(pictures) or 'none'}")
            image = pictures[0]
            here = next((name for name in LABELS if name in schema.names), None)
            if k and here != label:
                raise ValueError(f"{file.name} has other columns than {files[0].name}")
            label, classes = here, _class_names(schema, here)
            columns = [image] if label is None else [image, label]
            rest = Counter({f"column {name}": 1 for name in schema.names if name not in columns})
            _check_size(shard, file)
            for batch in shard.iter_batches(batch_size=BATCH, columns=columns):
                column = batch.column(image)
                column = column.field("bytes") if hasattr(column, "field") else column
                rows += column.to_pylist()
                labels += batch.column(label).to_pylist() if label is not None else []
    if any(row is None for row in rows):
        raise ValueError(f"{sum(row is None for row in rows)} rows name a file instead of holding a picture")
    return rows, labels if label is not None else None, classes, rest


def _encoded(field: Any) -> bool:
    """Whether a column holds encoded pictures: a struct with ``bytes``, or bytes under a usual name."""
    import pyarrow as arrow

    def is_bytes(kind: Any) -> bool:
        return arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)

    if arrow.types.is_struct(field.type):
        return any(part.name == "bytes" and is_bytes(part.type) for part in field.type)
    return is_bytes(field.type) and field.name in IMAGES


def _check_size(shard: Any, file: Path) -> None:
    about, packed = shard.metadata, file.stat().st_size
    groups = (about.row_group(g) for g in range(about.num_row_groups))
    whole = sum(group.total_byte_size for group in groups)
    if whole > max(FREE, MAX_RATIO * packed):
        raise ValueError(f"{packed:,} bytes would unpack to {whole:,}")


def _class_names(schema: Any, label: str | None) -> tuple[str, ...]:
    """Names of the classes in the metadata of ``datasets``; none where it says nothing."""
    with suppress(ValueError, KeyError, TypeError):
        about = parse_json((schema.metadata or {})[b"huggingface"].decode())
        return tuple(str(name)[:80] for name in about["info"]["features"][label]["names"])
    return ()
