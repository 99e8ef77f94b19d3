"""Pruning before the language model by attention in the vision encoder, against the encoder's own eager maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from planner.errors import UnsupportedModelError
from planner.runtime import attach
from planner.schedule import Count, Schedule, Select, Stage
from tests import tiny
from tests.float64 import float64_throughout

KEPT = 6
ENTRY = Schedule(stages=(Stage(first=0, last=4),), entry=Select(rank_by="encoder_attention", keep=Count(count=KEPT)))


def attention_maps(tower: Any, pixels: Tensor, layer: int) -> Tensor:
    """``[images, H, n, n]`` of one encoder layer."""
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad(), float64_throughout():
            return tower(pixels, output_attentions=True).attentions[layer]  # type: ignore[no-any-return]
    finally:
        tower.set_attn_implementation(before)


def by_class_token(layer: int) -> Callable[[Any, Tensor], Tensor]:
    """Attention that the class token gives to each patch in the layer whose output is projected."""
    return lambda model, pixels: attention_maps(model.model.vision_tower, pixels, layer)[:, :, 0, 1:].mean(1)


def by_all_patches(model: Any, pixels: Tensor) -> Tensor:
    """No class token: attention received, mean over all patches, last layer."""
    return attention_maps(model.model.vision_tower, pixels, -1).mean((1, 2))


def in_blocks(scores: Tensor) -> Tensor:
    """A visual token is 2 x 2 of the 8 x 8 patches: their mean, row by row."""
    grid = scores.reshape(-1, 8, 8)
    blocks = [grid[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)) for i in range(4) for j in range(4)]
    return torch.stack(blocks, dim=1)


SCORES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "llava": by_class_token(-2),  # vision_feature_layer -2: the output of the last layer but one
    "vipllava": by_class_token(-2),  # of several layers the deepest
    "paligemma": by_all_patches,
    "gemma3": lambda model, pixels: in_blocks(by_all_patches(model, pixels)),
    "internvl": lambda model, pixels: in_blocks(by_class_token(-1)(model, pixels)),
}


@pytest.mark.parametrize("family", SCORES)
def test_the_best_patches_survive(family: str) -> None:
    """Two images in each sample and three in the second: every token is ranked within its own sample."""
    model, inputs = tiny.model(family), tiny.inputs(family, batch=2, left_pad=2, images=2, ragged=True)
    scores = SCORES[family](model, inputs["pixel_values"]).flatten()
    with attach(model, ENTRY) as handle, torch.no_grad(), float64_throughout():
        model(**inputs)
        kept = handle.kept[0]
    per_image = scores.shape[0] // 5
    for sample, found in enumerate((scores[: 2 * per_image], scores[2 * per_image :])):
        assert kept[sample] == sorted(found.topk(KEPT).indices.tolist())


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "qwen2_5_vl", "mistral3"])
def test_scrambled_patches_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="encoder_norm"):
        attach(tiny.model(family), ENTRY)
