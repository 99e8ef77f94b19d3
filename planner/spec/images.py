"""From an image's size in pixels to the tiles a vision tower runs on and the visual tokens a decoder gets.

Each rule follows the family's processor in transformers, with that processor's default limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from planner.errors import InputError, UnsupportedModelError
from planner.spec.facts import ImageRule, ModelSpec

#: Sides beyond this many pixels are a mistake.
LARGEST_SIDE = 1 << 20
#: Processors that keep an image's aspect ratio refuse worse ones than this.
WORST_ASPECT = 200


class Grid(NamedTuple):
    """Visual tokens that lie side by side in a picture, row after row.

    Attributes:
        rows, columns: of tokens.
        frames: grids of a video that follow one another in time.
        breaks: every row ends with a token that stands for no place (the newline of unpadded tiles).
    """

    rows: int
    columns: int
    frames: int = 1
    breaks: bool = False

    @property
    def tokens(self) -> int:
        """All of its tokens, row breaks included."""
        return self.frames * self.rows * (self.columns + self.breaks)

    @property
    def places(self) -> int:
        """Tokens that stand for a place in the picture."""
        return self.frames * self.rows * self.columns

    @property
    def still(self) -> bool:
        """Whether it is of one frame."""
        return self.frames == 1


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image as a model sees it.

    Attributes:
        tiles: rows and columns of patches of each tile.
        visual_tokens: tokens that stand for the image in the decoder, row breaks of unpadded tiles included.
        grids: how they lie, in prompt order: of each tile, or of what tiles are put together to; empty where they lie
            in no grid, or are only assumed.
    """

    tiles: tuple[tuple[int, int], ...]
    visual_tokens: int
    grids: tuple[Grid, ...] = ()


def encode(spec: ModelSpec, width: int, height: int) -> Encoded:
    """One image of a given size.

    Raises:
        InputError: a size of zero, below zero or beyond reason, or an aspect ratio the processor refuses.
        UnsupportedModelError: the model does not see.
    """
    if spec.images is None:
        raise UnsupportedModelError(f"'{spec.family}' is a text model and takes no image", "Leave the image out")
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        raise InputError(
            f"an image of {width} x {height} pixels makes no sense", f"Sides are 1 to {LARGEST_SIDE} pixels"
        )
    return RULES[spec.images.kind](spec.images, width, height)


