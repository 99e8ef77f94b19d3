"""Patches side by side become one token, through layers of matrices."""

from __future__ import annotations

from dataclasses import replace

from planner.errors import UnsupportedModelError
from planner.spec.config import Config
from planner.spec.facts import ImageRule, Projector, Tower
from planner.spec.projectors.parts import ProjectorParts, feature_layers, merge_of, near_its_size, two_layers


def patch_merger(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Qwen2-VL's and 2.5-VL's merger: four patches side by side, through two layers."""
    merge = vision.size("spatial_merge_size")
    inner = merge * merge * tower.hidden_size
    out = vision.size("out_hidden_size", default=hidden)
    projector = Projector(merge * merge, inner * inner + inner * out)
    return projector, near_its_size(vision.side("patch_size"), merge, 56 * 56, 12_845_056)


def deepstacked(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Qwen3-VL: the same merger once more for every deepstack layer."""
    projector, _ = patch_merger(model, vision, tower, hidden)
    mergers = 1 + len(vision.numbers("deepstack_visual_indexes"))
    rule = near_its_size(vision.side("patch_size"), vision.size("spatial_merge_size"), 65_536, 16_777_216)
    return Projector(projector.merge, mergers * projector.macs), rule


def patch_merger_projected(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Qwen2.5-VL's tower with its own merger, and one more matrix."""
    out = vision.size("out_hidden_size")
    projector, rule = patch_merger(model, vision, tower, out)
    return Projector(projector.merge, projector.macs + out * hidden), rule


def glm4v(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """A strided convolution merges, then a projection and a gated block."""
    merge, out = vision.size("spatial_merge_size"), vision.size("out_hidden_size")
    inner = merge * merge * tower.hidden_size
    wide = model.traits.get("inner_times_channels")
    middle = out * vision.size("in_channels") if wide else vision.size("intermediate_size")
    projector = Projector(merge * merge, inner * out + out * out + 3 * out * middle)
    return projector, near_its_size(vision.side("patch_size"), merge, 112 * 112, 9_633_792, frames=2)


def merged(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Patches side by side through two layers; the inner one as wide as what comes in, unless it is stated."""
    merge, patch = merge_of(vision), vision.side("patch_size")
    inner = merge * merge * tower.hidden_size
    middle = model.size("projector_hidden_size", default=inner)
    return Projector(merge * merge, inner * middle + middle * hidden), near_its_size(patch, merge, 56 * 56, 12_845_056)


def hunyuan(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """A strided convolution merges and one more widens, then a matrix, on what ends a row too."""
    merge, width = vision.size("spatial_merge_size"), tower.hidden_size
    out = 4 * width * hidden
    projector = Projector(merge * merge, merge * merge * width * 2 * width + 8 * width * width + out, row_macs=out)
    rule = near_its_size(vision.side("patch_size"), merge, 512 * 512, 2048 * 2048)
    return projector, replace(rule, kind="lined")


def muse_glimmer(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle, two layers of one width, and a matrix."""
    merge, out, middle = vision.size("merge_size"), model.size("out_hidden_size"), model.size("projector_hidden_size")
    projector = Projector(merge * merge, out * middle + middle * middle + middle * hidden)
    return projector, near_its_size(vision.side("patch_size"), merge, 56 * 56, 12_845_056)


def mistral3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """A patch merger back to the tower's width, then two layers."""
    patch, merge, width = vision.side("patch_size"), model.size("spatial_merge_size"), tower.hidden_size
    projector = Projector(
        merge * merge, merge * merge * width * width + two_layers(feature_layers(model) * width, hidden)
    )
    edge = vision.side("image_size")
    return projector, ImageRule("shrink", side=patch * merge, patch=patch, merge=merge, longest_edge=edge)


def minicpm(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Four tokens side by side through two layers, behind the tower's own merging layer where it has one."""
    patch, inner = vision.side("patch_size"), 4 * tower.hidden_size
    merge = 4 if any(block.patches > 1 for block in tower.blocks) else 2
    if model.size("merger_times", default=1) != 1 or (model.get("downsample_mode") == "4x") != (merge == 2):
        raise UnsupportedModelError(
            "this way of merging ('merger_times', 'downsample_mode') is not known", "Known: the family's own"
        )
    rule = ImageRule("slices", merge * patch, patch, merge, max_tiles=9, longest_edge=model.side("image_size"))
    return Projector(merge * merge, inner * inner + inner * hidden), rule


def projected_then_merged(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """MiniMax M3: two layers on every patch, and two on every square of what comes out."""
    merge, middle = vision.size("spatial_merge_size"), model.size("projector_hidden_size")
    macs = merge * merge * hidden * middle + middle * hidden
    rule = near_its_size(vision.side("patch_size"), merge, 56 * 56, 28 * 28 * 1280)
    return Projector(merge * merge, macs, patch_macs=tower.hidden_size * middle + middle * hidden), rule


def ernie(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Two layers on a square of patches, two on a pair of frames, of which a picture is both, and one matrix."""
    merge, frames = vision.size("spatial_merge_size"), vision.size("temporal_merge_size")
    inner = merge * merge * tower.hidden_size
    macs = 2 * inner * inner + frames * inner * inner + inner * inner + inner * hidden
    return Projector(merge * merge, macs), near_its_size(vision.side("patch_size"), merge, 56 * 56, 28 * 28 * 6177)


def deepseek_vl2(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Squares of patches, an odd side filled up, through a chain of layers; tiles of candidate resolutions."""
    said, side, patch = model.block("projector_config"), vision.side("image_size"), vision.side("patch_size")
    merge, depth = said.size("downsample_ratio", default=2), said.size("depth", default=2)
    out = said.size("n_embed", default=hidden)
    inner = out * said.size("mlp_ratio", default=1)
    macs = merge * merge * tower.hidden_size * inner + max(depth - 2, 0) * inner * inner + inner * out
    resolutions = tuple((int(height), int(width)) for width, height in model.get("candidate_resolutions"))
    rule = ImageRule("panels", side, patch, merge, resolutions=resolutions, view=side)
    return Projector(merge * merge, macs), rule


def deepseek_ocr(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """One matrix on what both towers make of sixteen patches; its usual mode is tiles of 640 pixels and a view of
    1,024."""
    out = vision.block("encoder_config").size("hidden_size", default=1024)
    out += (vision.block("sam_config").numbers("downsample_channels") or (1024,))[-1]
    rule = ImageRule("document", 640, _sam_patch(vision), 4, max_tiles=6, view=1024)
    return Projector(16, out * hidden), rule


def _sam_patch(vision: Config) -> int:
    return vision.block("sam_config").size("patch_size", default=vision.size("patch_size"))


def deepseek_ocr2(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """One matrix on the queries, one for every sixteen patches."""
    rule = ImageRule("pages", 768, _sam_patch(vision), 4, max_tiles=6, view=1024)
    return Projector(16, vision.block("encoder_config").size("hidden_size", default=4096) * hidden), rule


def step3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """One matrix on what the tower's convolutions make of sixteen patches."""
    view, patch = vision.side("image_size"), vision.side("patch_size")
    rule = ImageRule("windows", 504, patch, 4, longest_edge=3024, view=view)
    return Projector(16, 4 * tower.hidden_size * hidden), rule
