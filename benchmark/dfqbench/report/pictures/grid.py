"""Grids: many small images as one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

TILE, GAP, TEXT = 64, 4, 14  # side of an image in the grid, gap between two, and height of a line of words, in pixels
COLUMNS = 8
FEWEST_SMOOTH = 16
"""Side in pixels below which enlarged images always keep their pixels: there is nothing to see otherwise."""
LEFT = 78  # width of the words before a row


def class_grid(images: NDArray[np.uint8], words: Sequence[str], *, smooth: bool = False) -> Image:
    """Draw images (N, H, W, 3) in rows of eight, each with lines of words beneath.

    With `smooth`, enlarged images lose the edges of their pixels: a fraction of the bytes as JPEG.
    """
    rows, lines = -(-len(images) // COLUMNS), 1 + max((word.count("\n") for word in words), default=0)
    height = TILE + lines * TEXT + GAP
    canvas = _canvas(COLUMNS * (TILE + GAP) + GAP, rows * height + GAP)
    for at, (image, word) in enumerate(zip(images, words, strict=True)):
        x, y = GAP + at % COLUMNS * (TILE + GAP), GAP + at // COLUMNS * height
        _paste(canvas, image, x, y, smooth=smooth)
        _write(canvas, word, x, y + TILE)
    return canvas


def training_grid(rows: Sequence[tuple[str, NDArray[np.uint8]]], *, smooth: bool = False) -> Image:
    """Draw a row for each point of the training: its words, and the first eight of its images (N, H, W, 3)."""
    canvas = _canvas(LEFT + COLUMNS * (TILE + GAP) + GAP, len(rows) * (TILE + GAP) + GAP)
    for at, (words, images) in enumerate(rows):
        y = GAP + at * (TILE + GAP)
        _write(canvas, words, GAP, y + TILE // 2 - TEXT)
        for column, image in enumerate(images[:COLUMNS]):
            _paste(canvas, image, LEFT + column * (TILE + GAP), y, smooth=smooth)
    return canvas


def encode(image: Image, form: Literal["png", "jpeg"]) -> bytes:
    """Return the file's content; JPEG, for pages that must stay small, without loss of colour resolution."""
    stream = io.BytesIO()
    options = {"quality": 65, "subsampling": 0} if form == "jpeg" else {}
    image.save(stream, form.upper(), optimize=True, **options)
    return stream.getvalue()


def _canvas(width: int, height: int) -> Image:
    from PIL import Image as Module

    return Module.new("RGB", (width, height), "white")


def _paste(canvas: Image, image: NDArray[np.uint8], x: int, y: int, *, smooth: bool) -> None:
    from PIL import Image as Module

    tile = Module.fromarray(image)
    # Small images keep their pixels; large ones are averaged.
    how = Module.Resampling.NEAREST if max(tile.size) <= TILE else Module.Resampling.BOX
    if smooth and FEWEST_SMOOTH <= max(tile.size) <= TILE:
        how = Module.Resampling.BICUBIC
    canvas.paste(tile.resize((TILE, TILE), how), (x, y))


def _write(canvas: Image, text: str, x: int, y: int) -> None:
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    for line, part in enumerate(text.split("\n")):
        draw.text((x, y + line * TEXT), part, fill="#1b1f24", font=font)
