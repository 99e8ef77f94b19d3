"""Tokens merged inside the vision encoder: how many are left, and what the encoder then costs (ToMe).

Block i of a tile of n tokens computes attention on all n, compares every other one with the rest by one head's worth of
key, and runs its feed-forward on the n - m_i that are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from planner.errors import InputError, ScheduleError, UnsupportedModelError
from planner.schedule import TowerMerge
from planner.spec.encoded import Encoded
from planner.spec.facts import Block, ModelSpec, Projector, Tower
from planner.workload import Workload


def merged_workload(spec: ModelSpec, workload: Workload, merge: TowerMerge | None) -> Workload:
    """A workload as the decoder gets it.

    Raises:
        UnsupportedModelError: the model's visual tokens are not the patches of whole tiles, one by one.
        ScheduleError: a block is to merge more pairs than it has, or there is no such block.
        InputError: the visual tokens are not those of whole tiles.
    """
    if merge is None or not workload.visual_tokens:
        return workload
    tower, projector = _mergeable(spec)
    tile = spec.images.tile_tokens if spec.images is not None else 0
    tiles, rest = divmod(workload.visual_tokens, tile)
    if rest or workload.videos or (workload.images and tiles != len(workload.images)):
        raise InputError(
            f"{workload.visual_tokens} visual tokens are not those of whole pictures, {tile} each, whose tokens "
            "could be merged inside the vision encoder",
            f"Give a multiple of {tile}",
        )
    start = tile + (0 if projector.class_token else tower.extra_tokens)
    *_, left = _left(tower, start, merge.merged[: block_count(tower) - (projector.unread_blocks or 0)])
    return workload.model_copy(update={"visual_tokens": tiles * (tile - (start - left))})


def block_count(tower: Tower) -> int:
    """Encoder layers."""
    return sum(block.repeat for block in tower.blocks)


def merged_vision_macs(spec: ModelSpec, images: Sequence[Encoded], merged: tuple[int, ...]) -> tuple[int, int]:
    """Multiply-adds of the tower and of the projector over the images of one request."""
    tower, projector = _mergeable(spec)
    seen = projected = 0
    for rows, columns in (tile for image in images for tile in image.tiles):
        count = rows * columns + tower.extra_tokens
        lefts = tuple(_left(tower, count, merged))
        seen += tower.patch_macs * rows * columns + tower.tile_macs + tower.token_macs * lefts[-1]
        seen += sum(_block_macs(block, *pair) for block, pair in zip(_blocks(tower), pairwise(lefts), strict=True))
        read = lefts[block_count(tower) - (projector.unread_blocks or 0)]
        projected += (projector.macs + projector.patch_macs) * (
            read - (0 if projector.class_token else tower.extra_tokens)
        )
    return seen, projected


def _block_macs(block: Block, count: int, left: int) -> int:
    compared = (count + 1) // 2 * (count // 2) if left < count else 0
    attended = (block.macs - block.fed_macs) * count + block.pair_macs * count * count
    return attended + block.match_macs * compared + block.fed_macs * left


def _left(tower: Tower, count: int, merged: Sequence[int]) -> Iterator[int]:
    """Tokens of a tile ahead of each block and behind the last; class tokens are never merged."""
    blocks = block_count(tower)
    if len(merged) > blocks:
        raise ScheduleError(
            f"tokens are merged in {len(merged)} blocks of the vision encoder, and it has {blocks}",
            "Say how many in each block, or in the first ones",
        )
    yield count
    for index in range(blocks):
        pairs = merged[index] if index < len(merged) else 0
        most = (count - tower.extra_tokens) // 2
        if pairs > most:
            raise ScheduleError(
                f"block {index} of the vision encoder cannot merge {pairs} pairs: of {count} tokens at most {most} are",
                "Merge fewer there",
            )
        count -= pairs
        yield count


def _blocks(tower: Tower) -> Iterator[Block]:
    for block in tower.blocks:
        yield from (block,) * block.repeat


def _mergeable(spec: ModelSpec) -> tuple[Tower, Projector]:
    tower, projector, images = spec.vision, spec.projector, spec.images
    if tower is None or projector is None or images is None:
        raise UnsupportedModelError(f"'{spec.family}' is a text model, which merges no visual tokens", "Use a VLM")
    if images.kind != "fixed" or projector.merge > 1 or projector.latents or projector.unread_blocks is None:
        raise UnsupportedModelError(
            f"what '{spec.family}' makes of its vision encoder's output needs every patch in its place, so tokens "
            "cannot be merged inside the encoder",
            "Use a policy that drops tokens behind it",
        )
    plain = all(block.span == "tile" and block.patches == 1 and block.fed_macs for block in tower.blocks)
    if not plain or tower.pad_to > 1 or tower.mask_macs or tower.pooled or tower.beside is not None:
        raise UnsupportedModelError(
            f"merging inside the vision encoder '{tower.family}' is not known",
            "Use a policy that drops tokens behind it",
        )
    return tower, projector
