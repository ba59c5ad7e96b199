"""Pieces of an HTML page that needs nothing but itself: tables, charts as SVG, pictures as lossless PNG."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import PIL.Image

from latent_obs.frames import Frames


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out rows of cells, the first of each being its heading; wide ones scroll."""
    columns = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>{"".join(f"<td>{text(cell)}</td>" for cell in rest)}</tr>\n'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{columns}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def details(summary: str, body: str) -> str:
    """Fold something away."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def animation(images: Frames) -> bytes:
    """Encode an animated PNG that repeats for ever, 15 images a second."""
    first, *rest = (PIL.Image.fromarray(image) for image in images)
    file = io.BytesIO()
    first.save(file, "PNG", save_all=True, append_images=rest, duration=66, loop=0)
    return file.getvalue()


def strip(rows: Sequence[Frames], alt: str) -> str:
    """Lay rows of images out as one picture, a pixel apart."""
    padded = [np.pad(row, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=128) for row in rows]
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in padded])[:-2, :-2]
    size = f'width="{sheet.shape[1]}" height="{sheet.shape[0]}"'
    return f'<div class="scroll"><img class="pixels" {size} alt="{text(alt)}" src="{picture(sheet)}"></div>'


def picture(image: Frames) -> str:
    """Return an RGB image as the URL of a lossless PNG."""
    done, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done
    return f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode()}"


def bars(rows: Sequence[tuple[str, float, str]], most: float, form: str, label: str) -> str:
    """Draw horizontal bars from 0 to ``most``; a value below 0 has none."""
    parts = []
    for i, (name, value, kind) in enumerate(rows):
        y, wide = i * 26, max(0.0, min(value / most, 1.0)) * 170
        parts.append(
            f'<text class="start" x="0" y="{y + 17}">{text(name)}</text>'
            f'<rect class="track" x="85" y="{y + 4}" width="170" height="18"/>'
            f'<rect class="{kind}" x="85" y="{y + 4}" width="{wide:.1f}" height="18"/>'
            f'<text class="start" x="262" y="{y + 17}">{form.format(value)}</text>'
        )
    size = f'viewBox="0 0 310 {26 * len(rows)}"'
    return f'<svg class="bars" {size} role="img" aria-label="{text(label)}">{"".join(parts)}</svg>'


def section(title: str, lead: str, body: str) -> str:
    """Put a heading and a paragraph before ``body``, which is HTML."""
    return f"<section><h2>{text(title)}</h2>\n<p>{text(lead)}</p>\n{body}\n</section>\n"


def text(value: Any) -> str:
    """Escape a value for HTML."""
    return html.escape(str(value), quote=True)
