"""Patches become words of a visual vocabulary."""

from __future__ import annotations

from planner.spec.config import Config
from planner.spec.facts import ImageRule, Projector, Tower
from planner.spec.projectors.parts import ProjectorParts


def quantised(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Chameleon's patches are words of the decoder's own vocabulary, which are looked up."""
    side, patch = vision.side("resolution"), 2 ** (len(vision.numbers("channel_multiplier")) - 1)
    return Projector(1, 0), ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2)


def ovis2(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Patches become weights over a visual vocabulary, and those the weighted mean of its embeddings."""
    side, patch, merge = vision.side("image_size"), vision.side("patch_size"), vision.size("hidden_stride")
    words = vision.size("vocab_size")
    head = merge * merge * tower.hidden_size * (words - vision.size("num_visual_indicator_tokens"))
    tokens = (-(-(side // patch) // merge)) ** 2
    rule = ImageRule("cover", side, patch, merge, tile_tokens=tokens, max_tiles=9)
    return Projector(merge * merge, head + words * model.size("hidden_size", default=hidden)), rule
