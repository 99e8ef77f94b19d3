"""A fallback for processors that cannot be built: image processor plus tokenizer, images and text only.

Qwen2-VL, InternVL and SmolVLM processors contain a video processor, which needs torchvision. What they do for images is
little: run the image processor, and repeat the image placeholder once per visual token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planner.errors import InputError, UnsupportedModelError


class PlainProcessor:
    """Calls like a transformers processor, for prompts of images and text.

    Args:
        missing: why the processor itself could not be built, as transformers says it.

    Raises:
        UnsupportedModelError: the number of visual tokens of an image follows a rule that is not known here.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, config: Any, missing: str) -> None:
        self._missing = missing
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self._sequence_length = getattr(config, "image_seq_length", None)
        self._image_token_id = config.image_token_id
        self._merge = getattr(getattr(config, "vision_config", None), "spatial_merge_size", 1)
        # InternVL's processor cuts into tiles whatever its image processor's settings say, and marks each image.
        self._settings = {"crop_to_patches": True} if hasattr(image_processor, "crop_to_patches") else {}
        self._marks = [getattr(tokenizer, f"{end}_image_token", None) or "" for end in ("start", "end")]
        self.image_token = tokenizer.convert_ids_to_tokens(self._image_token_id)

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's template."""
        return getattr(self.tokenizer, "chat_template", None)

    def apply_chat_template(self, conversation: Any, **settings: Any) -> str:
        """The conversation as text, one placeholder per image."""
        return str(self.tokenizer.apply_chat_template(conversation, tokenize=False, **settings))

    def batch_decode(self, *args: Any, **settings: Any) -> list[str]:
        """The tokenizer's `batch_decode`."""
        return list(self.tokenizer.batch_decode(*args, **settings))

    def __call__(self, images: Sequence[Sequence[Any]], text: Sequence[str], **settings: Any) -> dict[str, Any]:
        """Model inputs for a batch; `images` holds a list per text."""
        flat = [image for group in images for image in group]
        pixels = dict(self.image_processor(images=flat, return_tensors="pt", **self._settings))
        counts = self._visual_tokens(pixels, len(flat))
        expanded = self._expand(text, counts)
        tokens = self.tokenizer(expanded, **settings)
        inputs = {**pixels, **tokens}
        if "image_grid_thw" in inputs:  # these models build their positions from the kind of each token
            inputs["mm_token_type_ids"] = (tokens["input_ids"] == self._image_token_id).long()
        return inputs

    def _visual_tokens(self, pixels: dict[str, Any], images: int) -> list[int]:
        if "image_grid_thw" in pixels:
            return [int(grid.prod()) // self._merge**2 for grid in pixels["image_grid_thw"]]
        tiles = pixels.pop("num_patches", torch.ones(images, dtype=torch.long))  # the models take no such argument
        one_each = len(tiles) == images and int(sum(tiles)) == len(pixels.get("pixel_values", ()))
        if self._sequence_length is None or not one_each:
            raise UnsupportedModelError(
                f"this model's processor cannot be built ({self._missing}), and its visual-token rule is its own",
                "Install the package",
            )
        return [int(count) * self._sequence_length for count in tiles]

    def _expand(self, text: Sequence[str], counts: list[int]) -> list[str]:
        """Each placeholder repeated as often as its image has visual tokens, between the model's marks."""
        placeholders = sum(one.count(self.image_token) for one in text)
        if placeholders != len(counts):
            raise InputError(
                f"the prompts have {placeholders} image placeholders for {len(counts)} images",
                "Check the prompts' text",
            )
        remaining = iter(counts)
        split = [one.split(self.image_token) for one in text]
        start, end = self._marks
        return [
            parts[0] + "".join(start + self.image_token * next(remaining) + end + part for part in parts[1:])
            for parts in split
        ]
