"""Cells of a picture's tokens: every place in one of them, as many as asked for, ordinary pooling where it fits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.runtime.selection.merging import united
from planner.spec import ModelSpec
from planner.spec.cells import cells_of, shares
from planner.spec.encoded import Grid
from planner.spec.images import encode
from tests import tiny

sides = st.integers(1, 12)
grids = st.lists(st.builds(Grid, sides, sides, st.integers(1, 3), st.booleans()), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(grids, st.integers(0, 500))
def test_cells_tile_the_places_and_are_as_many_as_asked_for(made: list[Grid], count: int) -> None:
    cells = cells_of(tuple(made), count)
    places, start = [], 0
    for grid in made:
        for token in range(start, start + grid.tokens):
            if not (grid.breaks and (token - start) % (grid.columns + 1) == grid.columns):
                places.append(token)
        start += grid.tokens
    assert len(cells) == min(count, len(places))
    held = sorted(token for cell in cells for token in cell)
    if len(made) == 1 and made[0].frames == 1 and cells:
        assert held == places
    # A small grid beside large ones may get no cell at all.
    assert len(set(held)) == len(held) and set(held) <= set(places)


@pytest.mark.parametrize(("side", "by"), [(24, 2), (24, 3), (16, 4), (12, 1)])
def test_a_square_part_is_ordinary_average_pooling(side: int, by: int) -> None:
    picture = torch.randn(1, 5, side, side, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.avg_pool2d(picture, by)
    cells = cells_of((Grid(side, side),), (side // by) ** 2)
    targets = torch.full((1, side * side), -1)
    for cell in cells:
        targets[0, list(cell)] = cell[0]
    pooled = united(picture.flatten(2).transpose(1, 2), targets)
    middles = torch.tensor([cell[0] for cell in cells])
    torch.testing.assert_close(pooled[0, middles].T.reshape(1, 5, side // by, -1), expected)


def test_cells_are_nearly_square_and_their_middle_stands_for_them() -> None:
    (cell, *_) = cells_of((Grid(9, 9),), 9)
    assert sorted(cell) == [0, 1, 2, 9, 10, 11, 18, 19, 20] and cell[0] == 10


def test_shares_are_in_proportion() -> None:
    assert shares(10, [30, 60, 10]) == [3, 6, 1]
    assert shares(5, [1, 1, 1]) == [2, 2, 1]
    assert shares(3, [0, 0]) == [0, 0]


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        ("llava-1.5-7b", (640, 480), (Grid(24, 24),)),
        ("qwen2-vl-7b", (560, 280), (Grid(10, 20),)),
    ],
)
def test_how_a_picture_s_tokens_lie(model: str, size: tuple[int, int], expected: tuple[Grid, ...]) -> None:
    check_grids(ModelSpec.from_config(model), size, expected)


def test_unpadded_tiles_have_row_breaks() -> None:
    """Tiles of 24 x 24 pixels in patches of 8; the picture fills one by two of them."""
    spec = ModelSpec.from_config(tiny.config("llava_next").to_dict())
    check_grids(spec, (48, 24), (Grid(3, 3), Grid(3, 6, breaks=True)))


def check_grids(spec: ModelSpec, size: tuple[int, int], expected: tuple[Grid, ...]) -> None:
    found = encode(spec, *size)
    assert found.grids == expected
    assert found.visual_tokens == sum(grid.tokens for grid in expected)
