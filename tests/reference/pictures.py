"""How the visual tokens of the tiny prompts lie in their pictures, and what cells they make."""

from __future__ import annotations

from typing import Any

from torch import Tensor

#: Rows, columns, and whether a row ends with a break.
Lie = tuple[int, int, bool]


def grids(family: str, inputs: dict[str, Tensor], visual: Tensor) -> list[list[list[Lie]]]:
    """By how `tests.tiny.prompts` makes pictures, for each picture of each sample."""
    pictures = iter(_pictures(family, inputs))
    found = []
    for count in visual.sum(-1).tolist():
        sample: list[list[Lie]] = []
        while sum(tokens(lie) for picture in sample for lie in picture) < count:
            sample.append(next(pictures))
        found.append(sample)
    return found


def tokens(lie: Lie) -> int:
    rows, columns, breaks = lie
    return rows * (columns + breaks)


def _pictures(family: str, inputs: dict[str, Any]) -> Any:
    if family == "hunyuan_vl":
        # A token that stands for no place at either end, and behind every row.
        grids = inputs["image_grid_thw"].tolist()
        return [[(1, 0, True), (rows // 2, columns // 2, True), (1, 0, True)] for _, rows, columns in grids]
    if "image_grid_thw" in inputs:
        merge = 1 if "image_merge_sizes" in inputs else 2
        return [[(rows // merge, columns // merge, False)] for _, rows, columns in inputs["image_grid_thw"].tolist()]
    if "image_sizes" in inputs and family in ("llava_next", "llava_next_video", "llava_onevision"):
        # A base view of 24 x 24 pixels in patches of 8, and the picture itself in such patches, a break a row.
        return [[(3, 3, False), (h // 8, w // 8, True)] for h, w in inputs["image_sizes"].tolist()]
    if "image_sizes" in inputs:
        return [[(h // 8, w // 8, False)] for h, w in inputs["image_sizes"].tolist()]
    return iter(lambda: [(4, 4, False)], None)


def cells(lies: list[Lie], count: int) -> list[list[int]]:
    """Places of the tokens of each cell, the middle one first. Every token is asked which cell it is in."""
    areas = [rows * columns for rows, columns, _ in lies]
    count = min(count, sum(areas))
    budget = [count * area // sum(areas) for area in areas]
    while sum(budget) < count:
        budget[max(range(len(areas)), key=lambda i: (count * areas[i] / sum(areas) - budget[i], -i))] += 1
    found, start = [], 0
    for (rows, columns, breaks), cell_count in zip(lies, budget, strict=True):
        members: dict[tuple[int, int], list[tuple[int, int]]] = {}
        bands = [b for b in range(1, rows + 1) if b <= cell_count <= b * columns]
        square = (cell_count * rows / columns) ** 0.5
        bands = [min(bands, key=lambda b: (abs(b - round(square)), b))] if bands else []
        for row in range(rows) if bands else ():
            band = max(b for b in range(bands[0]) if b * rows // bands[0] <= row)
            across = (band + 1) * cell_count // bands[0] - band * cell_count // bands[0]
            for column in range(columns):
                cell = max(c for c in range(across) if c * columns // across <= column)
                members.setdefault((band, cell), []).append((row, column))
        for places in members.values():
            down, right = (sorted({place[axis] for place in places}) for axis in (0, 1))
            middle = (down[(len(down) - 1) // 2], right[(len(right) - 1) // 2])
            ordered = [middle, *(place for place in places if place != middle)]
            found.append([start + row * (columns + breaks) + column for row, column in ordered])
        start += rows * (columns + breaks)
    return found
