"""Ablations: which heads, text rows and visual tokens read the image at hand, and which the mean image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from planner.errors import InputError

#: Masks that share the first layers: two branchings in two.
FAMILY = 4
#: Layers that run for each mask of a family, as a share of all.
FAMILY_COST = (1 / 4 + 1 / 2 + 1) / 3


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

    def take(self, which: torch.Tensor) -> Ablation:
        """Some of them, by number."""
        return Ablation(
            self.heads[which],
            None if self.rows is None else self.rows[which],
            None if self.image is None else self.image[which],
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


def family_masks(count: int, layers: int, heads: int, ablated: float, seed: int) -> torch.Tensor:
    """Masks of heads ``[count, layers * heads]`` in families of `FAMILY`: cheaper to run than independent ones.

    The masks of a family have the first third of the layers in common, pairs of them the second third too, and what is
    in common is computed once (`branches`). Each mask by itself is drawn as `random_masks` draws it: a part is shuffled
    again with as many entries ablated as it had. Masks of one family are not independent, so a fit holds them out
    together.

    Raises:
        InputError: as `random_masks`.
    """
    masks = random_masks(-(-count // FAMILY), layers * heads, ablated, seed).numpy()
    rng = np.random.default_rng((seed, FAMILY))
    for first in (layers // 3 * heads, 2 * layers // 3 * heads):
        masks = masks.repeat(2, axis=0)
        masks[1::2, first:] = rng.permuted(masks[1::2, first:], axis=1)
    return torch.from_numpy(masks[:count])


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
