"""Hot tokens of a pass, kept grouped by their dimensions, and the sinks among them once the dimensions are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibrate.probes.base import Capture
from calibrate.probes.massive import FIRST_LAYER
from calibrate.probes.places import border, square_side
from calibrate.probes.stats import Array, SampleTable, plain

TOKEN_KINDS = ("first token", "text", "visual")
_VISUAL = TOKEN_KINDS.index("visual")
#: Massive dimensions of a token that are kept.
_TOP = 4


@dataclass(frozen=True)
class HotTokens:
    """K hot tokens of a batch; H query heads.

    Attributes:
        layer, sample, kind: of each, ``[K]``; kinds as in `TOKEN_KINDS`.
        place: its number among the sample's visual tokens, -1 for text, ``[K]``.
        dims: its massive dimensions, ascending, -1 in front where there are fewer, ``[K, 4]``.
        weights: what the last row's heads put on it, ``[K, H]``.
        given: how far the last row's attention output moves without it (VisiPruner eq. 6), ``[K]``.
    """

    layer: Array
    sample: Array
    kind: Array
    place: Array
    dims: Array
    weights: Array
    given: Array

    @classmethod
    def of(cls, capture: Capture, hot: torch.Tensor, limit: torch.Tensor, first: torch.Tensor) -> HotTokens:
        """The hot ones ``[B, n]`` of one layer.

        Args:
            limit: magnitude from which a token's values are massive, ``[B, n]``.
            first: each sample's first token, ``[B]``.
        """
        hidden = capture.view.hidden
        sample, token = hot.nonzero(as_tuple=True)
        top = hidden[sample, token].float().abs().topk(min(_TOP, hidden.shape[-1]))
        dims = torch.where(top.values >= limit[sample, token, None], top.indices, -1).sort(dim=-1).values
        visual = capture.visual[sample, token]
        order = capture.visual.long().cumsum(dim=1)[sample, token] - 1
        parts = (
            torch.full_like(sample, capture.layer),
            sample,
            torch.where(token == first[sample], 0, torch.where(visual, _VISUAL, 1)),
            torch.where(visual, order, -1),
            dims,
            capture.weights.permute(0, 2, 1)[sample, token],
            capture.influence.l2[sample, token],
        )
        return cls(*(part.cpu().numpy() for part in parts))

    @classmethod
    def united(cls, layers: Sequence[HotTokens]) -> HotTokens:
        """Those of all layers."""
        if not layers:
            none = np.zeros(0, np.int64)
            return cls(none, none, none, none, np.zeros((0, _TOP), np.int64), np.zeros((0, 0)), np.zeros(0))
        return cls(*(np.concatenate([getattr(one, name) for one in layers]) for name in cls.__annotations__))

    def groups(self, sample: int, heads: int) -> dict[str, Array]:
        """One sample's by layer, kind and dimensions: how many, the head weights they get and what they give."""
        grouped: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i in np.flatnonzero(self.sample == sample).tolist():
            grouped[(int(self.layer[i]), int(self.kind[i]), *map(int, self.dims[i]))].append(i)
        keys = sorted(grouped)
        weights = [self.weights[grouped[key]].sum(axis=0) for key in keys]
        return {
            "group_layer": np.asarray([key[0] for key in keys], np.int32),
            "group_kind": np.asarray([key[1] for key in keys], np.int32),
            "group_dims": np.asarray([key[2:] for key in keys], np.int32).reshape(len(keys), -1 if keys else _TOP),
            "group_tokens": np.asarray([len(grouped[key]) for key in keys], np.int32),
            "group_weights": np.asarray(weights, np.float32).reshape(-1, heads),
            "group_given": np.asarray([self.given[grouped[key]].sum() for key in keys], np.float32),
        }

    def places(self, sample: int, limit: int) -> Array:
        """Layer, place and dimensions of one sample's hot visual tokens, ``[k, 6]``; none of a layer with more than
        `limit`, where they are no sinks.
        """
        mine = (self.sample == sample) & (self.kind == _VISUAL)
        crowded = np.bincount(self.layer[mine], minlength=1) > limit
        mine[mine] = ~crowded[self.layer[mine]]
        return np.column_stack([self.layer[mine], self.place[mine], self.dims[mine]]).astype(np.int32)


