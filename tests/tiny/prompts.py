"""Inputs for the tiny models: what a processor would give, made by hand from a seed.

A sample is ``system text | image | text | image | ... | question text``; a batch is samples padded on the left.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from tests.tiny.configs import (
    FAMILIES,
    FIRST_TEXT,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    LAST_TEXT,
    PAD,
    SIDE,
    VISION_END,
    VISION_START,
)
from tests.tiny.extra import EXTRA

#: Families without an image.
TEXT_ONLY = ("llama", "mixtral")
_QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v")
_ANYRES = ("llava_next", "llava_onevision")
#: Picture sides other than SIDE.
_PIXELS = dict.fromkeys(("internvl", "idefics3", "smolvlm", "gemma3", "aya_vision", "cohere2_vision", "llama4"), 32)
#: Image sizes (height, width), or patch grids for the Qwen kind, in the order a sample's images take them.
_ANYRES_SIZES = ((24, 48), (32, 48))
_GRIDS = ((4, 8), (8, 4))
_RAGGED_GRIDS = ((8, 6), (4, 4))
_PIXTRAL_SIZES = ((32, 32), (24, 32))
_TEXT_BETWEEN = 2


@dataclass
class Sample:
    """One prompt before batching."""

    ids: list[int] = field(default_factory=list)
    images: list[dict[str, torch.Tensor]] = field(default_factory=list)


def inputs(
    family: str,
    batch: int = 1,
    text: int = 7,
    system: int = 3,
    images: int = 1,
    left_pad: int = 0,
    ragged: bool = False,
    seed: int = 0,
    only: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, torch.Tensor]:
    """Keyword arguments for a tiny model's forward.

    Args:
        text, system: text tokens after the last and before the first image.
        images: images per sample (none for a text-only prompt; mllama has at most one).
        left_pad: invalid columns in front of sample 0; the others have as many more text tokens before the image.
        ragged: odd samples get another image size (one more image where the size is fixed) and three more text tokens.
        only: give this sample of the batch alone and unpadded, with the same contents.
    """
    samples = []
    for index in range(batch):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        odd = ragged and index % 2 == 1
        before = system + (left_pad if index else 0)
        samples.append(_sample(family, generator, before, text + 3 * odd, images, odd, dtype))
    if only is not None:
        return _collate(family, [samples[only]], 0)
    return _collate(family, samples, left_pad)


def _sample(
    family: str, generator: torch.Generator, system: int, text: int, images: int, odd: bool, dtype: torch.dtype
) -> Sample:
    def words(count: int) -> list[int]:
        return torch.randint(FIRST_TEXT, LAST_TEXT, (count,), generator=generator).tolist()

    sample = Sample(ids=words(system))
    if family in TEXT_ONLY:
        sample.ids += words(text)
        return sample
    extra = odd and images > 0 and family not in EXTRA and family not in (*_QWEN, *_ANYRES, "mistral3", "mllama")
    for number in range(images + extra):
        if number:
            sample.ids += words(_TEXT_BETWEEN)
        picture, tokens = _image(family, generator, number, odd, dtype)
        sample.images.append(picture)
        sample.ids += _span(family, tokens)
    sample.ids += words(text)
    return sample


def _span(family: str, tokens: int) -> list[int]:
    """The visual tokens of one image with the family's markers around them."""
    inside = [IMAGE] * tokens
    if family in EXTRA:
        return [VISION_START, *inside, VISION_END] if EXTRA[family].marks else inside
    if family == "glm4v":
        return [IMAGE_START, *inside, IMAGE_END]
    if family in _QWEN:
        return [VISION_START, *inside, VISION_END]
    if family in ("gemma3", "llama4"):
        return [IMAGE_START, *inside, IMAGE_END]
    return [IMAGE] if family == "mllama" else inside


