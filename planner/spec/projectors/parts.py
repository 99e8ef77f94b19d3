"""What readers of projectors have in common."""

from __future__ import annotations

from planner.spec.config import Config
from planner.spec.facts import ImageRule, Projector, Tower

ProjectorParts = tuple[Projector, ImageRule]


def two_layers(inner: int, hidden: int) -> int:
    return inner * hidden + hidden * hidden


def feature_layers(model: Config) -> int:
    return max(len(model.numbers("vision_feature_layer", "vision_feature_layers")), 1)


def unread_blocks(model: Config, tower: Tower) -> int | None:
    """Blocks of the tower behind the one whose output is read; None where several are."""
    chosen = model.numbers("vision_feature_layer", "vision_feature_layers")
    if len(chosen) > 1:
        return None
    depth = sum(block.repeat for block in tower.blocks)
    # Hidden states: those ahead of the first block, then those behind each.
    return (depth - chosen[0] if chosen[0] >= 0 else -chosen[0] - 1) if chosen else 0


def merge_of(vision: Config) -> int:
    return vision.side("spatial_merge_size", "merge_kernel_size", "merge_size")


def near_its_size(patch: int, merge: int, least: int, most: int, frames: int = 1) -> ImageRule:
    side = patch * merge
    return ImageRule("resize", side, patch, merge, min_pixels=least, max_pixels=most, frames=frames)
