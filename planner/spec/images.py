"""From an image's size in pixels to the tiles a vision tower runs on and the visual tokens a decoder gets.

Each rule follows the family's processor in transformers. Its limits are those of `preprocessor_config.json` where that
lies beside the configuration (`planner.spec.processor`), else those of the family's checkpoints on the hub.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from planner.errors import InputError, UnsupportedModelError
from planner.spec.encoded import LONE, Encoded, Grid
from planner.spec.facts import ImageRule, ModelSpec

#: Sides beyond this many pixels are a mistake.
LARGEST_SIDE = 1 << 20
#: Processors that keep an image's aspect ratio refuse worse ones than this.
WORST_ASPECT = 200


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
    from planner.spec.fitting import FITTING
    from planner.spec.views import VIEWS

    return {**RULES, **FITTING, **VIEWS}[spec.images.kind](spec.images, width, height)


def encode_all(spec: ModelSpec, sizes: Sequence[tuple[int, int]]) -> list[Encoded]:
    """The images of one request, by width and height.

    Raises:
        InputError, UnsupportedModelError: as `encode`.
    """
    images, rule = [encode(spec, width, height) for width, height in sizes], spec.images
    if rule is None or not rule.alone or len(images) < 2:
        return images
    return [Encoded((_tile(rule),), rule.tile_tokens + 1, (*tile_grid(rule), LONE))] * len(images)


def mark_tokens(spec: ModelSpec, image: Encoded) -> int:
    """Text tokens that the processor puts around and among an image's visual tokens."""
    if spec.images is None:
        return 0
    marks, (rows, columns) = spec.images.marks, image.cut
    token_rows = image.rows or image.tiles[0][0] // spec.images.merge
    cut = (marks.tile * columns + marks.tile_row) * rows if rows * columns > 1 else 0
    cut += marks.between_rows * (rows - 1)
    return marks.before + marks.after + marks.row * token_rows + cut


def assumed(spec: ModelSpec, visual_tokens: int) -> Encoded:
    """The tiles that so many visual tokens come from when no image size is given: whole tiles, or one nearly square
    image."""
    rule = spec.images
    if rule is None or not visual_tokens:
        return Encoded((), 0)
    if rule.tile_tokens:
        tiles = -(-visual_tokens // rule.tile_tokens)
        return Encoded((_tile(rule),) * tiles, visual_tokens)
    ends, breaks = (2, 1) if rule.kind == "lined" else (0, 0)
    inside = visual_tokens - ends
    rows = next(side for side in range(math.isqrt(inside), 0, -1) if inside % side == 0)
    columns = inside // rows - breaks
    return Encoded(((rows * rule.merge, columns * rule.merge),), visual_tokens)


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


def best_resolution(rule: ImageRule, width: int, height: int) -> tuple[int, int]:
    """Rows and columns in pixels of the resolution that keeps most pixels and wastes least."""
    best, kept, wasted = rule.resolutions[0], 0, math.inf
    for rows, columns in rule.resolutions:
        scale = min(columns / width, rows / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        if (effective, -(rows * columns - effective)) > (kept, -wasted):
            best, kept, wasted = (rows, columns), effective, rows * columns - effective
    return best


def _anyres(rule: ImageRule, width: int, height: int) -> Encoded:
    """Tiles of the best resolution and a base view; padding rows or columns leave again."""
    best = best_resolution(rule, width, height)
    across, down = best[1] // rule.side, best[0] // rule.side
    patches = math.isqrt(rule.tile_tokens)
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
    return resized(rule, width, height, rule.frames, rule.frames)


def resized(rule: ImageRule, width: int, height: int, frames: int, counted: int) -> Encoded:
    """Sides in multiples of a factor, the volume within limits.

    Args:
        frames: of a video, or that a still image is repeated to.
        counted: the same in whole steps of the tower, as the limits count them.
    """
    factor = rule.patch * rule.merge
    if frames > 1 and min(width, height) < factor:
        scale = max(factor / height, factor / width)
        width, height = int(width * scale), int(height * scale)
    if max(width, height) > WORST_ASPECT * min(width, height):
        raise InputError(f"an image of {width} x {height} pixels is narrower than 1:{WORST_ASPECT}", "Crop or pad it")
    rows, columns = round(height / factor), round(width / factor)
    area = counted * rows * columns * factor * factor
    if area > rule.max_pixels:
        shrink = math.sqrt(frames * height * width / rule.max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif area < rule.min_pixels:
        grow = math.sqrt(rule.min_pixels / (frames * height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return _merged(rule, rows, columns)


def _merged(rule: ImageRule, rows: int, columns: int) -> Encoded:
    grids = lined(Grid(rows, columns)) if rule.kind == "lined" else (Grid(rows, columns),)
    return Encoded(((rows * rule.merge, columns * rule.merge),), sum(grid.tokens for grid in grids), grids)


def lined(grid: Grid) -> tuple[Grid, ...]:
    """A grid with a token behind every row, and one at either end."""
    return LONE, grid._replace(breaks=True), LONE


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
    return _with_thumbnail(rule, *nearest_cut(rule, width, height))


def nearest_cut(rule: ImageRule, width: int, height: int, least: int = 1) -> tuple[int, int]:
    """Rows and columns of `least` or more tiles, nearest in aspect ratio; of equal ones the larger, unless it is more
    than twice the image's area."""
    best, nearest = (1, 1), math.inf
    for columns, rows in _grids(rule.max_tiles):
        if columns * rows < least:
            continue
        difference = abs(width / height - columns / rows)
        roomy = width * height > 0.5 * rule.side * rule.side * columns * rows
        if difference < nearest or (difference == nearest and roomy):
            best, nearest = (rows, columns), difference
    return best


def _fit(rule: ImageRule, width: int, height: int) -> Encoded:
    return _with_thumbnail(rule, *nearest_in_size(rule.max_tiles, rule.side, width, height))


def nearest_in_size(most: int, side: int, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of the grid that enlarges an image least, or if all shrink it, shrinks it least."""
    scales = [
        (min(columns * side / width if width else math.inf, rows * side / height if height else math.inf),
         columns * rows, rows, columns)
        for columns, rows in _grids(most)
    ]  # fmt: skip
    enlarging = [scale for scale in scales if scale[0] >= 1]
    best = min(enlarging) if enlarging else max(scales, key=lambda scale: (scale[0], -scale[1]))
    return best[2], best[3]


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
    if rule.max_tiles == 1 or max(width, height) <= side:
        return _with_thumbnail(rule, 1, 1)
    return _with_thumbnail(rule, height // side, width // side)


def _even(length: int) -> int:
    return length + length % 2


def _with_thumbnail(rule: ImageRule, rows: int, columns: int) -> Encoded:
    """Tiles of an image, and the whole of it once more where there are several."""
    count = rows * columns
    return replace(_tiled(rule, count + 1 if count > 1 else 1), cut=(rows, columns))


RULES: dict[str, Callable[[ImageRule, int, int], Encoded]] = {
    "fixed": _fixed,
    "anyres": _anyres,
    "resize": _resize,
    "lined": _resize,
    "shrink": _shrink,
    "aspect": _aspect,
    "fit": _fit,
    "split": _split,
    "grid": _grid,
}
