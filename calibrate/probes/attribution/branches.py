"""What several ablations have in common from the first layer on, so that it is computed once.

Text rows differ between two ablations from the first layer on in which these read different things. Ablations that
agree in layers 0 to l are therefore one computation up to there: they form a tree, in which layer l runs once for every
distinct way of getting through layers 0 to l. A layer of which no head reads the image is the same whatever rows and
visual tokens are ablated. Single-head effects share half of the layers this way, visual tokens all layers below the
first head that is needed, and masks can be drawn so that they share (`masks.family_masks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from calibrate.probes.attribution.masks import Ablation
from calibrate.probes.stats import Array


@dataclass(frozen=True)
class Piece:
    """Some ablations that run together; in layer l there are ``U[l]`` distinct ones, no fewer than in layer l - 1.

    Attributes:
        which: their numbers, ``[m]``.
        layers: for each layer one ablation of each distinct kind.
        parents: for each layer but the first, where in the layer before each comes from, ``[U[l]]``.
        of_each: which of the last layer's is each one's, ``[m]``.
    """

    which: torch.Tensor
    layers: tuple[Ablation, ...]
    parents: tuple[torch.Tensor, ...]
    of_each: torch.Tensor


def pieces(ablation: Ablation, size: int) -> Iterator[Piece]:
    """All ablations in pieces of at most `size`, those together that have most in common."""
    ways = _ways(ablation)
    order = ways[-1].argsort(kind="stable")
    for first in range(0, len(order), size):
        which = order[first : first + size]
        mine = ways[:, which]
        # Sorted, each kind is a run; a run begins where the way differs from the one before.
        begins = np.column_stack([np.ones(len(ways), bool), mine[:, 1:] != mine[:, :-1]])
        starts = [np.flatnonzero(row) for row in begins]
        run_of = begins.cumsum(axis=1) - 1
        yield Piece(
            which=torch.from_numpy(which),
            layers=tuple(ablation.take(torch.from_numpy(which[start])) for start in starts),
            parents=tuple(torch.from_numpy(run_of[layer - 1, starts[layer]]) for layer in range(1, len(ways))),
            of_each=torch.from_numpy(run_of[-1]),
        )


def _ways(ablation: Ablation) -> Array:
    """A number for each way through layers 0 to l, ``[L, M]``; sorted by the last, the others are sorted too."""
    heads = ablation.heads.cpu().numpy().astype(bool)
    parts = [part.cpu().numpy().astype(bool) for part in (ablation.rows, ablation.image) if part is not None]
    part = _numbers(np.packbits(np.concatenate(parts, axis=1), axis=1)) if parts else np.zeros(len(heads), np.int64)
    ways = np.zeros((heads.shape[1], len(heads)), np.int64)
    before = np.zeros(len(heads), np.int64)
    for layer in range(heads.shape[1]):
        reads = heads[:, layer]
        kind = _numbers(np.column_stack([np.packbits(reads, axis=1), np.where(reads.any(axis=1), part, 0)]))
        before = ways[layer] = _numbers(np.column_stack([before, kind]))
    return ways


def _numbers(rows: Array) -> Array:
    """The place of each row ``[M, k]`` among the distinct ones, in ascending order."""
    _, number = np.unique(rows, axis=0, return_inverse=True)
    return np.asarray(number).reshape(-1)
