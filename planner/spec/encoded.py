"""One image as a model sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Grid(NamedTuple):
    """Visual tokens that lie side by side in a picture, row after row.

    Attributes:
        rows, columns: of tokens.
        frames: grids of a video that follow one another in time.
        breaks: every row ends with a token that stands for no place (the newline of unpadded tiles).
    """

    rows: int
    columns: int
    frames: int = 1
    breaks: bool = False

    @property
    def tokens(self) -> int:
        """All of its tokens, row breaks included."""
        return self.frames * self.rows * (self.columns + self.breaks)

    @property
    def places(self) -> int:
        """Tokens that stand for a place in the picture."""
        return self.frames * self.rows * self.columns

    @property
    def still(self) -> bool:
        """Whether it is of one frame."""
        return self.frames == 1


#: A token that stands for no place.
LONE = Grid(1, 0, breaks=True)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tiles that the vision tower runs on, and the visual tokens that come of them.

    Attributes:
        tiles: rows and columns of patches of each tile; of tiles that are filled up, all that run, in one row.
        visual_tokens: tokens that stand for the image in the decoder, row breaks of unpadded tiles included.
        grids: how they lie, in prompt order: of each tile, or of what tiles are put together to; empty where they lie
            in no grid, or are only assumed.
        cut: rows and columns of tiles, where an image is cut into several.
        rows: rows of visual tokens that a mark stands behind; 0: those of the first tile.
        projected: patches that reach the projector, where others were filling; 0: all.
    """

    tiles: tuple[tuple[int, int], ...]
    visual_tokens: int
    grids: tuple[Grid, ...] = ()
    cut: tuple[int, int] = (1, 1)
    rows: int = 0
    projected: int = 0
