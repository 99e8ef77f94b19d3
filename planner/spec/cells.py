"""A picture's tokens in cells: as many as a budget allows, nearly square and nearly of one size.

A budget that is a square number's part of the grid gives ordinary pooling: a quarter of 24 by 24 tokens is 12 by 12
cells of 2 by 2. Any other budget is met exactly too: bands of rows, each cut into cells, some bands into one more.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from planner.spec.encoded import Grid


@functools.lru_cache(maxsize=256)
def cells_of(grids: tuple[Grid, ...], count: int) -> tuple[tuple[int, ...], ...]:
    """The cells of a sample's pictures: places of tokens among its visual tokens, the middle one of each cell first.

    Row breaks lie in no cell.

    Args:
        grids: in prompt order.
        count: cells to make; as many as there are places in the grids, where there are fewer.
    """
    frames = [(start, grid) for start, grid in _frames(grids)]
    sizes = [grid.rows * grid.columns for _, grid in frames]
    found = []
    for (start, grid), share in zip(frames, shares(min(count, sum(sizes)), sizes), strict=True):
        width = grid.columns + grid.breaks
        for rows, columns in _cut(grid.rows, grid.columns, share):
            middle = (rows[(len(rows) - 1) // 2], columns[(len(columns) - 1) // 2])
            others = [(row, column) for row in rows for column in columns if (row, column) != middle]
            found.append(tuple(start + row * width + column for row, column in (middle, *others)))
    return tuple(found)


def shares(count: int, sizes: Sequence[int]) -> list[int]:
    """`count` in whole parts, in proportion to sizes: what rounding down leaves goes to the largest remainders, of
    equal ones to the earlier."""
    total = sum(sizes)
    if not total:
        return [0] * len(sizes)
    parts = [count * size // total for size in sizes]
    by_rest = sorted(range(len(sizes)), key=lambda i: (-(count * sizes[i] % total), i))
    for index in by_rest[: count - sum(parts)]:
        parts[index] += 1
    return parts


def _frames(grids: Sequence[Grid]) -> list[tuple[int, Grid]]:
    """Every grid of one frame, and the place of its first token."""
    found, start = [], 0
    for grid in grids:
        one = grid._replace(frames=1)
        for _ in range(grid.frames):
            found.append((start, one))
            start += one.tokens
    return found


def _cut(rows: int, columns: int, count: int) -> list[tuple[range, range]]:
    """Rows and columns of `count` cells."""
    found, bands = [], bands_of(rows, columns, count)
    for band, across in enumerate(bands):
        band_rows = range(band * rows // len(bands), (band + 1) * rows // len(bands))
        found += [(band_rows, range(i * columns // across, (i + 1) * columns // across)) for i in range(across)]
    return found


def bands_of(rows: int, columns: int, count: int) -> list[int]:
    """How many cells each band of rows is cut into, from the top."""
    if not count:
        return []
    bands = round((count * rows / columns) ** 0.5)
    bands = min(max(bands, 1, -(-count // columns)), rows, count)
    return [(band + 1) * count // bands - band * count // bands for band in range(bands)]


def smaller(grid: Grid, count: int) -> Grid:
    """The smallest grid in which each of `count` cells of a picture has a token of its own."""
    bands = bands_of(grid.rows, grid.columns, max(count, 1))
    return Grid(len(bands), max(bands))