def _image(
    family: str, generator: torch.Generator, number: int, odd: bool, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], int]:
    """Pixels and sizes of one image, and how many visual tokens it becomes."""

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    if family in EXTRA:
        return EXTRA[family].picture(noise, number, odd)
    if family in _QWEN:
        rows, columns = (_RAGGED_GRIDS if odd else _GRIDS)[number % 2]
        patches = noise(rows * columns, 3 * 2 * 4 * 4)
        return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, columns]])}, rows * columns // 4
    if family in _ANYRES:
        height, width = _ANYRES_SIZES[(number + odd) % 2]
        # Base view and tiles of 24 x 24 in 3 x 3 patches. 24 x 48 fills 1 x 2 tiles: 3 rows of 6 patches and a newline.
        # 32 x 48 goes into 2 x 2 tiles, 6 x 6 patches, of which unpadding leaves 4 rows of 6 and a newline.
        tiles, tokens = (2, 9 + 3 * 7) if height == 24 else (4, 9 + 4 * 7)
        return {"pixel_values": noise(1, 1 + tiles, 3, 24, 24), "image_sizes": torch.tensor([[height, width]])}, tokens
    if family == "mistral3":
        height, width = _PIXTRAL_SIZES[(number + odd) % 2]
        # Patches of 4 x 4, merged 2 x 2.
        return {
            "pixel_values": noise(1, 3, height, width),
            "image_sizes": torch.tensor([[height, width]]),
        }, height * width // 64
    if family == "mllama":
        return {
            "pixel_values": noise(1, 1, 2, 3, SIDE, SIDE),
            "aspect_ratio_ids": torch.tensor([[2]]),
            "aspect_ratio_mask": torch.ones(1, 1, 2, dtype=torch.long),
        }, 0
    side = _PIXELS.get(family, SIDE)
    name = "pixel_values_images" if family == "video_llava" else "pixel_values"
    # (24 / 6)^2 patches, or (32 / 4)^2 merged 2 x 2.
    return {name: noise(1, 3, side, side)}, 16


def _collate(family: str, samples: list[Sample], left_pad: int) -> dict[str, torch.Tensor]:
    width = max(len(sample.ids) for sample in samples)
    width = max(width, left_pad + len(samples[0].ids))
    ids = torch.full((len(samples), width), PAD)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, width - len(sample.ids) :] = torch.tensor(sample.ids)
        mask[row, width - len(sample.ids) :] = 1
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    pictures = [picture for sample in samples for picture in sample.images]
    if not pictures:
        return batch
    batch |= _stack(family, samples, pictures)
    is_image = (ids == IMAGE).long()
    typed = family in _QWEN or (family in EXTRA and EXTRA[family].typed)
    if typed and _takes(family, "mm_token_type_ids"):
        batch["mm_token_type_ids"] = is_image.int()
    if typed and _takes(family, "moe_mm_token_type_ids"):
        # ERNIE's processor takes the marks around a picture for visual too.
        batch["moe_mm_token_type_ids"] = (is_image + (ids == VISION_START) + (ids == VISION_END)).int()
    if _takes(family, "image_embeds_position_mask"):
        batch["image_embeds_position_mask"] = is_image
    if _takes(family, "qformer_input_ids"):
        # The instruction once more, whose words a tokenizer of its own makes; here the same.
        batch["qformer_input_ids"] = torch.stack([row[row != IMAGE] for row in ids])
    if family in ("gemma3", "shieldgemma2"):
        batch["token_type_ids"] = is_image
    if family in ("paligemma", "paligemma2"):
        batch["token_type_ids"] = torch.zeros_like(ids)
    if family == "mllama":
        seen = (is_image.cumsum(-1) > 0).long() * mask
        batch["cross_attention_mask"] = seen[:, :, None, None].expand(-1, -1, 1, 2).contiguous()
    return batch


def _takes(family: str, argument: str) -> bool:
    """Older releases find the images in `input_ids`, and `generate` refuses arguments that a model does not know."""
    class_name = EXTRA[family].class_name if family in EXTRA else FAMILIES[family][0]
    return argument in inspect.signature(getattr(transformers, class_name).forward).parameters


def _stack(family: str, samples: list[Sample], pictures: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    if family in ("idefics2", "idefics3", "smolvlm", "granite_docling"):
        # One row of images a sample; blank ones fill up, and the model drops them.
        most = max(len(sample.images) for sample in samples)
        blank = torch.zeros_like(pictures[0]["pixel_values"])
        rows = [
            torch.cat([*(p["pixel_values"] for p in sample.images), *[blank] * (most - len(sample.images))])
            for sample in samples
        ]
        stacked = {"pixel_values": torch.stack(rows)}
        if family == "granite_docling":
            counts = [len(sample.images) for sample in samples]
            stacked["pixel_attention_mask"] = torch.tensor([[n < count for n in range(most)] for count in counts])
        return stacked
    stacked = {}
    for name in pictures[0]:
        parts = [picture[name] for picture in pictures]
        if name == "pixel_values" and family in (*_ANYRES, "mistral3", "mistral_large4", "lighton_ocr"):
            parts = _pad_to_common_shape(parts)
        stacked[name] = torch.cat(parts, EXTRA[family].join if family in EXTRA and name == "pixel_values" else 0)
    return stacked


def _pad_to_common_shape(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    shape = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    padded = []
    for part in parts:
        filled = part.new_zeros(shape)
        filled[tuple(slice(0, size) for size in part.shape)] = part
        padded.append(filled)
    return padded
