"""How the visual tokens of a prompt lie in their pictures, read off what the processor says beside the pixels.

| beside the pixels              | grids                                                                |
|--------------------------------|----------------------------------------------------------------------|
| image_grid_thw, video_grid_thw | one a picture or video, merged (Qwen, GLM), or lined (HunYuan)       |
| image_sizes, resolutions       | the base view, and the unpadded tiles with their row breaks (anyres) |
| the same, batch_num_images     | of several pictures of a prompt, the view alone and a break          |
| image_sizes, Pixtral           | one a picture, merged (Mistral 3)                                    |
| nothing                        | a square a tile                                                      |
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch

from planner.errors import PlannerError, UnsupportedModelError
from planner.runtime.tensors.layout import Layout
from planner.spec import ModelSpec
from planner.spec.encoded import Grid
from planner.spec.images import encode_all, lined, tile_grid

#: Grids of one picture, in prompt order.
Picture = tuple[Grid, ...]


def pictures_of(
    kwargs: dict[str, Any], layout: Layout, visual_ids: tuple[int, ...], config: Any
) -> list[list[Picture]]:
    """The pictures of each sample, in prompt order.

    Args:
        kwargs: the model's arguments, with what its processor gave.
        layout: parts of the prompts.
        visual_ids: placeholder tokens of images, then of videos.
        config: the model's configuration.

    Raises:
        UnsupportedModelError: they do not account for the visual tokens of the prompts.
    """
    waiting = {False: _images(kwargs, config), True: _videos(kwargs, config)}
    found: list[list[Picture]] = []
    for ids, visual in zip(layout.ids, layout.visual, strict=True):
        is_video = (ids[visual] != visual_ids[0]).tolist()
        pictures: list[Picture] = []
        place = 0
        while place < len(is_video):
            picture = next(waiting[is_video[place]], ())
            tokens = sum(grid.tokens for grid in picture)
            if not tokens or len(set(is_video[place : place + tokens])) != 1 or place + tokens > len(is_video):
                raise UnsupportedModelError(
                    f"how the visual tokens of {config.model_type} lie in their picture is not known for these inputs",
                    "Use a policy that needs no grid, such as dart or diverse",
                )
            pictures.append(picture)
            place += tokens
        found.append(pictures)
    return found


def _images(kwargs: dict[str, Any], config: Any) -> Iterator[Picture]:
    sizes = kwargs.get("image_sizes")
    if kwargs.get("image_grid_thw") is not None:
        yield from _merged(kwargs["image_grid_thw"], config)
    elif sizes is not None:
        pairs = [(int(height), int(width)) for height, width in torch.as_tensor(sizes).tolist()]
        if getattr(config, "image_grid_pinpoints", None):
            yield from _unpadded(pairs, kwargs.get("batch_num_images"), config)
        elif config.vision_config.model_type == "pixtral":
            side = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
            yield from ((Grid(height // side, width // side),) for height, width in pairs)
    else:
        rule = _spec(config).images
        yield from repeat(tile_grid(rule) if rule is not None else ())


def _videos(kwargs: dict[str, Any], config: Any) -> Iterator[Picture]:
    if kwargs.get("video_grid_thw") is not None:
        yield from _merged(kwargs["video_grid_thw"], config)


def _merged(grids: Any, config: Any) -> Iterator[Picture]:
    merge, rule = getattr(config.vision_config, "spatial_merge_size", 1), _spec(config).images
    for frames, rows, columns in torch.as_tensor(grids).tolist():
        grid = Grid(rows // merge, columns // merge, frames)
        yield lined(grid) if rule is not None and rule.kind == "lined" else (grid,)


def _unpadded(sizes: list[tuple[int, int]], counts: Any, config: Any) -> Iterator[Picture]:
    """`counts` says how many each prompt has, where it matters."""
    spec, start = _spec(config), 0
    for count in [1] * len(sizes) if counts is None else torch.as_tensor(counts).tolist():
        shown = [(width, height) for height, width in sizes[start : start + count]]
        yield from (image.grids for image in encode_all(spec, shown))
        start += count


def _spec(config: Any) -> ModelSpec:
    try:
        return ModelSpec.from_config(config.to_dict())
    except PlannerError as error:
        raise UnsupportedModelError(f"the tokens of a picture are not known: {error}", "Use another policy") from error
