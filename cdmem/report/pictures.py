"""Walls of pictures: the same seeds through both models, the most-hit training images, samples nobody chose."""

from __future__ import annotations

from typing import Any

import numpy as np

from cdmem.report.answer import model_label
from cdmem.report.html import esc, picture
from cdmem.report.run_data import RunData

SIDE = 64  # pixels on the page
SEEDS = 10
MOST = 22
TOP = 11


def _scale(images: np.ndarray) -> int:
    return max(1, SIDE // max(images.shape[1:3]))


def _training(run: RunData) -> dict[int, np.ndarray]:
    content = run.load("audit/pictures.npz")
    return {} if not content else dict(zip(content["ids"].tolist(), content["images"]))


def _memorised(rows: dict[str, np.ndarray], threshold: float) -> np.ndarray:
    return rows["squared1"] < threshold**2 * rows["squared2"].astype(np.float64)


def same_seeds(run: RunData) -> str:
    """First seeds of the audit: teacher, students, nearest training image of each; memorised ones framed."""
    threshold, training = float(run.summary["settings"]["threshold"]), _training(run)
    models = [m for m in [run.teacher, *run.students] if m]
    loaded = [(m, run.arrays("samples", m), run.arrays("audit", m)) for m in models]
    loaded = [(m, s, a) for m, s, a in loaded if s and a]
    if not loaded:
        return ""
    count = min(SEEDS, *(len(s["seeds"]) for _, s, _ in loaded))
    columns = []
    for k in range(count):
        cells = []
        for m, samples, rows in loaded:
            hit = bool(_memorised(rows, threshold)[k])
            image = samples["images"][k]
            ratio = float(np.sqrt(rows["squared1"][k] / max(float(rows["squared2"][k]), 1e-300)))
            label = f"{model_label(m)}, seed {int(samples['seeds'][k])}"
            shown = picture(image, label, _scale(samples["images"])).replace('class="px"', f'class="px{" hit" * hit}"')
            near = training.get(int(rows["nearest"][k])) if "nearest" in rows else None
            scale = _scale(samples["images"])
            beside = "" if near is None else picture(near, f"nearest training image of {label}", scale)
            cells.append(f'<div class="triple">{shown}{beside}</div>{ratio:.2f}')
        columns.append(f"<div>seed {int(loaded[0][1]['seeds'][k])}<br>" + "<br>".join(cells) + "</div>")
    order = "; ".join(model_label(m) for m, _, _ in loaded)
    text = (
        f"<p class=soft>The first {count} seeds of the audit, not chosen. From top to bottom: {esc(order)}; each with "
        f"its nearest training image to the right and d1/d2 below; memorised ones are framed.</p>"
    )
    return text + f'<div class="wall">{"".join(columns)}</div>'


def most_hit(run: RunData) -> str:
    """Training images that come back most often, per model."""
    training, walls = _training(run), []
    for m in [run.teacher, *run.students]:
        top = ((m or {}).get("metrics") or {}).get("coverage", {}).get("detail", {}).get("top", [])
        cells = []
        for hit in top[:TOP]:
            image = training.get(int(hit["image"]))
            if image is not None:
                shown = picture(image, f"training image {hit['image']}", _scale(image[None]))
                cells.append(f"<div>{shown}<br>{int(hit['hits'])}</div>")
        if cells:
            walls.append(f'<h3>{esc(model_label(m))}</h3><div class="wall">{"".join(cells)}</div>')
    if not walls:
        return ""
    return "<p class=soft>Memorised samples per training image, most first.</p>" + "".join(walls)


def random_samples(run: RunData) -> str:
    """A wall of each model's samples in seed order after those shown above."""
    walls = []
    for m in [run.teacher, *run.students]:
        content: dict[str, Any] = run.arrays("samples", m) if m else {}
        if content:
            part = slice(SEEDS, SEEDS + MOST)
            images, seeds = content["images"][part], content["seeds"][part]
            if len(images) == 0:
                continue
            cells = "".join(f"<div>{picture(x, f'seed {s}', _scale(images))}</div>" for x, s in zip(images, seeds))
            title = f"{esc(model_label(m))}, seeds {int(seeds[0])} to {int(seeds[-1])}"
            walls.append(f'<h3>{title}</h3><div class="wall">{cells}</div>')
    return "".join(walls)
