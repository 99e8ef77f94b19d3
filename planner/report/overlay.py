"""Kept patches drawn on the image: which ones each stage of the decoder still computes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from planner.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Side of a drawn picture in pixels, at least: small images are enlarged so that patches can be told apart.
LEAST_SIDE = 336
#: Pixels that a letter takes, with some to spare.
LETTER_WIDTH = 9


def grid_of(tokens: int, thw: Sequence[int] | None = None, merge: int = 1, tile: int = 0) -> tuple[int, int]:
    """Rows and columns in which an image's visual tokens lie.

    Args:
        tokens: visual tokens of the image.
        thw: frames, patch rows and patch columns where the processor tells them (the Qwen-VL family).
        merge: patches per side that make one token there.
        tile: tokens of one tile, for models that cut an image into tiles; 0 for others.

    Raises:
        InputError: the tokens do not form one grid (tiles, row separators), so that patches cannot be placed.
    """
    if thw is not None:
        rows, columns = int(thw[1]) // merge, int(thw[2]) // merge
        if rows * columns != tokens:
            raise InputError(
                f"the image's {tokens} visual tokens are not the {rows} x {columns} the processor tells of",
                "Leave out --overlay for this model",
            )
        return rows, columns
    if tile and tokens != tile:
        grids = f"{tokens // tile} grids of {tile}" if tokens % tile == 0 else f"more than one grid of {tile}"
        raise InputError(
            f"the image was cut into tiles: its {tokens} visual tokens are {grids}",
            "Leave out --overlay, or give an image that is not cut",
        )
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise InputError(
            f"the image's {tokens} visual tokens do not form one square grid", "Leave out --overlay for this model"
        )
    return side, side


def draw_overlay(image: Image, grid: tuple[int, int], kept: Collection[int]) -> Image:
    """The image with every patch that is not kept faded, and the kept ones framed.

    Args:
        image: the picture as given; it is drawn stretched over the grid, as processors that resize to a square see it.
        grid: rows and columns of patches.
        kept: indices of kept tokens, row by row.
    """
    from PIL import ImageDraw

    scale = max(1, math.ceil(LEAST_SIDE / min(image.size)))
    canvas = image.convert("RGB").resize((image.width * scale, image.height * scale), resample=0)
    faded = canvas.point(lambda value: 255 - (255 - value) // 5)
    draw = ImageDraw.Draw(faded)
    rows, columns = grid
    for index in sorted(kept):
        row, column = divmod(index, columns)
        box = (
            round(column * canvas.width / columns),
            round(row * canvas.height / rows),
            round((column + 1) * canvas.width / columns),
            round((row + 1) * canvas.height / rows),
        )
        faded.paste(canvas.crop(box), box[:2])
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=(213, 94, 0), width=max(1, scale // 2))
    return faded


def side_by_side(pictures: Sequence[tuple[str, Image]], lines: Sequence[str] = ()) -> Image:
    """Titled pictures in one row, under lines of text, which are folded to its width."""
    from PIL import Image as PIL
    from PIL import ImageDraw

    margin, title = 12, 22
    width = sum(picture.width for _, picture in pictures) + margin * (len(pictures) + 1)
    folded = [part for line in lines for part in wrap(line, (width - 2 * margin) // LETTER_WIDTH)]
    top = margin // 2 + title * len(folded)
    height = top + title + max(picture.height for _, picture in pictures) + margin
    sheet = PIL.new("RGB", (width, height), "white")
    draw, left = ImageDraw.Draw(sheet), margin
    for number, line in enumerate(folded):
        draw.text((margin, margin // 2 + title * number), line, fill="black", font_size=15)
    for text, picture in pictures:
        draw.text((left, top), text, fill="black", font_size=15)
        sheet.paste(picture, (left, top + title))
        left += picture.width + margin
    return sheet
