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
from planner.spec.images import Grid

#: How the tokens of a piece lie.
Lie = tuple[Grid, ...]


def lies_of(select: Select, pictures: list[Picture]) -> list[Lie]:
    """The pieces of one prompt, as its pictures lie."""
    if select.per == "picture":
        return [tuple(picture) for picture in pictures]
    grids = tuple(grid for picture in pictures for grid in picture)
    return [(grid,) for grid in grids] if select.per == "tile" else [grids]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pieces of a batch.

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

    @staticmethod
    def whole(layout: Layout) -> Pieces:
        """One piece a prompt."""
        samples = len(layout.ids)
        rows = Rows.of(layout.visual, layout.visual_counts)
        return Pieces(rows, torch.arange(samples, device=layout.ids.device), [], samples)

    @staticmethod
    def of(layout: Layout, lies: list[list[Lie]]) -> Pieces:
        """The pieces of each sample, in prompt order.

        Args:
            layout: parts of the prompts.
            lies: pieces of each sample, which account for its visual tokens.
        """
        owner = [sample for sample, own in enumerate(lies) for _ in own]
        counts = [[sum(grid.tokens for grid in lie) for lie in own] for own in lies]
        starts = [sum(own[:piece]) for own in counts for piece in range(len(own))]
        flat = tuple(count for own in counts for count in own)
        device = layout.ids.device
        place = (layout.visual.cumsum(1) - 1)[owner]
        first = torch.tensor(starts, device=device)[:, None]
        mine = (place >= first) & (place < first + torch.tensor(flat, device=device)[:, None])
        rows = Rows.of(layout.visual[owner] & mine, flat)
        return Pieces(rows, torch.tensor(owner, device=device), [lie for own in lies for lie in own], len(lies))

    def pick(self, values: Tensor) -> Tensor:
        """What each piece's rows have of values ``[B, n, ...]``: ``[P, r, ...]``."""
        index = self.rows.index.clamp(min=0).to(values.device)
        return values[self.owner.to(values.device)[:, None], index]

    def united(self, values: Tensor, elsewhere: int) -> Tensor:
        """Whole numbers per row of each piece, ``[P, n]``, as those of each sample, ``[B, n]``.

        Args:
            values: `elsewhere` outside the piece.
        """
        total = values.new_zeros(self.samples, values.shape[1])
        return total.index_add_(0, self.owner.to(values.device), values - elsewhere) + elsewhere

    def samples_rows(self, stays: Rows) -> Rows:
        """The rows that pieces keep, as rows of the samples."""
        counts = [0] * self.samples
        for sample, count in zip(self.owner.tolist(), stays.counts, strict=True):
            counts[sample] += count
        return Rows.of(self.united(stays.mask.long(), 0) > 0, tuple(counts))
