"""The images and videos of a forward pass: a digest and the number of visual tokens of each.

The number of tokens follows from the processor's output:

| beside the pixels              | pixels                       | tokens of one image                                 |
|--------------------------------|------------------------------|-----------------------------------------------------|
| image_grid_thw, video_grid_thw | patches of all, ``[p, ...]`` | patches of its grid, merged (Qwen, GLM)             |
| image_sizes, resolutions       | ``[n, tiles, C, H, W]``      | unpadded tiles (LLaVA-NeXT, LLaVA-OneVision)        |
| image_sizes, Pixtral           | ``[n, C, H, W]``             | patches of its size, merged (Mistral 3)             |
| nothing, pixel_attention_mask  | ``[B, n, C, H, W]``          | equal shares of what is not blank (Idefics3)        |
| nothing                        | ``[n, ...]``                 | equal shares: images, tiles or videos of one size   |

Digests leave padding out, so that an image has the same digest alone and in any batch. Where the tokens of the images
do not add up to those of every sample, all images of the batch count as one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from planner.errors import PlannerError
from planner.runtime.tensors.layout import Layout
from planner.spec import ModelSpec
from planner.spec.images import encode

#: Arguments that bring pixels.
PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos")
#: Arguments that bring sounds, whose tokens are words to a plan.
SOUNDS = ("input_features", "input_features_mask", "feature_attention_mask")
#: Arguments that change what a vision encoder makes of them.
_OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio")


@dataclass(frozen=True)
class Image:
    """An image or a video.

    Attributes:
        digest: SHA-256 of its pixels and of what the processor says of them.
        tokens: visual tokens.
    """

    digest: str
    tokens: int


def brings_pixels(kwargs: dict[str, Any]) -> bool:
    """Whether a forward brings images or videos."""
    return any(kwargs.get(name) is not None for name in PIXELS)


def brings_sounds(kwargs: dict[str, Any]) -> bool:
    """Whether a forward brings sounds."""
    return any(kwargs.get(name) is not None for name in SOUNDS)


def brings_images(kwargs: dict[str, Any]) -> bool:
    """Whether a forward brings images, as pixels or as what `generate` has made of them."""
    return brings_pixels(kwargs) or bool(kwargs.get("mm_encoder_outputs"))


def images_of(kwargs: dict[str, Any], layout: Layout, visual_ids: tuple[int, ...], config: Any) -> list[Image]:
    """The images of a forward, in the order of their tokens in the batch.

    Args:
        kwargs: the model's arguments; at least one of `PIXELS` is a tensor.
        layout: parts of the prompts.
        visual_ids: placeholder tokens of images, then of videos.
        config: the model's configuration.
    """
    options = [f"{name}={kwargs[name]}" for name in _OPTIONS if kwargs.get(name) is not None]
    total = sum(layout.visual_counts)
    given = {name: kwargs[name] for name in PIXELS if kwargs.get(name) is not None}
    if len(given) == 1:
        of_video = ["pixel_values_videos" in given] * total
    else:
        of_video = (layout.ids[layout.visual] != visual_ids[0]).tolist()
    waiting: dict[bool, list[Image]] = {False: [], True: []}
    for name, pixels in given.items():
        video = name == "pixel_values_videos"
        parts = _parts(pixels, kwargs, video, of_video.count(video), config)
        waiting[video] += [Image(_digest(options, *tensors), tokens) for tensors, tokens in parts]
    found = _in_order(waiting, of_video)
    if found is not None and whole(found, layout):
        return found
    tensors = [kwargs[name] for name in sorted(kwargs) if isinstance(kwargs[name], Tensor) and _of_image(name)]
    return [Image(_digest(options, *tensors), total)]


def whole(images: list[Image], layout: Layout) -> bool:
    """Whether the tokens of images, in order, add up to those of every sample."""
    ends = set(accumulate(image.tokens for image in images))
    samples = list(accumulate(layout.visual_counts))
    return set(samples) - {0} <= ends and max(ends, default=0) == samples[-1]


def _in_order(waiting: dict[bool, list[Image]], of_video: list[bool]) -> list[Image] | None:
    """Images and videos as the prompt's tokens name them; None where their tokens do not fit."""
    place, found = 0, []
    queues = {kind: iter(images) for kind, images in waiting.items()}
    while place < len(of_video):
        image = next(queues[of_video[place]], None)
        if image is None or image.tokens < 1 or len(set(of_video[place : place + image.tokens])) != 1:
            return None
        found.append(image)
        place += image.tokens
    return found if len(found) == sum(map(len, waiting.values())) else None