@dataclass(frozen=True)
class SinkTokens:
    """The sinks; S samples, L layers, H query heads.

    Attributes:
        counts: sink tokens by kind, ``[S, L, 3]``.
        weight: what the last row's heads put on visual ones, ``[S, L, H]``.
        given: what these give, ``[S, L]``.
        places: per sample, where visual sinks are, a number for each layer they are one in.
    """

    counts: Array
    weight: Array
    given: Array
    places: list[Array]

    def place(self, visual_tokens: Array) -> dict[str, Any] | None:
        """How often each place of the picture holds a sink, over samples and layers, and the share on its border.

        Args:
            visual_tokens: of each sample; those with the commonest number count, if it is a square.
        """
        sizes, often = np.unique(visual_tokens, return_counts=True)
        size = int(sizes[often.argmax()])
        side = square_side(size)
        chosen = [one for one, tokens in zip(self.places, visual_tokens, strict=True) if tokens == size]
        found = np.bincount(np.concatenate([*chosen, np.zeros(0, np.int64)]).astype(np.int64), minlength=size)
        if side is None or not found.any():
            return None
        share = (found / found.sum()).reshape(side, side)
        edge = border(side)
        return {"map": plain(share), "on_border": float(share[edge].sum()), "border": float(edge.mean())}


def hot_share(table: SampleTable, layers: int) -> Array:
    """Share of a prompt's tokens that are hot, in whatever dimension, ``[S, L]``."""
    found = np.zeros((len(table), layers))
    columns = (table.rows(name) for name in ("sizes", "group_layer", "group_tokens"))
    for s, (sizes, at, count) in enumerate(zip(*columns, strict=True)):
        np.add.at(found[s], at, count / sizes[0])
    return found


def sink_dims(table: SampleTable, layers: int, few: float, most: float) -> list[int]:
    """Dimensions hot in few tokens, in most samples, in most layers from `FIRST_LAYER` to the last but one."""
    middle = range(min(FIRST_LAYER, layers - 1), max(layers - 1, min(FIRST_LAYER, layers - 1) + 1))
    samples_hot: dict[tuple[int, int], int] = defaultdict(int)
    for within, tokens in zip(_within(table), table.column("sizes")[:, 0], strict=True):
        for key, size in within.items():
            samples_hot[key] += size <= few * tokens
    often = {key for key, hits in samples_hot.items() if hits >= most * len(table)}
    return sorted(
        dim for dim in {dim for _, dim in often} if sum((layer, dim) in often for layer in middle) >= most * len(middle)
    )


def sink_tokens(table: SampleTable, dims: Collection[int], shape: Sequence[int], few: float) -> SinkTokens:
    """Hot tokens in one of these dimensions, where that is hot in few tokens; ``shape`` is ``[S, L, H]``."""
    samples, layers, heads = shape
    counts, weight = np.zeros((samples, layers, len(TOKEN_KINDS))), np.zeros((samples, layers, heads))
    given, places = np.zeros((samples, layers)), []
    names = ("layer", "kind", "dims", "tokens", "weights", "given")
    columns = [table.rows(f"group_{name}") for name in names]
    for s, (within, tokens, at, *groups) in enumerate(
        zip(_within(table), table.column("sizes")[:, 0], table.rows("places"), *columns, strict=True)
    ):
        rare = {key for key, size in within.items() if key[1] in dims and size <= few * tokens}
        for layer, kind, hot, size, by_head, gives in zip(*groups, strict=True):
            if any((int(layer), dim) in rare for dim in hot.tolist()):
                counts[s, layer, kind] += size
                if kind == _VISUAL:
                    weight[s, layer] += by_head
                    given[s, layer] += gives
        places.append(
            np.asarray([one[1] for one in at.tolist() if any((one[0], dim) in rare for dim in one[2:])], np.int64)
        )
    return SinkTokens(counts, weight, given, places)


def _within(table: SampleTable) -> list[dict[tuple[int, int], int]]:
    """Per sample: in how many of its tokens a dimension is hot, by layer and dimension."""
    found = []
    for groups in zip(*(table.rows(f"group_{name}") for name in ("layer", "dims", "tokens")), strict=True):
        within: dict[tuple[int, int], int] = defaultdict(int)
        for layer, dims, size in zip(*groups, strict=True):
            for dim in dims[dims >= 0].tolist():
                within[int(layer), dim] += int(size)
        found.append(within)
    return found
