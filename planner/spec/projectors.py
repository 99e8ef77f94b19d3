"""From vision tower to decoder: the projector's facts and the rule that turns pixels into tokens, one reader per kind;
a family's file names its reader (`planner.spec.config`).

Readers take the configurations of the whole model and of its tower, the tower's facts, and the decoder's hidden size.
"""

from __future__ import annotations

from typing import Literal

from planner.errors import InputError, UnsupportedModelError
from planner.spec.config import Config
from planner.spec.facts import ImageRule, Projector, Tower

ProjectorParts = tuple[Projector, ImageRule]


def _two_layers(inner: int, hidden: int) -> int:
    return inner * hidden + hidden * hidden


def _feature_layers(model: Config) -> int:
    return max(len(model.numbers("vision_feature_layer", "vision_feature_layers")), 1)


def _keeps_class_token(model: Config, tower: Tower) -> bool:
    strategy = model.get("vision_feature_select_strategy", default="default")
    if strategy not in ("default", "full"):
        raise UnsupportedModelError(f"vision_feature_select_strategy '{strategy}' is not known", "Known: default, full")
    return strategy == "full" and tower.extra_tokens > 0


def llava(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    class_token = _keeps_class_token(model, tower)
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(1, _two_layers(_feature_layers(model) * tower.hidden_size, hidden), class_token=class_token)
    return projector, ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2 + class_token)


def vipllava(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(1, _two_layers(_feature_layers(model) * tower.hidden_size, hidden))
    return projector, ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2)


def mobilevlm(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """MobileVLM V2: two layers on every patch, 2x2 average pooling, then a depthwise 3x3 convolution."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(4, macs=9 * hidden, patch_macs=_two_layers(tower.hidden_size, hidden))
    return projector, ImageRule("fixed", side, patch, merge=2, tile_tokens=(side // patch // 2) ** 2)


def anyres(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    projector, fixed = llava(model, vision, tower, hidden)
    pinpoints = model.get("image_grid_pinpoints")
    if not pinpoints:
        raise InputError(
            f"the configuration of '{model.where}' has no 'image_grid_pinpoints'", "Give them, or the family's defaults"
        )
    resolutions = tuple((int(height), int(width)) for height, width in pinpoints)
    aspect = str(model.get("vision_aspect_ratio", default=""))
    limit = int(aspect.rpartition("_")[2]) if aspect.startswith("anyres_max_") else 0
    return projector, ImageRule(
        "anyres", fixed.side, fixed.patch, tile_tokens=fixed.tile_tokens, resolutions=resolutions, limit=limit
    )


def patch_merger(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Qwen2-VL's and 2.5-VL's merger: four patches side by side, through two layers."""
    merge = vision.size("spatial_merge_size")
    inner = merge * merge * tower.hidden_size
    out = vision.size("out_hidden_size", default=hidden)
    projector = Projector(merge * merge, inner * inner + inner * out)
    return projector, _resize(vision.side("patch_size"), merge, 56 * 56, 28 * 28 * 1280)


def deepstacked(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Qwen3-VL: the same merger once more for every deepstack layer."""
    projector, _ = patch_merger(model, vision, tower, hidden)
    mergers = 1 + len(vision.numbers("deepstack_visual_indexes"))
    rule = _resize(vision.side("patch_size"), vision.size("spatial_merge_size"), 65_536, 16_777_216)
    return Projector(projector.merge, mergers * projector.macs), rule


def glm4v(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """A strided convolution merges, then a projection and a gated block."""
    merge, out = vision.size("spatial_merge_size"), vision.size("out_hidden_size")
    inner = merge * merge * tower.hidden_size
    projector = Projector(merge * merge, inner * out + out * out + 3 * out * vision.size("intermediate_size"))
    return projector, _resize(vision.side("patch_size"), merge, 112 * 112, 28 * 28 * 15_000, frames=2)


def _resize(patch: int, merge: int, least: int, most: int, frames: int = 1) -> ImageRule:
    side = patch * merge
    return ImageRule("resize", side, patch, merge, min_pixels=least, max_pixels=most, frames=frames)


def internvl(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle by the inverse of `downsample_ratio`; up to twelve tiles and a thumbnail."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    merge = round(1 / float(model.get("downsample_ratio", default=0.5)))
    projector = Projector(merge * merge, _two_layers(merge * merge * tower.hidden_size, hidden))
    tokens = (side // patch // merge) ** 2
    return projector, ImageRule("aspect", side, patch, merge, tile_tokens=tokens, max_tiles=12)


def idefics3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle and one layer; tiles of an image enlarged to a longest edge, and the whole image once more."""
    side, patch, merge = vision.side("image_size"), vision.side("patch_size"), model.size("scale_factor")
    projector = Projector(merge * merge, merge * merge * tower.hidden_size * hidden)
    tokens = (side // patch // merge) ** 2
    return projector, ImageRule("split", side, patch, merge, tile_tokens=tokens, longest_edge=4 * side)


def gemma3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Average pooling to a fixed number of tokens, then one matrix."""
    side, patch, tokens = vision.side("image_size"), vision.side("patch_size"), model.size("mm_tokens_per_image")
    projector = Projector((side // patch) ** 2 // tokens, tower.hidden_size * hidden)
    return projector, ImageRule("fixed", side, patch, tile_tokens=tokens)


def paligemma(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(1, tower.hidden_size * vision.size("projection_dim", default=hidden))
    return projector, ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2)


def mistral3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """A patch merger back to the tower's width, then two layers."""
    patch, merge, width = vision.side("patch_size"), model.size("spatial_merge_size"), tower.hidden_size
    projector = Projector(
        merge * merge, merge * merge * width * width + _two_layers(_feature_layers(model) * width, hidden)
    )
    edge = vision.side("image_size")
    return projector, ImageRule("shrink", side=patch * merge, patch=patch, merge=merge, longest_edge=edge)


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


def mllama(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """One matrix over the last state beside several earlier ones; the class token is a visual token too."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(1, vision.size("vision_output_dim") * hidden, class_token=True)
    tokens = (side // patch) ** 2 + 1
    return projector, ImageRule("grid", side, patch, tile_tokens=tokens, max_tiles=vision.size("max_num_tiles"))
