"""Averages and convolutions over squares of patches."""

from __future__ import annotations

from planner.spec.config import Config
from planner.spec.facts import ImageRule, Projector, Tower
from planner.spec.projectors.parts import ProjectorParts, two_layers


def gemma3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Average pooling to a fixed number of tokens, then one matrix."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    tokens = model.size("mm_tokens_per_image", "vision_soft_tokens_per_image")
    projector = Projector((side // patch) ** 2 // tokens, tower.hidden_size * hidden)
    return projector, ImageRule("fixed", side, patch, tile_tokens=tokens)


def gemma4(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Averages over squares of patches, then one matrix."""
    patch, merge = vision.side("patch_size"), vision.size("pooling_kernel_size")
    rule = ImageRule("budget", patch * merge, patch, merge, max_patches=280 * merge * merge)
    return Projector(merge * merge, tower.hidden_size * hidden), rule


def mobilevlm(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """MobileVLM V2: two layers on every patch, 2x2 average pooling, then a depthwise 3x3 convolution."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(4, macs=9 * hidden, patch_macs=two_layers(tower.hidden_size, hidden))
    return projector, ImageRule("fixed", side, patch, merge=2, tile_tokens=(side // patch // 2) ** 2)


def got_ocr2(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Two convolutions of three by three that halve each side, and one matrix."""
    side, patch, channels = vision.side("image_size"), vision.side("patch_size"), vision.size("output_channels")
    halving = 4 * 9 * channels * 2 * channels + 9 * 2 * channels * hidden
    projector = Projector(16, halving + hidden * hidden)
    return projector, ImageRule("fixed", side, patch, 4, tile_tokens=(side // patch // 4) ** 2)


def phi4(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Averages of squares, and two layers on them and on what separates their rows."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    rule = ImageRule("masked", side, patch, 2, max_tiles=36, view=side)
    return Projector(4, two_layers(tower.hidden_size, hidden)), rule
