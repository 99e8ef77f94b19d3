"""The mean image: what an ablated head reads instead of the image at hand (head attribution appendix A.2, eq. 8).

Keys are averaged before the rotary embedding, per image position, over about 100 other images; values as they are.
Turning the mean keys to the positions at hand makes the mean usable for any prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from calibrate.probes.attribution.parts import AttributionParts, find_attribution_parts
from calibrate.probes.attribution.prefix import capture
from planner.errors import CalibrationError, InputError

Grid = tuple[int, int]


def image_grids(model: Any, inputs: Mapping[str, torch.Tensor], visual_tokens: int) -> tuple[Grid, ...]:
    """Height and width in tokens of each image, in prompt order.

    Read from ``image_grid_thw`` where the processor gives it, else from square images of equal size. An image whose
    tokens form no rectangle (tiles with separators) counts as one row, which can only be matched by one of the same
    length.
    """
    config = model.config
    patches = inputs.get("image_grid_thw")
    if patches is not None:
        merge = getattr(config.vision_config, "spatial_merge_size", 1)
        grids = tuple((int(t * h) // merge, int(w) // merge) for t, h, w in patches.tolist())
    else:
        pixels = inputs.get("pixel_values")
        images = pixels.shape[0] if pixels is not None and pixels.dim() == 4 else 1
        side = round((visual_tokens / images) ** 0.5)
        grids = ((side, side),) * images
    if sum(height * width for height, width in grids) != visual_tokens:
        return ((1, visual_tokens),)
    return grids


@dataclass(frozen=True)
class MeanImage:
    """Mean keys (before rotary) and values of an image, ``[K, grid tokens, e]`` for each layer.

    Attributes:
        images: how many images were averaged.
        grid: their height and width in tokens.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    images: int
    grid: Grid

    def on(self, grids: tuple[Grid, ...]) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], str]:
        """The mean laid out for these images: keys, values, and how: ``equal`` or ``interpolated HxW to hxw``.

        Raises:
            InputError: a grid of one row (no rectangle) of another length than the mean's.
        """
        others = sorted({grid for grid in grids if grid != self.grid})
        steps = [f"{self.grid[0]}x{self.grid[1]} to {height}x{width}" for height, width in others]
        how = f"interpolated {', '.join(steps)}" if steps else "equal"
        keys = tuple(torch.cat([resize(mean, self.grid, grid) for grid in grids], dim=1) for mean in self.keys)
        values = tuple(torch.cat([resize(mean, self.grid, grid) for grid in grids], dim=1) for mean in self.values)
        return keys, values, how


def resize(mean: torch.Tensor, grid: Grid, to: Grid) -> torch.Tensor:
    """Bilinear interpolation of ``[K, h*w, e]`` from one token grid to another; the tensor itself where they are equal.

    Raises:
        InputError: different grids, one of which is a single row and so no rectangle.
    """
    if grid == to:
        return mean
    if 1 in (grid[0], to[0]):
        raise InputError(
            f"images of {grid[0]}x{grid[1]} and of {to[0]}x{to[1]} tokens cannot share a mean image",
            "Let the processor resize all images alike",
        )
    heads, _, size = mean.shape
    picture = mean.transpose(1, 2).reshape(1, heads * size, *grid)
    resized = torch.nn.functional.interpolate(picture, size=to, mode="bilinear", align_corners=False)
    return resized.reshape(heads, size, -1).transpose(1, 2)


def mean_image(
    model: Any, samples: Iterable[Mapping[str, torch.Tensor]], parts: AttributionParts | None = None
) -> MeanImage:
    """Average the image keys and values of these samples, one forward pass each; sums in float64.

    The mean has the first image's grid; other grids are interpolated to it.

    Raises:
        CalibrationError: no sample.
        InputError, UnsupportedModelError: as `capture` and `MeanImage.on`.
    """
    parts = find_attribution_parts(model) if parts is None else parts
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    grid: Grid | None = None
    images = 0
    for number, inputs in enumerate(samples):
        seen = capture(model, parts, inputs, f"{number} of the mean image")
        grids = image_grids(model, inputs, seen.visual.numel())
        grid = grids[0] if grid is None else grid
        lengths = [height * width for height, width in grids]
        for layer, layer_capture in enumerate(seen.layers):
            for sums, whole in ((keys, layer_capture.key_before), (values, layer_capture.value)):
                pieces = whole[:, seen.visual.to(whole.device)].double().split(lengths, dim=1)
                resized = [resize(piece, own, grid) for piece, own in zip(pieces, grids, strict=True)]
                if len(sums) <= layer:
                    sums.append(torch.zeros_like(resized[0]))
                sums[layer] += torch.stack(resized).sum(dim=0)
        images += len(grids)
    if grid is None:
        raise CalibrationError("the mean image needs at least one sample, and got none", "Raise --num-samples")
    dtype = seen.layers[0].key.dtype
    return MeanImage(
        keys=tuple((total / images).to(dtype) for total in keys),
        values=tuple((total / images).to(dtype) for total in values),
        images=images,
        grid=grid,
    )
