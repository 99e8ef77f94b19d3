"""Which images a forward brings: told apart by their own pixels, counted by what the processor says of them."""

from __future__ import annotations

from typing import Any

import torch

from planner.runtime.imaging.images import Image, images_of
from planner.runtime.tensors.layout import read_layout
from tests import tiny
from tests.tiny.configs import IMAGE, VIDEO


def found(family: str, inputs: dict[str, Any], **changes: Any) -> list[Image]:
    config = tiny.config(family)
    inputs = {**inputs, **changes}
    layout = read_layout(inputs["input_ids"], (IMAGE, VIDEO), inputs["attention_mask"])
    return images_of(inputs, layout, (IMAGE, VIDEO), config)


def test_unpadded_tiles_are_counted_and_padding_is_no_part_of_them() -> None:
    """24 x 48 is 30 tokens of 3 tiles, 32 x 48 is 37 of 5 (`tests.tiny.prompts`): a batch pads the first to 5."""
    both, single = (tiny.inputs("llava_next", batch=2, ragged=True, **only) for only in ({}, {"only": 0}))
    images = found("llava_next", both)
    assert [image.tokens for image in images] == [30, 37]
    assert found("llava_next", single) == images[:1]
    # All tiles in a row, the other form that the family takes.
    flat = torch.cat([both["pixel_values"][0, :3], both["pixel_values"][1]])
    assert found("llava_next", both, pixel_values=flat) == images


def test_patches_of_sizes() -> None:
    """32 x 32 and 24 x 32 pixels in merged patches of 8 x 8."""
    images = found("mistral3", tiny.inputs("mistral3", images=2))
    assert [image.tokens for image in images] == [16, 12]


def test_what_does_not_add_up_counts_as_one() -> None:
    inputs = tiny.inputs("mistral3", batch=2)
    for sizes in (torch.tensor([[32, 32]]), torch.tensor([[32, 32], [48, 32]])):
        images = found("mistral3", inputs, image_sizes=sizes)
        assert [image.tokens for image in images] == [32]
    # As many tokens in all, but the second image would begin in the first sample.
    ragged = tiny.inputs("mistral3", batch=2, ragged=True)
    assert [image.tokens for image in found("mistral3", ragged)] == [16, 12]
    assert len(found("mistral3", ragged, image_sizes=ragged["image_sizes"].flip(0))) == 1


def test_equal_pixels_are_equal_images_and_sizes_tell_them_apart() -> None:
    inputs = tiny.inputs("llava", images=2)
    inputs["pixel_values"][1] = inputs["pixel_values"][0]
    first, second = found("llava", inputs)
    assert first == second
    assert found("llava", inputs, vision_feature_layer=-1)[0] != first
    grids = tiny.inputs("qwen2_vl")
    other = {**grids, "image_grid_thw": torch.tensor([[1, 8, 4]])}
    assert found("qwen2_vl", grids)[0].digest != found("qwen2_vl", other)[0].digest


def test_images_and_videos_stand_in_the_order_of_their_tokens() -> None:
    """A video of 8 tokens between images of 8 and 4; as many tokens in another order are not theirs."""
    pixels = torch.randn(48, 96)
    ids = torch.tensor([[5, *[IMAGE] * 8, 6, *[VIDEO] * 8, 7, *[IMAGE] * 4, 8]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 8], [1, 4, 4]]),
        "pixel_values_videos": torch.randn(32, 96),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
    }
    images = found("qwen2_vl", inputs)
    assert [image.tokens for image in images] == [8, 8, 4]
    assert len({image.digest for image in images}) == 3
    swapped = found("qwen2_vl", inputs, image_grid_thw=torch.tensor([[1, 4, 4], [1, 4, 8]]))
    assert [image.tokens for image in swapped] == [20]