def assumed(spec: ModelSpec, visual_tokens: int) -> Encoded:
    """The tiles that so many visual tokens come from when no image size is given: whole tiles, or one nearly square
    image."""
    rule = spec.images
    if rule is None or not visual_tokens:
        return Encoded((), 0)
    if rule.tile_tokens:
        tiles = -(-visual_tokens // rule.tile_tokens)
        return Encoded((_tile(rule),) * tiles, visual_tokens)
    rows = next(side for side in range(math.isqrt(visual_tokens), 0, -1) if visual_tokens % side == 0)
    return Encoded(((rows * rule.merge, visual_tokens // rows * rule.merge),), visual_tokens)


def _tile(rule: ImageRule) -> tuple[int, int]:
    return rule.side // rule.patch, rule.side // rule.patch


def tile_grid(rule: ImageRule) -> tuple[Grid, ...]:
    """The grid of a tile's visual tokens; none where they make no square (a class token among them, say)."""
    side = math.isqrt(rule.tile_tokens)
    return (Grid(side, side),) if side and side * side == rule.tile_tokens else ()


def _tiled(rule: ImageRule, count: int) -> Encoded:
    return Encoded((_tile(rule),) * count, rule.tile_tokens * count, tile_grid(rule) * count)


def _fixed(rule: ImageRule, width: int, height: int) -> Encoded:
    return _tiled(rule, 1)


def _grid(rule: ImageRule, width: int, height: int) -> Encoded:
    """mllama fills up to its full number of tiles, and the empty ones run too."""
    return _tiled(rule, rule.max_tiles)


def _anyres(rule: ImageRule, width: int, height: int) -> Encoded:
    """The resolution that keeps most pixels and wastes least; its tiles and a base view; padding rows or columns
    leave again."""
    best, kept, wasted = rule.resolutions[0], 0, math.inf
    for rows, columns in rule.resolutions:
        scale = min(columns / width, rows / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        if (effective, -(rows * columns - effective)) > (kept, -wasted):
            best, kept, wasted = (rows, columns), effective, rows * columns - effective
    across, down = best[1] // rule.side, best[0] // rule.side
    patches = rule.side // rule.patch
    rows, columns = down * patches, across * patches
    if width / height > columns / rows:
        margin = (rows - int(round(height * (columns / width), 7))) // 2
        rows -= 2 * margin
    else:
        margin = (columns - int(round(width * (rows / height), 7))) // 2
        columns -= 2 * margin
    if rule.limit:
        excess = math.sqrt(rows * columns / (rule.limit * patches**2))
        if excess > 1.1:
            rows, columns = int(rows // excess), int(columns // excess)
    # One newline a row.
    base, whole = tile_grid(rule), Grid(rows, columns, breaks=True)
    tokens = rule.tile_tokens + whole.tokens
    return Encoded((_tile(rule),) * (1 + across * down), tokens, (*base, whole) if base else ())


def _resize(rule: ImageRule, width: int, height: int) -> Encoded:
    """Sides in multiples of a factor, the area within limits (times the frames that a still image is repeated to)."""
    factor, frames = rule.side, rule.frames
    if frames > 1 and min(width, height) < factor:
        scale = max(factor / height, factor / width)
        width, height = int(width * scale), int(height * scale)
    if max(width, height) > WORST_ASPECT * min(width, height):
        raise InputError(f"an image of {width} x {height} pixels is narrower than 1:{WORST_ASPECT}", "Crop or pad it")
    rows, columns = round(height / factor), round(width / factor)
    area = frames * rows * columns * factor * factor
    if area > rule.max_pixels:
        shrink = math.sqrt(frames * height * width / rule.max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif area < rule.min_pixels:
        grow = math.sqrt(rule.min_pixels / (frames * height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return _merged(rule, rows, columns)


def _merged(rule: ImageRule, rows: int, columns: int) -> Encoded:
    return Encoded(((rows * rule.merge, columns * rule.merge),), rows * columns, (Grid(rows, columns),))


def _shrink(rule: ImageRule, width: int, height: int) -> Encoded:
    ratio = max(width, height) / rule.longest_edge
    if ratio > 1:
        width, height = math.floor(width / ratio), math.floor(height / ratio)
    if not (width and height):
        raise InputError("an image this narrow has no pixels left once it is shrunk", "Crop or pad it")
    return _merged(rule, -(-height // rule.side), -(-width // rule.side))


def _grids(most: int) -> list[tuple[int, int]]:
    """Columns and rows of every grid of at most `most` tiles, fewest tiles first."""
    pairs = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most + 1) if columns * rows <= most]
    return sorted(pairs, key=lambda pair: pair[0] * pair[1])


def _aspect(rule: ImageRule, width: int, height: int) -> Encoded:
    """The grid nearest in aspect ratio; of equal ones the larger, unless it is more than twice the image's area."""
    best, nearest = (1, 1), math.inf
    for columns, rows in _grids(rule.max_tiles):
        difference = abs(width / height - columns / rows)
        roomy = width * height > 0.5 * rule.side * rule.side * columns * rows
        if difference < nearest or (difference == nearest and roomy):
            best, nearest = (columns, rows), difference
    return _with_thumbnail(rule, best[0] * best[1])


def _fit(rule: ImageRule, width: int, height: int) -> Encoded:
    """The grid that enlarges the image least, or if all shrink it, shrinks it least."""
    scales = [
        (min(columns * rule.side / width, rows * rule.side / height), columns * rows)
        for columns, rows in _grids(rule.max_tiles)
    ]
    enlarging = [pair for pair in scales if pair[0] >= 1]
    _, tiles = min(enlarging) if enlarging else max(scales, key=lambda pair: (pair[0], -pair[1]))
    return _with_thumbnail(rule, tiles)


def _split(rule: ImageRule, width: int, height: int) -> Encoded:
    """Scaled to the longest edge, then up to whole tiles."""
    side, aspect = rule.side, width / height
    if width >= height:
        width, height = rule.longest_edge, _even(int(rule.longest_edge / aspect))
        width = -(-width // side) * side
        height = -(-int(width / (rule.longest_edge / max(height, 1))) // side) * side
    else:
        width, height = _even(int(rule.longest_edge * aspect)), rule.longest_edge
        height = -(-height // side) * side
        width = -(-int(height * (max(width, 1) / rule.longest_edge)) // side) * side
    tiles = (width // side) * (height // side) if max(width, height) > side else 1
    return _with_thumbnail(rule, tiles)


def _even(length: int) -> int:
    return length + length % 2


def _with_thumbnail(rule: ImageRule, tiles: int) -> Encoded:
    """Tiles of an image, and the whole of it once more where there are several."""
    return _tiled(rule, tiles + 1 if tiles > 1 else 1)


RULES: dict[str, Callable[[ImageRule, int, int], Encoded]] = {
    "fixed": _fixed,
    "anyres": _anyres,
    "resize": _resize,
    "shrink": _shrink,
    "aspect": _aspect,
    "fit": _fit,
    "split": _split,
    "grid": _grid,
}
