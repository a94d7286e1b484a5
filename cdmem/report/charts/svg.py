"""Turns matplotlib's SVG file into an ``<svg>`` that stands inside a page: own ids, page's colours, values on hover."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif'
_FAMILY = re.compile(r"(font(?:-family)?:[^;]*?)'DejaVu Sans'[^;]*")


def inline(document: bytes, name: str, alt: str, colors: dict[str, str], hover: dict[str, list[str]]) -> str:
    """An SVG file as inline element.

    Args:
        document: what matplotlib wrote.
        name: prefix of all ids.
        alt: becomes the title.
        colors: colour in the file -> what a style sheet should see.
        hover: id of a group -> text of each of its points.
    """
    ET.register_namespace("", SVG[1:-1])
    root = ET.fromstring(document)
    for child in [c for c in root if c.tag == f"{SVG}metadata"]:
        root.remove(child)
    # Its rule for every element would reach the rest of the page; the root's style is inherited just as well.
    for defs in list(root.iter(f"{SVG}defs")):
        for rule in [c for c in defs if c.tag == f"{SVG}style"]:
            defs.remove(rule)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"class": "chart", "role": "img", "style": "stroke-linejoin:round;stroke-linecap:butt"}
    for gid, texts in hover.items():
        _titles(root, gid, texts)
    for element in root.iter():
        _rewrite(element, name, colors)
    title = ET.Element(f"{SVG}title")
    title.text = alt
    root.insert(0, title)
    return ET.tostring(root, encoding="unicode")


def _titles(root: ET.Element, gid: str, texts: list[str]) -> None:
    """Put each point of a group into a ``<g class="pt">`` with its text as title."""
    group = next((e for e in root.iter(f"{SVG}g") if e.get("id") == gid), None)
    if group is None:
        return
    hidden = {id(e) for defs in group.iter(f"{SVG}defs") for e in defs.iter()}
    places = [(parent, c) for parent in group.iter() for c in parent if id(c) not in hidden]
    points = [p for p in places if p[1].tag == f"{SVG}use"] or [p for p in places if p[1].tag == f"{SVG}path"]
    if len(points) != len(texts):  # a wrong value on a point is worse than none
        return
    for (parent, point), text in zip(points, texts):
        wrapper = ET.Element(f"{SVG}g", {"class": "pt"})
        ET.SubElement(wrapper, f"{SVG}title").text = text
        parent[list(parent).index(point)] = wrapper
        point.tail = None
        wrapper.append(point)


def _rewrite(element: ET.Element, name: str, colors: dict[str, str]) -> None:
    """Prefix ids and references, exchange colours, let text use the reader's font."""
    for key, value in list(element.attrib.items()):
        new = value
        if key == "id":
            new = f"{name}-{value}"
        elif key in (HREF, "href"):
            # Plain href needs no namespace declaration inside HTML.
            del element.attrib[key]
            key, new = "href", re.sub(r"^#", f"#{name}-", value)
        else:
            new = value.replace("url(#", f"url(#{name}-")
            for color, replacement in colors.items():
                new = new.replace(color, replacement)
            if key == "style":
                new = _FAMILY.sub(lambda m: m.group(1) + FONT, new)
        element.set(key, new)
