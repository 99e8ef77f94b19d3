"""Paint layouts: all pictures of a batch at once, on whatever device the drawings lie; and label their patches.

Decision: drawings are set into the ground by an affine grid each and blended by their transparency, so tens of
thousands of pictures a minute need no file and no CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .layout import IMAGE_SIZE, SLOTS, Layout

PATCH_SIZE = 12
GRID = IMAGE_SIZE // PATCH_SIZE
VISUAL_TOKENS = GRID * GRID
COVERED = 0.3  # a patch shows a thing when this share of it is covered
IGNORED = -100
#: Normalisation of CLIP's image processor.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Pictures:
    """Painted pictures.

    Attributes:
        pixels: ``[B, 3, 240, 240]``, 0 to 1, in steps of 1/255.
        coverage: ``[B, 9, 400]``, share of each patch that each thing covers.
    """

    pixels: Tensor
    coverage: Tensor


def _ground(layout: Layout, device: torch.device) -> Tensor:
    axis = torch.linspace(-1, 1, IMAGE_SIZE, device=device)
    direction = torch.from_numpy(layout.direction).to(device)[:, None, None]
    along = (axis[None, None] * direction.cos() + axis[None, :, None] * direction.sin()) / 2**0.5
    first, second = torch.from_numpy(layout.grounds).to(device).unbind(1)
    share = ((along + 1) / 2)[:, None]
    relief = torch.from_numpy(layout.texture).to(device)[:, None]
    relief = F.interpolate(relief, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False)
    return first[..., None, None] * (1 - share) + second[..., None, None] * share + relief


def _affine(layout: Layout, rows: np.ndarray, slot: int) -> Tensor:
    """Matrices ``[n, 2, 3]`` from the picture's coordinates (-1 to 1) to those of the drawing."""
    size, angle = layout.sizes[rows, slot], layout.angles[rows, slot]
    x, y = (layout.centers[rows, slot] / (IMAGE_SIZE / 2) - 1).T
    factor, mirror = IMAGE_SIZE / size, layout.mirrored[rows, slot]
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    upper = np.stack([mirror * cos, mirror * sin, -mirror * (cos * x + sin * y)], axis=-1)
    lower = np.stack([-sin, cos, sin * x - cos * y], axis=-1)
    return torch.from_numpy(np.stack([upper, lower], axis=1).astype(np.float32))


def paint(layout: Layout, sprites: Tensor, jitter: torch.Generator | None = None) -> Pictures:
    """Paint a layout.

    Args:
        layout: of ``B`` pictures.
        sprites: uint8 ``[styles, classes, 4, 64, 64]``, on the device to paint on.
        jitter: vary colours at random, picture by picture: strength of each channel, and how gray; for training.
    """
    device = sprites.device
    canvas = _ground(layout, device)
    coverage = torch.zeros(len(layout), SLOTS, GRID, GRID, device=device)
    for slot in range(int(layout.amount.max())):
        rows = np.flatnonzero(layout.amount > slot)
        place = torch.from_numpy(rows).to(device)
        style, drawn = layout.styles[rows], layout.classes[rows, slot]
        sprite = sprites[torch.from_numpy(style).to(device), torch.from_numpy(drawn).to(device)].float() / 255
        # Colours are weighted by their transparency before they are resampled, or edges would catch what lies hidden.
        sprite = torch.cat([sprite[:, :3] * sprite[:, 3:], sprite[:, 3:]], dim=1)
        theta = _affine(layout, rows, slot).to(device)
        grid = F.affine_grid(theta, [len(rows), 4, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
        layer = F.grid_sample(sprite, grid, align_corners=False)
        canvas[place] = canvas[place] * (1 - layer[:, 3:]) + layer[:, :3]
        share = F.avg_pool2d(layer[:, 3], PATCH_SIZE)
        coverage[place] *= (1 - share)[:, None]
        coverage[place, slot] = share
    if jitter is not None:
        gain = 1 + 0.3 * (torch.rand(len(layout), 3, 1, 1, generator=jitter) - 0.5)
        gray = (torch.rand(len(layout), 1, 1, 1, generator=jitter) * 1.6 - 0.8).clamp(min=0).to(device)
        canvas = canvas * gain.to(device)
        canvas = canvas + gray * (canvas.mean(dim=1, keepdim=True) - canvas)
    pixels = (canvas.clamp(0, 1) * 255).round() / 255
    return Pictures(pixels, coverage.flatten(2))


def normalized(pixels: Tensor) -> Tensor:
    """What the model's image processor makes of pixels from 0 to 1."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std


@dataclass(frozen=True)
class PatchLabels:
    """What each patch shows, int64 ``[B, 400]`` each; -100 where it does not apply.

    Attributes:
        name: class of the thing, from 1; 0 is the ground.
        row: of the thing's ninth, 0 to 2.
        column: of the thing's ninth, 0 to 2.
        center: 1 where the thing's centre lies, 0 elsewhere on it.
    """

    name: Tensor
    row: Tensor
    column: Tensor
    center: Tensor


def patch_labels(layout: Layout, coverage: Tensor) -> PatchLabels:
    """Labels of painted pictures; a patch is of the thing that covers most of it."""
    device = coverage.device
    share, slot = coverage.max(dim=1)
    shown = share >= COVERED

    def of_thing(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device).gather(1, slot)

    cells = of_thing(layout.cells)
    middle = (layout.centers // PATCH_SIZE).astype(np.int64).clip(0, GRID - 1)
    center = of_thing(middle[..., 1] * GRID + middle[..., 0]) == torch.arange(VISUAL_TOKENS, device=device)
    return PatchLabels(
        name=torch.where(shown, of_thing(layout.classes) + 1, 0),
        row=torch.where(shown, cells // 3, IGNORED),
        column=torch.where(shown, cells % 3, IGNORED),
        center=torch.where(shown, center.long(), IGNORED),
    )
