"""Pixel shuffle: squares of patches become one token, tile by tile."""

from __future__ import annotations

from typing import Literal

from planner.spec.config import Config
from planner.spec.facts import ImageRule, Projector, Tower
from planner.spec.projectors.parts import ProjectorParts, two_layers


def internvl(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle by the inverse of `downsample_ratio`; twelve tiles at most or as it says, and a thumbnail."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    merge = round(1 / float(model.get("downsample_ratio", default=0.5)))
    middle = model.size("projector_hidden_size", default=hidden)
    projector = Projector(merge * merge, merge * merge * tower.hidden_size * middle + middle * hidden)
    tokens = (side // patch // merge) ** 2
    return projector, ImageRule(
        "aspect", side, patch, merge, tile_tokens=tokens, max_tiles=model.size("max_dynamic_patch", default=12)
    )


def idefics3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle and one layer; tiles of an image enlarged to a longest edge, and the whole image once more."""
    side, patch, merge = vision.side("image_size"), vision.side("patch_size"), model.size("scale_factor")
    projector = Projector(merge * merge, merge * merge * tower.hidden_size * hidden)
    tokens = (side // patch // merge) ** 2
    return projector, ImageRule("split", side, patch, merge, tile_tokens=tokens, longest_edge=4 * side)


def shuffled_gate(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Aya Vision and Cohere2 Vision: pixel shuffle and a gated layer of stated width; up to twelve tiles and a
    thumbnail."""
    side, patch, merge = vision.side("image_size"), vision.side("patch_size"), model.size("downsample_factor")
    inner = model.size("alignment_intermediate_size", default=hidden)
    kind: Literal["aspect", "fit"] = model.traits.get("tiling", "fit")
    # An odd number of patches a side is padded before merging.
    tokens = (-(-(side // patch) // merge)) ** 2
    projector = Projector(merge * merge, merge * merge * tower.hidden_size * inner + (inner // 2) * hidden)
    return projector, ImageRule(kind, side, patch, merge, tile_tokens=tokens, max_tiles=12)


def llama4(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle and two layers inside the tower, then one matrix."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    merge = round(1 / float(vision.get("pixel_shuffle_ratio", default=0.5)))
    inner, out = vision.size("projector_input_dim"), vision.size("projector_output_dim")
    adapter = vision.size("intermediate_size") * inner + out * out
    projector = Projector(merge * merge, adapter + vision.size("vision_output_dim") * hidden)
    tokens = (side // patch // merge) ** 2
    return projector, ImageRule("fit", side, patch, merge, tile_tokens=tokens, max_tiles=16)


def granite_docling(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Idefics 3's pixel shuffle on the coarse path, one matrix more, and a merger for every deepstack layer."""
    side, patch, merge = vision.side("image_size"), vision.side("patch_size"), vision.size("scale_factor")
    out, inner = vision.size("out_hidden_size"), merge * merge * tower.hidden_size
    mergers = len(vision.numbers("deepstack_visual_indexes"))
    projector = Projector(merge * merge, inner * out + out * out + mergers * two_layers(inner, out))
    tokens = (side // patch // merge) ** 2
    return projector, ImageRule("split", side, patch, merge, tile_tokens=tokens, longest_edge=4 * side)


def lfm2_vl(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle and two layers of stated width."""
    patch, merge, middle = (
        vision.side("patch_size"),
        model.size("downsample_factor"),
        model.size("projector_hidden_size"),
    )
    side = 32 * patch
    rule = ImageRule(
        "large", side, patch, merge, tile_tokens=(side // patch // merge) ** 2, min_pixels=64 * (patch * merge) ** 2,
        max_pixels=256 * (patch * merge) ** 2, max_tiles=10, max_patches=(side // patch) ** 2,
    )  # fmt: skip
    return Projector(merge * merge, merge * merge * tower.hidden_size * middle + middle * hidden), rule
