"""Walls of pictures: the same seeds through both models, the most-hit training images, samples nobody chose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cdmem.metrics.memorization.ratio import memorized, ratios
from cdmem.report.page import Text, Wall, picture
from cdmem.report.rows import model_label
from cdmem.report.run_data import RunData

SIDE = 64  # pixels on the page
SEEDS = 10
MOST = 22
TOP = 11


def walls(run: RunData) -> Iterator[Text | Wall]:
    """All walls of a run with their headings."""
    for title, parts in (
        ("The same seeds", same_seeds(run)),
        ("Most-hit training images", most_hit(run)),
        ("Samples nobody chose", random_samples(run)),
    ):
        shown = list(parts)
        if shown:
            yield from (Text(title, "heading"), *shown)


def _scale(images: np.ndarray) -> int:
    return max(1, SIDE // max(images.shape[1:3]))


def _training(run: RunData) -> dict[int, np.ndarray]:
    """Training images by number."""
    content = run.load("audit/pictures.npz")
    return dict(zip(content["ids"].tolist(), content["images"])) if content else {}


def same_seeds(run: RunData) -> Iterator[Text | Wall]:
    """First seeds of the audit: teacher, students, nearest training image of each; memorised ones framed."""
    threshold, training = run.threshold, _training(run)
    loaded = [(model_label(m), run.arrays("samples", m), run.arrays("audit", m)) for m in run.main_models]
    loaded = [(label, s, a) for label, s, a in loaded if s and a]
    if not loaded:
        return
    count = min(SEEDS, *(len(s["seeds"]) for _, s, _ in loaded))
    tiles: list[list[Any]] = [[f"seed {int(k)}"] for k in loaded[0][1]["seeds"][:count]]
    for k, tile in enumerate(tiles):
        for label, samples, rows in loaded:
            alt, scale = f"{label}, seed {int(samples['seeds'][k])}", _scale(samples["images"])
            squared = rows["squared1"][k], rows["squared2"][k]
            shown = [picture(samples["images"][k], alt, scale, framed=bool(memorized(*squared, threshold)))]
            near = training.get(int(rows["nearest"][k])) if "nearest" in rows else None
            if near is not None:
                shown.append(picture(near, f"nearest training image of {alt}", scale))
            tile += [shown, f"{ratios(np.array([squared]))[0]:.2f}"]
    order = "; ".join(label for label, _, _ in loaded)
    text = (
        f"The first {count} seeds of the audit, not chosen. From top to bottom: {order}; each with "
        "its nearest training image to the right and d1/d2 below; memorised ones are framed."
    )
    yield from (Text(text, "soft"), Wall(tiles))


def most_hit(run: RunData) -> Iterator[Text | Wall]:
    """Training images that come back most often, per model."""
    training, parts = _training(run), []
    for m in run.main_models:
        top = (m.get("metrics") or {}).get("coverage", {}).get("detail", {}).get("top", [])
        hits = [(int(hit["image"]), int(hit["hits"])) for hit in top[:TOP]]
        shown = [(k, training[k], n) for k, n in hits if k in training]
        tiles = [[[picture(x, f"training image {k}", _scale(x[None]))], str(n)] for k, x, n in shown]
        if tiles:
            parts += [Text(model_label(m), "heading"), Wall(tiles)]
    if parts:
        yield from (Text("Memorised samples per training image, most first.", "soft"), *parts)


def random_samples(run: RunData) -> Iterator[Text | Wall]:
    """Each model's samples in seed order after those shown above."""
    for m in run.main_models:
        content = run.arrays("samples", m)
        if not content or len(content["seeds"]) <= SEEDS:
            continue
        images, seeds = (content[key][SEEDS : SEEDS + MOST] for key in ("images", "seeds"))
        title = f"{model_label(m)}, seeds {int(seeds[0])} to {int(seeds[-1])}"
        tiles = [[[picture(x, f"seed {s}", _scale(images))]] for x, s in zip(images, seeds)]
        yield from (Text(title, "heading"), Wall(tiles))
