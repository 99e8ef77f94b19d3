"""Pieces of the prompts of a batch within which an entry chooses: all visual tokens of a prompt, of a picture or of a
tile."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planner.runtime.imaging.grids import Picture
from planner.runtime.tensors.layout import Layout
from planner.runtime.tensors.rows import Rows
from planner.schedule import Select
from planner.spec.encoded import Grid

#: How the tokens of a piece lie.
Lie = tuple[Grid, ...]


def lies_of(select: Select, pictures: list[Picture]) -> list[Lie]:
    """The pieces of one prompt, as its pictures lie."""
    if select.per == "picture":
        return [tuple(picture) for picture in pictures]
    grids = tuple(grid for picture in pictures for grid in picture)
    return [(grid,) for grid in grids] if select.per == "tile" else [grids]


def groups_of(layout: Layout, lies: list[list[Lie]]) -> list[Pieces]:
    """The pieces of a batch in groups of one size, so that nothing is computed for padding.

    Args:
        layout: parts of the prompts.
        lies: pieces of each sample, which account for its visual tokens; empty: one piece a prompt.
    """
    if lies:
        found = [(sample, lie) for sample, own in enumerate(lies) for lie in own]
        sizes = [sum(grid.tokens for grid in lie) for _, lie in found]
    else:
        found, sizes = [(sample, ()) for sample in range(len(layout.ids))], list(layout.visual_counts)
    starts, reached = [], [0] * len(layout.ids)
    for (sample, _), size in zip(found, sizes, strict=True):
        starts.append(reached[sample])
        reached[sample] += size
    place, device = layout.visual.cumsum(1) - 1, layout.ids.device
    groups = []
    for size in sorted(set(sizes) - {0}):
        mine = [piece for piece, other in enumerate(sizes) if other == size]
        owner = torch.tensor([found[piece][0] for piece in mine], device=device)
        first = torch.tensor([starts[piece] for piece in mine], device=device)[:, None]
        flags = layout.visual[owner] & (place[owner] >= first) & (place[owner] < first + size)
        rows = Rows.of(flags, (size,) * len(mine))
        groups.append(Pieces(rows, owner, [found[piece][1] for piece in mine], len(layout.ids)))
    return groups


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pieces of a batch that have one size.

    Attributes:
        rows: ``[P, r]`` the visual rows of each piece.
        owner: ``[P]`` the sample that each belongs to.
        lies: how the tokens of each lie; empty where that plays no part.
        samples: of the batch.
    """

    rows: Rows
    owner: Tensor
    lies: list[Lie]
    samples: int

    def pick(self, values: Tensor) -> Tensor:
        """What each piece's rows have of values ``[B, n, ...]``: ``[P, r, ...]``."""
        return values[self.owner.to(values.device)[:, None], self.rows.index.to(values.device)]

    def united(self, values: Tensor, elsewhere: int) -> Tensor:
        """Whole numbers per row of each piece, ``[P, n]``, as those of each sample, ``[B, n]``.

        Args:
            values: `elsewhere` outside the piece.
        """
        total = values.new_zeros(self.samples, values.shape[1])
        return total.index_add_(0, self.owner.to(values.device), values - elsewhere) + elsewhere
