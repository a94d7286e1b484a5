"""Small pieces of HTML. Every text from outside passes through :func:`esc`."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


def esc(value: object) -> str:
    """Text for HTML bodies and attributes."""
    return html.escape(str(value), quote=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", sortable: bool = True) -> str:
    """A table inside a box that scrolls sideways on a phone. Cells are HTML already (escape them)."""
    cells = "".join(f'<th scope="col">{esc(h)}</th>' for h in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{c}</td>" if k else f'<th scope="row">{c}</th>' for k, c in enumerate(row)) + "</tr>"
        for row in rows
    )
    kind = ' class="sortable"' if sortable else ""
    # Outside the table, whose width may exceed the screen's.
    below = f'<p class="caption">{esc(caption)}</p>' if caption else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>{below}'


def figure(content: str, caption: str, extra: str = "") -> str:
    """A figure with its caption; ``content`` and ``extra`` are HTML."""
    return f"<figure>{content}<figcaption>{esc(caption)}{extra}</figcaption></figure>"


def picture(image: np.ndarray, alt: str, scale: int) -> str:
    """An uint8 image (H, W, C) as an inline PNG, magnified without smoothing.

    Raises:
        ValueError: other numbers than uint8, or a form that is no image's.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
        raise ValueError(f"a picture of {image.dtype} with shape {list(image.shape)}")
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    height, width = image.shape[:2]
    size = f'width="{width * scale}" height="{height * scale}"'
    return f'<img class="px" src="data:image/png;base64,{data}" alt="{esc(alt)}" {size}>'


def percent(estimate: dict | None) -> str:
    """``92.3 %`` with its interval below."""
    if not estimate:
        return "–"
    low, high = (100 * x for x in estimate["ci95"])
    return f'<b>{100 * estimate["value"]:.1f}&nbsp;%</b> <span class="ci">[{low:.1f}, {high:.1f}]</span>'


def number(value: object, digits: int = 3) -> str:
    """Fixed digits, scientific where that would be silly; an en dash for nothing."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–"
    if value and (abs(value) >= 1e5 or abs(value) < 10.0 ** (-digits)):
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def spread(difference: dict | None) -> str:
    """``-64.2 points [-66.3, -62.1]``."""
    if not difference:
        return "–"
    low, high = (100 * x for x in difference["ci95"])
    return f'<b>{100 * difference["value"]:+.1f}</b> <span class="ci">[{low:+.1f}, {high:+.1f}]</span>'


def p_value(p: object) -> str:
    """``2e-16``; never a bare 0."""
    if not isinstance(p, int | float):
        return "–"
    return "&lt; 1e-300" if p < 1e-300 else (f"{p:.1e}" if p < 1e-3 else f"{p:.3f}")
