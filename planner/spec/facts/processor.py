"""What a processor does to images and videos before a model sees them, as far as it decides how many tokens come of
them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Marks:
    """Text tokens that a processor puts around and among the visual tokens of one image.

    Attributes:
        before, after: ahead of the first visual token and behind the last one.
        row: behind every row of visual tokens.
        tile, tile_row: for each tile and each row of tiles of an image that is cut into several; a thumbnail is not
            among them.
        between_rows: between two rows of tiles.
    """

    before: int = 0
    after: int = 0
    row: int = 0
    tile: int = 0
    tile_row: int = 0
    between_rows: int = 0


@dataclass(frozen=True, slots=True)
class ImageRule:
    """How pixels become patches and visual tokens (`planner.spec.images`).

    Attributes:
        kind: ``fixed``: every image is resized to one size; ``anyres``: a base view and tiles of the best-fitting
            resolution, unpadded; ``resize``: near its own size, in multiples of `side`, within pixel limits;
            ``lined``: the same with visual tokens that stand for no place, one behind every row and one at either end;
            ``shrink``: its own size unless an edge is too long; ``aspect``, ``fit``: a grid of tiles nearest in
                aspect ratio, or in size, and a
            thumbnail; ``split``: scaled to a longest edge, cut into tiles, and a thumbnail; ``grid``: always all tiles;
            others are single families' (`planner.spec.fitting`, `planner.spec.views`).
        side: of a tile in pixels, or the multiple that sides are rounded to.
        view: side of the whole image's view in pixels, where that is not a tile's.
        margin: patches that a tile shares with its neighbours, on both sides together.
        patch: side of a patch in pixels.
        merge: side of a merged token in patches.
        tile_tokens: visual tokens of one tile; 0 where there are no tiles.
        resolutions: ``(height, width)`` candidates of ``anyres``.
        limit: tiles' worth of tokens that ``anyres`` keeps at most; 0 is no limit.
        min_pixels, max_pixels, frames: limits of ``resize`` and ``lined``, and frames a still image counts as in them.
        max_tiles: of ``aspect``, ``fit``, ``grid`` and the others that cut.
        longest_edge, shortest_edge: of ``shrink``, ``split`` and ``edges``, in pixels; width and height of ``boxed``.
        max_patches: of one tile; ``budget`` and ``large`` fill their tiles up to it.
        alone: a picture is cut only where it is the only one of its request; several are a view each, with a break
            behind it.
        marks: text tokens that come with an image.
    """

    kind: Literal[
        "fixed", "anyres", "resize", "lined", "shrink", "aspect", "fit", "split", "grid",
        "navit", "boxed", "budget", "edges", "large", "slices", "cover",
        "panels", "document", "pages", "masked", "overlapping", "windows",
    ]  # fmt: skip
    side: int
    patch: int
    merge: int = 1
    tile_tokens: int = 0
    resolutions: tuple[tuple[int, int], ...] = ()
    limit: int = 0
    min_pixels: int = 0
    max_pixels: int = 0
    frames: int = 1
    max_tiles: int = 0
    longest_edge: int = 0
    shortest_edge: int = 0
    max_patches: int = 0
    view: int = 0
    margin: int = 0
    alone: bool = False
    marks: Marks = Marks()

    @property
    def limited(self) -> bool:
        """Whether pictures keep about their size, within limits in pixels."""
        return self.kind in ("resize", "lined")


@dataclass(frozen=True, slots=True)
class VideoRule:
    """How a video becomes frames and visual tokens (`planner.spec.video`).

    Attributes:
        kind: ``frame``: near its own size, within pixel limits for each frame; ``volume``: within limits for all frames
            together; ``tile``: every frame is resized to one tile of the model's images.
        temporal: frames that become one grid of patches.
        frame_tokens: visual tokens of a frame of kind ``tile``.
        end_tokens: visual tokens behind the last frame.
        min_pixels, max_pixels: of ``frame`` and ``volume``.
        fps: frames a second that the processor takes; 0: all of them.
        min_frames, max_frames: at least and at most so many; 0 is no limit.
        frame_marks: text tokens around each grid of patches that are there whatever its time.
    """

    kind: Literal["frame", "volume", "tile"]
    temporal: int = 1
    frame_tokens: int = 0
    end_tokens: int = 0
    min_pixels: int = 0
    max_pixels: int = 0
    fps: float = 0
    min_frames: int = 0
    max_frames: int = 0
    frame_marks: int = 0
