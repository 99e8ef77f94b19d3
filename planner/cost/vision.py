"""The cost of the vision tower and the projector, from the tiles of an image."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from planner.cost.merging import merged_vision_macs
from planner.cost.selector import encoder_score_macs
from planner.schedule import Select, kept
from planner.spec.cells import shares, smaller
from planner.spec.encoded import Encoded, Grid
from planner.spec.facts import ImageRule, ModelSpec, Projector, Tower
from planner.spec.images import assumed, encode_all
from planner.spec.video import encode_video


@functools.lru_cache(maxsize=256)
def vision_flops(
    spec: ModelSpec,
    sizes: tuple[tuple[int, int], ...],
    visual_tokens: int,
    batch: int,
    ranks: int,
    shrinks: Select | None = None,
    videos: tuple[tuple[int, int, int], ...] = (),
    merged: tuple[int, ...] = (),
    text_tokens: int = 0,
) -> tuple[int, int, int]:
    """FLOPs (two per multiply-add) of the tower, the projector and the tower's own ranking, for the whole batch.

    Args:
        spec: the facts of a model that sees.
        sizes: ``(width, height)`` of each image of a request; none, and no video: as many tiles as the visual tokens
            come from.
        visual_tokens: of a request, to assume images from.
        batch: requests.
        ranks: in how many of its layers patches are ranked by the tower's attention.
        shrinks: an entry for which images are made smaller, in families that take them of any size.
        videos: ``(width, height, frames)`` of each video.
        merged: pairs of tokens that each block merges.
        text_tokens: of a request, for projectors that read them.
    """
    if spec.vision is None or spec.projector is None:
        return 0, 0, 0
    images = encode_all(spec, sizes)
    images += [frame for width, height, frames in videos for frame in encode_video(spec, width, height, frames)]
    images = images or [assumed(spec, visual_tokens)]
    if shrinks is not None and spec.images is not None and spec.images.kind == "resize":
        images = _smaller(spec.images, images, shrinks)
    if any(merged):
        tower, projector = (batch * macs for macs in merged_vision_macs(spec, images, merged))
        return 2 * tower, 2 * projector, 0
    tower = tower_macs(spec.vision, images, batch)
    projector = batch * sum(_projected(spec.projector, image, text_tokens) for image in images)
    tiles = [tile for image in images for tile in image.tiles] if ranks else []
    ranked = ranks * batch * sum(encoder_score_macs(spec.vision, _tokens(spec.vision, tile)) for tile in tiles)
    return 2 * tower, 2 * projector, 2 * ranked


def _smaller(rule: ImageRule, images: Sequence[Encoded], entry: Select) -> list[Encoded]:
    """Images of fewer pixels, as `planner.runtime.selection.smaller` makes them."""
    tiles = [image.tiles[0] for image in images]
    grids = [Grid(rows // rule.merge, columns // rule.merge) for rows, columns in tiles]
    places = [grid.places for grid in grids]
    if entry.per == "prompt":
        counts = shares(int(kept(entry.keep, sum(places))), places)
    else:
        counts = [int(kept(entry.keep, one)) for one in places]
    small = [smaller(grid, count) for grid, count in zip(grids, counts, strict=True)]
    return [Encoded(((to.rows * rule.merge, to.columns * rule.merge),), to.tokens, (to,)) for to in small]


def tower_macs(tower: Tower, images: Sequence[Encoded], batch: int = 1) -> int:
    """Multiply-adds of the tower over the images of `batch` equal requests."""
    tiles = [tile for image in images for tile in image.tiles]
    lengths = {
        "tile": [_tokens(tower, tile) for tile in tiles],
        "image": [sum(_tokens(tower, tile) for tile in image.tiles) for image in images],
        "window": [length for tile in tiles for length in _windows(tower, tile)],
        "filled": [tower.window**2 for tile in tiles for _ in _windows(tower, tile)],
        "batch": [sum(_tokens(tower, tile) for tile in tiles)],
    }
    macs = tower.patch_macs * _embedded(tower, tiles)
    for block in tower.blocks:
        counts = [count // block.patches + block.extra for count in lengths[block.span]]
        together = batch if block.span == "batch" else 1  # requests in one sequence
        pairs = together * sum(count * count for count in counts)
        sides = sum(rows * columns * (rows + columns) for rows, columns in tiles) if block.side_macs else 0
        macs += block.repeat * (block.macs * sum(counts) + block.pair_macs * pairs + block.side_macs * sides)
    macs += tower.mask_macs * sum(count * count for count in lengths["image"])
    if tower.pooled:
        macs += tower.hidden_size * sum(count * (count // tower.pooled) for count in lengths["tile"])
    if tower.beside is not None:
        macs += tower_macs(tower.beside, [Encoded(((tower.beside_side,) * 2,), 0)] * len(tiles))
    tokens = lengths["tile"]
    return batch * (macs + tower.token_macs * sum(tokens) + tower.tile_macs * len(tokens))


def _embedded(tower: Tower, tiles: Sequence[tuple[int, int]]) -> int:
    """Patches embedded. Where all images share a sequence they are padded to one size first, and cut after the
    embedding."""
    if any(block.span == "batch" for block in tower.blocks):
        return (
            len(tiles) * max((rows for rows, _ in tiles), default=0) * max((columns for _, columns in tiles), default=0)
        )
    return sum(rows * columns for rows, columns in tiles)


def _tokens(tower: Tower, tile: tuple[int, int]) -> int:
    count = tile[0] * tile[1] + tower.extra_tokens
    return -(-count // tower.pad_to) * tower.pad_to


def _patches(image: Encoded) -> int:
    return sum(rows * columns for rows, columns in image.tiles)


def _windows(tower: Tower, tile: tuple[int, int]) -> list[int]:
    """Patches in each attention window of a tile; windows at the edges are smaller."""
    if not tower.window:
        return [tile[0] * tile[1]]
    rows, columns = (_cut(side, tower.window) for side in tile)
    return [height * width for height in rows for width in columns]


def _cut(side: int, window: int) -> list[int]:
    whole, rest = divmod(side, window)
    return [window] * whole + [rest] * bool(rest)


def _projected(projector: Projector, image: Encoded, text_tokens: int) -> int:
    """Multiply-adds of the projector on one image: on every tile whole, before anything is unpadded."""
    patches = image.projected or _patches(image)
    extra = len(image.tiles) if projector.class_token else 0
    if projector.latents:
        pairs = text_tokens * (2 * projector.latents + text_tokens)
        read = projector.text_macs * text_tokens + projector.text_pair_macs * pairs
        tile = projector.macs * projector.latents + read
        return tile * len(image.tiles) + projector.patch_macs * (patches + extra)
    ends = projector.row_macs * sum(rows for rows, _ in image.tiles) // math.isqrt(projector.merge)
    return projector.macs * (patches // projector.merge + extra) + projector.patch_macs * patches + ends
