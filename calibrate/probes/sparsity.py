"""How few image tokens hold most of the image attention, and where these are, layer by layer (sparsity appendix).

The attention is the last prompt token's, averaged over heads. Places are counted in a coarse grid over the picture, so
that samples with other numbers of tokens can be averaged, and rows stay small.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from calibrate.inputs.encode import Inputs
from calibrate.probes.base import Capture, OnePassProbe
from calibrate.probes.places import square_side
from calibrate.probes.stats import Array, mean, plain
from planner.errors import InputError
from planner.runtime import LayerView, observe

#: The sparsity appendix looks at the top quarter of the tokens.
TOP_SHARE = 0.25
#: Shares of the image tokens at which the curve of attention against k is read.
CURVE = (0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 1.0)
#: Cells on each side of the coarse grid.
CELLS = 8


def check_share(top_share: float) -> None:
    """Refuse a share of tokens that is none.

    Raises:
        InputError: it is not above 0 and at most 1.
    """
    if not 0 < top_share <= 1:
        raise InputError(f"top_share must be above 0 and at most 1, got {top_share:g}", "Such as 0.25")


def top_tokens(attention: torch.Tensor, among: torch.Tensor, share: float = TOP_SHARE) -> torch.Tensor:
    """Mask ``[B, n]`` of the `share` of the tokens in `among` with the most attention, rounded up, ties to the left."""
    scores = attention.masked_fill(~among, -1.0)
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < (among.sum(dim=1, keepdim=True) * share).ceil()) & among


def most_attended(model: Any, inputs: Inputs, share: float = TOP_SHARE) -> list[Array]:
    """Per sample, which visual tokens are among the most attended at each layer: ``[L, nv]``, by one forward pass."""
    layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(view: LayerView) -> None:
        attention = view.weights().squeeze(2).mean(dim=1)
        layers.append((top_tokens(attention, view.visual, share).cpu(), view.visual.cpu()))

    with observe(model, look):
        model(**inputs, use_cache=False, logits_to_keep=1)
    tops, visual = torch.stack([top for top, _ in layers]).numpy(), layers[0][1].numpy()
    return [tops[:, b, visual[b]] for b in range(len(visual))]


def overlap(one: Array, other: Array) -> Array:
    """Shared tokens over set size, per layer: ``[L]`` of two ``[L, nv]``."""
    shared: Array = (one & other).sum(axis=1) / np.maximum(one.sum(axis=1), 1)
    return shared.astype(np.float32)


def coarse(marked: Array) -> Array:
    """Share of each cell's tokens that are marked, ``[L, CELLS * CELLS]`` of ``[L, nv]``.

    A token counts in each cell by the part of it that lies there. NaN where the tokens form no square.
    """
    side = square_side(marked.shape[1])
    if side is None:
        return np.full((len(marked), CELLS * CELLS), np.nan, np.float32)
    edges = np.linspace(0, side, CELLS + 1)
    place = np.arange(side)
    # Length of [cell] that lies in [token], as a share of the cell.
    part = np.clip(np.minimum(edges[1:, None], place + 1) - np.maximum(edges[:-1, None], place), 0, None) * CELLS / side
    cells: Array = part @ marked.reshape(len(marked), side, side).astype(np.float64) @ part.T
    return cells.reshape(len(marked), -1).astype(np.float32)


class TopTokensProbe(OnePassProbe):
    """A probe that sets a share of the most attended tokens apart.

    Args:
        top_share: which share.

    Raises:
        InputError: it is not above 0 and at most 1.
    """

    def __init__(self, top_share: float = TOP_SHARE) -> None:
        super().__init__()
        check_share(top_share)
        self.top_share = top_share

    @property
    def settings(self) -> dict[str, Any]:
        return {"top_share": self.top_share}


class SparsityProbe(TopTokensProbe):
    """Share of the image attention on the most attended image tokens, for one share of the tokens and as a curve; the
    image's share of all attention; and the places of the most attended tokens.
    """

    name: ClassVar[str] = "sparsity"

    def measure(self, capture: Capture) -> dict[str, torch.Tensor]:
        attention = capture.weights.mean(dim=1)
        on_image = (attention * capture.visual).sum(dim=1)
        tops = top_tokens(attention, capture.visual, self.top_share)
        tiny = torch.finfo(torch.float32).tiny
        ranked = (attention * capture.visual).sort(dim=1, descending=True).values.cumsum(dim=1)
        counts = capture.visual.sum(dim=1, keepdim=True)
        # Less than a token below, so that 0.05 of 100 tokens are 5 in binary fractions too.
        shares = torch.tensor(CURVE, dtype=torch.float64) - 1e-9
        at = (counts.cpu() * shares).ceil().long().clamp(min=1).to(counts.device) - 1
        return {
            "top_share": (attention * tops).sum(dim=1) / on_image.clamp_min(tiny),
            "image": on_image,
            "curve": ranked.gather(1, at) / on_image.clamp_min(tiny)[:, None],
            "tops": tops,
        }

    def rows(self, layers: dict[str, Array], capture: Capture) -> list[dict[str, Array]]:
        visual = capture.visual.cpu().numpy()
        return [
            {
                **{name: layers[name][:, b] for name in ("top_share", "image", "curve")},
                "places": coarse(layers["tops"][:, b, visual[b]]),
            }
            for b in range(len(capture.ids))
        ]

    def summary(self) -> dict[str, Any]:
        places = self.table.column("places")  # [S, L, cells]
        square = places[~np.isnan(places[:, 0, 0])]
        return {
            "top_quarter_share": mean(self.table.column("top_share")),
            "image_attention": mean(self.table.column("image")),
            "curve": {"shares": list(CURVE), **mean(self.table.column("curve"))},
            # How often a place is among the most attended: no spread of an average picture is wanted.
            "places": plain(square.mean(axis=0).reshape(-1, CELLS, CELLS)) if len(square) else None,
        }
