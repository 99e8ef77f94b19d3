"""Where a picture's visual tokens lie in it, and which of them a schedule keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from calibrate.inputs.encode import Inputs
from calibrate.inputs.identity import Model
from planner.report.overlay import grid_of
from planner.report.samples import Kept
from planner.schedule import Schedule


def grid(inputs: Inputs, known: Model) -> tuple[int, int]:
    """Rows and columns of the visual tokens of a prompt about one image.

    Raises:
        InputError: they do not form one grid.
    """
    visual = sum(int((inputs["input_ids"] == token).sum()) for token in known.visual_ids)
    thw = inputs["image_grid_thw"][0].tolist() if "image_grid_thw" in inputs else None
    rule = known.spec.images
    if rule and rule.kind == "shrink" and "image_sizes" in inputs:  # Pixtral's processor tells pixels
        thw = [1, *(side // rule.patch for side in inputs["image_sizes"][0].tolist())]
    return grid_of(visual, thw, rule.merge if rule else 1, rule.tile_tokens if rule else 0)


def seen(picture: Image.Image, processor: Any) -> Image.Image:
    """What of a picture the model sees: its middle, where the image processor crops (CLIP's does)."""
    settings = getattr(processor, "image_processor", None)
    shortest, crop = _value(settings, "size", "shortest_edge"), getattr(settings, "crop_size", None)
    if not getattr(settings, "do_center_crop", False) or not shortest or not crop:
        return picture
    scale = min(picture.size) / shortest
    width, height = (min(scale * _value(settings, "crop_size", name), side)
                     for name, side in zip(("width", "height"), picture.size, strict=True))  # fmt: skip
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    return picture.crop((round(left), round(top), round(left + width), round(top + height)))


def kept_patches(schedule: Schedule, kept: Sequence[Sequence[Sequence[int]]], places: tuple[int, int]) -> list[Kept]:
    """What each selection among visual tokens kept of the first sample; one that leaves nothing is left out.

    Args:
        kept: as `planner.runtime.Handle.kept` tells after a prefill.
        places: rows and columns of patches.
    """
    entry = [] if schedule.entry is None else [("before layer 0", schedule.entry.of)]
    inner = [(f"after layer {stage.last - 1:g}", one.of) for stage in schedule.stages for one in stage.selects]
    return [
        Kept(title, tuple(sorted(samples[0])), places)
        for (title, of), samples in zip(entry + inner, kept, strict=True)
        if of == "visual" and samples[0]
    ]


def _value(settings: Any, setting: str, name: str) -> float:
    """A number within a setting, which is a mapping or an object; 0 where it is missing."""
    found = getattr(settings, setting, None)
    value = found.get(name) if isinstance(found, dict) else getattr(found, name, None)
    return float(value or 0)
