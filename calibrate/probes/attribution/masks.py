"""Ablations: which heads, text rows and visual tokens read the image at hand, and which the mean image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from planner.errors import InputError


@dataclass(frozen=True)
class Ablation:
    """M ablations of L layers of H heads, T text rows and V visual tokens; True is intact, False ablated.

    Attributes:
        heads: ``[M, L, H]`` (x in head attribution).
        rows: ``[M, T]`` or None for all intact (u).
        image: ``[M, V]`` or None for all intact (v).
    """

    heads: torch.Tensor
    rows: torch.Tensor | None = None
    image: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.heads.shape[0]

    @property
    def partial(self) -> bool:
        """True when an intact head may still read some rows or tokens from the mean."""
        return self.rows is not None or self.image is not None

    def split(self, size: int) -> Iterator[Ablation]:
        """Consecutive pieces of at most ``size`` ablations."""
        for first in range(0, len(self), size):
            piece = slice(first, first + size)
            yield Ablation(
                self.heads[piece],
                None if self.rows is None else self.rows[piece],
                None if self.image is None else self.image[piece],
            )


def random_masks(count: int, size: int, ablated: float, seed: int) -> torch.Tensor:
    """Boolean masks ``[count, size]``; in each, the same share of entries, drawn by seed, is ablated (False).

    Raises:
        InputError: the share leaves nothing intact or nothing ablated.
    """
    check_ablated(ablated, size)
    zeros = round(ablated * size)
    drawn = np.random.default_rng(seed).permuted(np.tile(np.arange(size), (count, 1)), axis=1)
    return torch.from_numpy(drawn >= zeros)


def check_ablated(ablated: float, size: int) -> None:
    """Refuse a share of `size` entries that leaves nothing intact or nothing ablated.

    Raises:
        InputError: it does.
    """
    if not 0 < round(ablated * size) < size:
        raise InputError(
            f"ablating {ablated:g} of {size} entries leaves no choice",
            "Use a share between 0 and 1; the paper uses 0.75",
        )