Part = tuple[list[Any], int]


def _parts(pixels: Any, kwargs: dict[str, Any], video: bool, total: int, config: Any) -> list[Part]:
    """The parts of the inputs that belong to each image or video, and its tokens; empty where that is not known."""
    if not isinstance(pixels, Tensor):
        return []
    grids, sizes = kwargs.get("video_grid_thw" if video else "image_grid_thw"), kwargs.get("image_sizes")
    if grids is not None:
        return _by_grid(pixels, grids, config)
    if sizes is not None and not video:
        pairs = [(int(height), int(width)) for height, width in torch.as_tensor(sizes).tolist()]
        if getattr(config, "image_grid_pinpoints", None):
            return _by_tiles(pixels, pairs, config)
        if config.vision_config.model_type == "pixtral" and pixels.ndim == 4:
            return _by_size(pixels, pairs, config)
        return []
    images: list[list[Any]] = [[one] for one in pixels]
    if pixels.ndim == 5 and not video:
        images = _not_blank(pixels, kwargs.get("pixel_attention_mask"))
    elif kwargs.get("pixel_attention_mask") is not None:
        return []
    if not images or total % len(images):
        return []
    return [(image, total // len(images)) for image in images]


def _by_grid(pixels: Tensor, grids: Tensor, config: Any) -> list[Part]:
    patches = [int(count) for count in grids.prod(dim=1)]
    if sum(patches) != pixels.shape[0]:
        return []
    merged = getattr(config.vision_config, "spatial_merge_size", 1) ** 2
    parts = zip(torch.split(pixels, patches), grids, patches, strict=True)
    return [([part, grid], count // merged) for part, grid, count in parts]


def _by_tiles(pixels: Tensor, sizes: list[tuple[int, int]], config: Any) -> list[Part]:
    try:
        spec = ModelSpec.from_config(config.to_dict())
        encoded = [encode(spec, width, height) for height, width in sizes]
    except PlannerError:
        return []
    counts = [len(one.tiles) for one in encoded]
    if pixels.ndim == 5:
        tiles = [image[:count] for image, count in zip(pixels, counts, strict=False)]
    else:
        tiles = list(torch.split(pixels, counts)) if sum(counts) == pixels.shape[0] else []
    if len(tiles) != len(sizes):
        return []
    return [([part, *size], one.visual_tokens) for part, size, one in zip(tiles, sizes, encoded, strict=True)]


def _by_size(pixels: Tensor, sizes: list[tuple[int, int]], config: Any) -> list[Part]:
    if len(sizes) != pixels.shape[0]:
        return []
    side = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    pairs = zip(pixels, sizes, strict=True)
    return [
        ([image[:, :height, :width], height, width], (height // side) * (width // side))
        for image, (height, width) in pairs
    ]


def _not_blank(pixels: Tensor, mask: Tensor | None) -> list[list[Any]]:
    real = (pixels != 0).flatten(2).any(-1)
    if mask is None:
        return [[image] for image in pixels[real]]
    return [[image, seen] for image, seen in zip(pixels[real], mask[real], strict=True)]


def _of_image(name: str) -> bool:
    return name.startswith(("pixel", "image_", "video_", "batch_num_images"))


def _digest(options: list[str], *parts: Any) -> str:
    digest = hashlib.sha256(repr(options).encode())
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype}:{tuple(part.shape)}".encode())
            digest.update(part.detach().contiguous().cpu().view(torch.uint8).numpy().data)
        else:
            digest.update(f"{part};".encode())
    return digest.hexdigest()
