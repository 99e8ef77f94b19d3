"""What a processor gives for one picture, by family: tensors of noise, and visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.tiny.configs import SIDE

#: Noise of a shape.
Noise = Callable[..., torch.Tensor]
#: Tensors of one picture, and its visual tokens.
Picture = tuple[dict[str, torch.Tensor], int]
#: Rows and columns of patches, in the order a sample's images take them; of every second sample the others.
GRIDS, RAGGED_GRIDS = ((4, 8), (8, 4)), ((8, 8), (4, 4))


def _grid(size: int, merge: int = 2, frames: int = 2, patch: int = 4, flat: bool = True, **more: int) -> Any:
    """Patches of a picture at its own size, one after the other."""

    def picture(noise: Noise, number: int, odd: bool) -> Picture:
        rows, columns = (RAGGED_GRIDS if odd else GRIDS)[number % 2]
        pixels = noise(rows * columns, 3 * frames * patch * patch) if flat else noise(rows * columns, 3, patch, patch)
        named = {name: torch.tensor([value]) for name, value in more.items()}
        found = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, columns]]), **named}
        return found, rows * columns // merge**2

    return picture


def _square(side: int, tokens: int) -> Any:
    def picture(noise: Noise, number: int, odd: bool) -> Picture:
        return {"pixel_values": noise(1, 3, side, side)}, tokens

    return picture


def _pixtral_sizes(noise: Noise, number: int, odd: bool) -> Picture:
    height, width = ((32, 32), (24, 32))[(number + odd) % 2]
    return {
        "pixel_values": noise(1, 3, height, width),
        "image_sizes": torch.tensor([[height, width]]),
    }, height * width // 64


def _siglip_rows(noise: Noise, number: int, odd: bool) -> Picture:
    """All are filled up to 64 patches, here with nothing but patches."""
    rows, columns = ((4, 8), (8, 4))[(number + odd) % 2]
    mask = torch.zeros(1, 64, dtype=torch.int32)
    mask[:, : rows * columns] = 1
    return {
        "pixel_values": noise(1, 64, 3 * 4 * 4),
        "spatial_shapes": torch.tensor([[rows, columns]]),
        "pixel_attention_mask": mask,
    }, rows * columns // 4


def _positioned(noise: Noise, number: int, odd: bool) -> Picture:
    """A grid of patches with their places, filled up to 36."""
    rows, columns = ((4, 8), (4, 6))[(number + odd) % 2]
    places = torch.full((1, 36, 2), -1)
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
    places[0, : rows * columns] = grid
    pixels = torch.zeros(1, 36, 3 * 4 * 4, dtype=noise(1).dtype)
    pixels[0, : rows * columns] = noise(rows * columns, 3 * 4 * 4)
    return {"pixel_values": pixels, "image_position_ids": places}, rows * columns // 4


def _paddle_grid(noise: Noise, number: int, odd: bool) -> Picture:
    found, tokens = _grid(3, flat=False)(noise, number, odd)
    return found, tokens


def _unpadded(noise: Noise, number: int, odd: bool) -> Picture:
    """Base view and tiles of 24 x 24 in 3 x 3 patches, as of LLaVA-NeXT."""
    height = (24, 32)[(number + odd) % 2]
    tiles, tokens = (2, 9 + 3 * 7) if height == 24 else (4, 9 + 4 * 7)
    pixels = torch.zeros(1, 5, 3, SIDE, SIDE, dtype=noise(1).dtype)
    pixels[:, : 1 + tiles] = noise(1, 1 + tiles, 3, SIDE, SIDE)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[height, 48]])}, tokens


def _packed(noise: Noise, number: int, odd: bool) -> Picture:
    """Patches of a picture side by side."""
    rows, columns = (RAGGED_GRIDS if odd else GRIDS)[number % 2]
    found = {"pixel_values": noise(1, 3, 4, 4 * rows * columns), "target_sizes": torch.tensor([[rows, columns]])}
    return found, rows * columns // 16


def _unmerged(noise: Noise, number: int, odd: bool) -> Picture:
    """The same where the tower merges nothing."""
    found, tokens = _packed(noise, number, odd)
    return found, 4 * tokens


def _large_patches(noise: Noise, number: int, odd: bool) -> Picture:
    rows, columns = ((2, 4), (2, 3))[(number + odd) % 2]
    places = torch.full((1, 9, 2), -1)
    places[0, : rows * columns] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
    return {"pixel_values": noise(1, 9, 3 * 8 * 8), "image_position_ids": places}, rows * columns


def _nested(noise: Noise, number: int, odd: bool) -> Picture:
    return {"pixel_values": noise(1, 3, SIDE, SIDE)}, 6


def _clip_of_two(noise: Noise, number: int, odd: bool) -> Picture:
    """Two frames."""
    return {"pixel_values": noise(1, 2, 3, SIDE, SIDE)}, 12
