"""Ways in which single families fit an image into patches and tiles, each as its processor in transformers does."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

from planner.spec.encoded import Encoded, Grid
from planner.spec.facts import ImageRule


def _navit(rule: ImageRule, width: int, height: int) -> Encoded:
    """Kimi: never enlarged, shrunk to so many patches in all and a side, then filled up to whole tokens."""
    patch, longest = rule.patch, rule.longest_edge * rule.patch
    count = max(1, height // patch) * max(1, width // patch)
    scale = min(1.0, math.sqrt(rule.max_patches / count), longest / height, longest / width)
    rows, columns = (-(-min(max(1, int(side * scale)), longest) // rule.side) for side in (height, width))
    return Encoded(((rows * rule.merge, columns * rule.merge),), rows * columns, (Grid(rows, columns),))


def _boxed(rule: ImageRule, width: int, height: int) -> Encoded:
    """Fuyu: its own size, or shrunk into a box, and filled up to whole patches."""
    scale = min(1.0, rule.longest_edge / width, rule.shortest_edge / height)
    rows, columns = (-(-max(int(side * scale), 1) // rule.patch) for side in (height, width))
    return Encoded(((rows, columns),), rows * columns, (Grid(rows, columns),))


def _budget(rule: ImageRule, width: int, height: int) -> Encoded:
    """Gemma 4: as large as so many patches allow, in whole tokens; the tower runs on all of them, filled up."""
    scale = math.sqrt(rule.max_patches * rule.patch**2 / (height * width))
    rows, columns = math.floor(scale * height / rule.side), math.floor(scale * width / rule.side)
    most = rule.max_patches // rule.merge**2
    if rows == 0:
        rows, columns = 1, min(width // height, most)
    elif columns == 0:
        rows, columns = min(height // width, most), 1
    tokens = rows * columns
    # Pooling leaves the filling out.
    return Encoded(
        ((1, rule.max_patches),),
        tokens,
        (Grid(rows, columns),),
        projected=tokens * rule.merge**2 if rule.merge > 1 else 0,
    )


def _edges(rule: ImageRule, width: int, height: int) -> Encoded:
    """Idefics 2: its own size between a shortest and a longest edge, and so many tokens whatever that is."""
    aspect = width / height
    if width >= height and width > rule.longest_edge:
        width, height = rule.longest_edge, int(rule.longest_edge / aspect)
    elif height > width and height > rule.longest_edge:
        width, height = int(rule.longest_edge * aspect), rule.longest_edge
    rows, columns = (max(side, rule.shortest_edge) // rule.patch for side in (height, width))
    return Encoded(((rows, columns),), rule.tile_tokens)


def _large(rule: ImageRule, width: int, height: int) -> Encoded:
    """LFM2-VL: its own size, or if that is far beyond the limit, two to ten tiles and a thumbnail of that size; every
    one filled up to as many patches."""
    from planner.spec.images import nearest_cut, resized

    factor = rule.patch * rule.merge
    whole = resized(rule, width, height, 1, 1)
    sides = [max(rule.patch, round(side / factor) * factor) for side in (height, width)]
    if rule.max_tiles == 1 or sides[0] * sides[1] <= 2 * rule.max_pixels:
        grid, tiles, tokens = (1, 1), 1, whole.visual_tokens
    else:
        grid = nearest_cut(rule, width, height, least=2)
        tiles = grid[0] * grid[1] + 1
        tokens = (tiles - 1) * rule.tile_tokens + whole.visual_tokens
    return Encoded(((1, rule.max_patches),) * tiles, tokens, cut=grid, projected=tokens * rule.merge**2)


def _slices(rule: ImageRule, width: int, height: int) -> Encoded:
    """MiniCPM-V: the whole image at about one scale, and above that as many slices as its area has scales."""
    grid = _slice_grid(rule, width, height)
    cut = grid != (1, 1)
    tiles = [_scaled(rule, height, width, enlarge=not cut)]
    if cut:
        rows, columns = grid
        tall, wide = (max(round(side / parts), 1) for side, parts in ((height, rows), (width, columns)))
        tiles += [_scaled(rule, tall, wide, enlarge=True)] * (rows * columns)
    if rule.tile_tokens:
        return Encoded(tuple(tiles), rule.tile_tokens * len(tiles), cut=grid)
    tokens = sum(rows * columns for rows, columns in tiles) // rule.merge**2
    grids = tuple(Grid(rows // rule.merge, columns // rule.merge) for rows, columns in tiles)
    return Encoded(tuple(tiles), tokens, grids, grid)


def _slice_grid(rule: ImageRule, width: int, height: int) -> tuple[int, int]:
    most = min(math.ceil(width * height / rule.longest_edge**2), rule.max_tiles)
    if most <= 1:
        return 1, 1
    aspect, best, least = math.log(width / height), (1, 1), math.inf
    for count in range(most - 1, most + 2):
        if count == 1 or count > rule.max_tiles:
            continue
        for rows in (rows for rows in range(1, count + 1) if count % rows == 0):
            error = abs(aspect - math.log(count // rows / rows))
            if error < least or (error == least and rows > best[0]):
                best, least = (rows, count // rows), error
    return best


def _scaled(rule: ImageRule, height: float, width: float, enlarge: bool) -> tuple[int, int]:
    """Rows and columns of patches."""
    if height * width > rule.longest_edge**2 or enlarge:
        aspect = width / height
        height = int(rule.longest_edge / math.sqrt(aspect))
        width = int(height * aspect)
    rows, columns = (max(round(side / rule.side), 1) * rule.merge for side in (height, width))
    return rows, columns


def _cover(rule: ImageRule, width: int, height: int) -> Encoded:
    """Ovis 2: the fewest tiles that cover nine tenths of the image when each is scaled to fit."""
    from planner.spec.images import tile_grid

    found = []
    for rows, columns in _tile_grids(rule.max_tiles):
        tall, wide = height // rows, width // columns
        # The last row and column take what the division leaves.
        parts = product([tall] * (rows - 1) + [height - tall * (rows - 1)],
                        [wide] * (columns - 1) + [width - wide * (columns - 1)])  # fmt: skip
        covered = sum(_covered(part_height, part_width, rule.side) for part_height, part_width in parts)
        found.append((rows * columns, covered / (width * height), (rows, columns)))
    enough = [entry for entry in found if entry[1] > 0.9]
    key: Callable[[tuple[int, float, tuple[int, int]]], tuple[float, float]]
    key = (lambda one: (one[0], -one[1])) if enough else (lambda one: (-one[1], one[0]))
    count, _, grid = min(enough or found, key=key)
    tiles = count + 1 if count > 1 else 1
    side = rule.side // rule.patch
    return Encoded(((side, side),) * tiles, rule.tile_tokens * tiles, tile_grid(rule) * tiles, grid)


def _covered(height: int, width: int, side: int) -> float:
    longer, shorter = max(width, height), min(width, height)
    return side * (shorter / longer * side) if longer > side else longer * shorter


def _tile_grids(most: int) -> list[tuple[int, int]]:
    pairs = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most + 1) if rows * columns <= most]
    return sorted(pairs, key=lambda pair: pair[0] * pair[1])


FITTING: dict[str, Callable[[ImageRule, int, int], Encoded]] = {
    "navit": _navit,
    "boxed": _boxed,
    "budget": _budget,
    "edges": _edges,
    "large": _large,
    "slices": _slices,
    "cover": _cover,
}
