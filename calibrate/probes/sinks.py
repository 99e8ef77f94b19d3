"""Attention sinks: massive hidden dimensions, sink tokens, sink heads, image-centric heads (VAR).

A token is *hot* at a layer's input when some dimension's magnitude reaches ``tau`` times the token's root mean square.
A dimension that is hot in few tokens, in most samples and in most middle layers is a **sink dimension**; a hot token
whose hot dimensions include one is a **sink token**. One pass suffices: rows keep hot tokens grouped by their
dimensions, and which groups count is settled when all rows are there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, ClassVar

import numpy as np
import torch

from calibrate.probes.base import Capture, OnePassProbe, quantiles
from calibrate.probes.stats import Array, mean, plain, proportion
from planner.errors import InputError

TAU = 20.0
#: `phi` cannot exceed sqrt(d): narrow models get half of that instead of the paper's 20.
TAU_CEILING_SHARE = 0.5
EPS = 1e-6
#: The paper leaves the first two layers out: massive activations arise there.
FIRST_LAYER = 2
TOKEN_KINDS = ("first token", "text", "visual")
_TOP = 4
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def default_tau(hidden_size: int) -> float:
    """The paper's threshold 20, or half of what is possible where the hidden size is below 1600."""
    return min(TAU, TAU_CEILING_SHARE * math.sqrt(hidden_size))


def hot_tokens(hidden: torch.Tensor, tau: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of ``[B, n, d]`` with a dimension of at least tau times their RMS, and that magnitude: both ``[B, n]``."""
    width = hidden.shape[-1]
    precise = torch.promote_types(hidden.dtype, torch.float32)
    square = torch.linalg.vector_norm(hidden, dim=-1, dtype=precise).square() / width
    limit = (default_tau(width) if tau is None else tau) * (square + EPS).sqrt()
    peak = torch.maximum(hidden.amax(dim=-1), -hidden.amin(dim=-1))
    return peak >= limit, limit


class SinksProbe(OnePassProbe):
    """Sink dimensions, tokens and heads.

    Args:
        tau: threshold on ``|x_d| / RMS(x)``; None for `default_tau`.
        rho: non-sink shares of the visual attention from which a head is image-centric.
        rho_sink: sink share of the visual attention from which a head is a sink head.
        min_visual: visual attention below which a head is not judged for a sample.
        few: a sink dimension is hot in at most this share of a prompt's tokens.
        most: and in at least this share of samples and of middle layers.

    Raises:
        InputError: a share outside 0..1, or a threshold that is not above 0.
    """

    name: ClassVar[str] = "sinks"

    def __init__(
        self,
        tau: float | None = None,
        rho: tuple[float, ...] = (0.5, 0.8, 0.9),
        rho_sink: float = 0.5,
        min_visual: float = 0.2,
        few: float = 0.25,
        most: float = 0.5,
    ) -> None:
        super().__init__()
        if not all(0 <= share <= 1 for share in (*rho, rho_sink, min_visual, few, most)) or (
            tau is not None and tau <= 0
        ):
            raise InputError("sink settings: shares lie between 0 and 1, tau is above 0", "VAR uses tau 20, rho 0.8")
        self.tau, self.rho, self.rho_sink = tau, tuple(rho), rho_sink
        self.min_visual, self.few, self.most = min_visual, few, most
        self._hot: list[tuple[torch.Tensor, ...]] = []

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "tau": self.tau,
            "rho": list(self.rho),
            "rho_sink": self.rho_sink,
            "min_visual": self.min_visual,
            "few": self.few,
            "most": self.most,
        }

    def measure(self, capture: Capture) -> dict[str, torch.Tensor]:
        hidden, weights = capture.view.hidden, capture.weights
        visual, first = capture.segments[:, 1], capture.valid.int().argmax(dim=1)
        if capture.layer == 0:
            self._hot = []
        if capture.layer >= FIRST_LAYER:
            self._hot.append(self._hot_tokens(capture, hidden, weights, visual, first))
        return {
            "visual_mass": (weights * visual[:, None]).sum(dim=-1),
            "first_mass": weights.gather(2, first[:, None, None].expand(-1, weights.shape[1], 1)).squeeze(2),
        }

    def _hot_tokens(
        self, capture: Capture, hidden: Any, weights: Any, visual: Any, first: Any
    ) -> tuple[torch.Tensor, ...]:
        """Layer, sample, kind, hottest dimensions (-1: below tau) and head weights of each hot token, on the CPU."""
        hot, limit = hot_tokens(hidden, self.tau)
        sample, token = (hot & capture.valid).nonzero(as_tuple=True)
        top = hidden[sample, token].float().abs().topk(min(_TOP, hidden.shape[-1]))
        dims = torch.where(top.values >= limit[sample, token, None], top.indices, -1).sort(dim=-1).values
        kind = torch.where(token == first[sample], 0, torch.where(visual[sample, token], 2, 1))
        layer = torch.full_like(sample, capture.layer)
        heads = weights.permute(0, 2, 1)[sample, token]
        return tuple(part.cpu() for part in (layer, sample, kind, dims, heads))

    def rows(self, layers: dict[str, Array], capture: Capture) -> list[dict[str, Array]]:
        parts = [torch.cat(part).numpy() for part in zip(*self._hot, strict=True)] if self._hot else None
        self._hot = []
        tokens = capture.valid.sum(dim=1).cpu().numpy()
        visual = capture.visual.sum(dim=1).cpu().numpy()
        hidden_size = capture.view.hidden.shape[-1]
        return [
            {
                "visual_mass": layers["visual_mass"][:, b],
                "first_mass": layers["first_mass"][:, b],
                "sizes": np.asarray([tokens[b], visual[b], hidden_size]),
                **_groups(parts, b, layers["visual_mass"].shape[2]),
            }
            for b in range(len(capture.ids))
        ]

    def summary(self) -> dict[str, Any]:
        mass = self.table.column("visual_mass").astype(np.float64)  # [S, L, H]
        sizes = self.table.column("sizes")
        dims = self._sink_dims(mass.shape[1], sizes[:, 0])
        counts, on_sinks = self._sink_tokens(set(dims), mass.shape)
        share = np.where(mass >= self.min_visual, on_sinks / np.maximum(mass, np.finfo(np.float64).tiny), np.nan)
        middle = slice(min(FIRST_LAYER, mass.shape[1] - 1), None)
        heads = {f"rho {rho:g}": self._head_list(np.where(np.isnan(share), 0, 1 - share >= rho)) for rho in self.rho}
        return {
            "tau": default_tau(int(sizes[0, 2])) if self.tau is None else self.tau,
            "largest_possible": math.sqrt(int(sizes[0, 2])),
            "sink_dims": dims,
            "sink_tokens": {kind: mean(counts[:, :, k]) for k, kind in enumerate(TOKEN_KINDS)},
            "samples_with_visual_sinks": proportion(int((counts[:, middle, 2] > 0).any(axis=1).sum()), len(mass)),
            "visual_attention": mean(mass.mean(axis=2)),
            "first_token_attention": mean(self.table.column("first_mass").mean(axis=2)),
            "sink_share": {"by_layer": mean(_nanmean(share, 2)), "quantiles": quantiles(share, _LEVELS)},
            "image_centric_heads": heads,
            "sink_heads": self._head_list(np.where(np.isnan(share), 0, share >= self.rho_sink), share),
        }

    def _sink_dims(self, layers: int, tokens: Array) -> list[int]:
        """Dimensions hot in few tokens, in most samples, in most layers from `FIRST_LAYER` to the last but one."""
        middle = range(min(FIRST_LAYER, layers - 1), max(layers - 1, min(FIRST_LAYER, layers - 1) + 1))
        samples_hot: dict[tuple[int, int], int] = defaultdict(int)
        columns = ("group_layer", "group_dims", "group_tokens")
        for total, at, dims, count in zip(tokens, *(self.table.rows(name) for name in columns), strict=True):
            within: dict[tuple[int, int], int] = defaultdict(int)
            for layer, group, size in zip(at, dims, count, strict=True):
                for dim in group[group >= 0]:
                    within[int(layer), int(dim)] += int(size)
            for key, size in within.items():
                samples_hot[key] += size <= self.few * total
        often = {key for key, hits in samples_hot.items() if hits >= self.most * len(self.table)}
        return sorted(
            dim
            for dim in {dim for _, dim in often}
            if sum((layer, dim) in often for layer in middle) >= self.most * len(middle)
        )

    def _sink_tokens(self, dims: set[int], shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Sink tokens per sample, layer and kind, and the weight heads put on visual ones ``[S, L, H]``."""
        counts, weight = np.zeros((*shape[:2], len(TOKEN_KINDS))), np.zeros(shape)
        names = ("group_layer", "group_kind", "group_dims", "group_tokens", "group_weights")
        for s, groups in enumerate(zip(*(self.table.rows(name) for name in names), strict=True)):
            for layer, kind, hot, tokens, heads in zip(*groups, strict=True):
                if dims.intersection(hot.tolist()):
                    counts[s, layer, kind] += tokens
                    weight[s, layer] += heads if TOKEN_KINDS[kind] == "visual" else 0
        return counts, weight

    def _head_list(self, hits: Array, share: Array | None = None) -> dict[str, Any]:
        """Heads that qualify in most samples, and how stable that set is over halves of the samples."""
        frequency = hits.mean(axis=0)
        chosen = np.argwhere(frequency >= self.most)
        halves = [
            {tuple(h) for h in np.argwhere(half.mean(axis=0) >= self.most)}
            for half in (hits[::2], hits[1::2])
            if len(half)
        ]
        union = set.union(*halves)
        entries = []
        for layer, head in chosen:
            entry = {
                "layer": int(layer),
                "head": int(head),
                "samples": proportion(int(hits[:, layer, head].sum()), len(hits)),
            }
            if share is not None:
                entry["sink_share"] = quantiles(share[:, layer, head], _LEVELS)
            entries.append(entry)
        overlap = len(set.intersection(*halves)) / len(union) if union and len(halves) == 2 else None
        return {"heads": entries, "split_half_overlap": overlap, "by_layer": plain(frequency.mean(axis=1))}


def _groups(parts: list[Array] | None, sample: int, heads: int) -> dict[str, Array]:
    """One sample's hot tokens by layer, kind and dimensions: how many, and the head weights they get together."""
    grouped: dict[tuple[int, ...], list[Array]] = defaultdict(list)
    if parts is not None:
        layer, batch, kind, dims, weights = parts
        for i in np.flatnonzero(batch == sample):
            grouped[(int(layer[i]), int(kind[i]), *map(int, dims[i]))].append(weights[i])
    keys = sorted(grouped)
    return {
        "group_layer": np.asarray([key[0] for key in keys], np.int32),
        "group_kind": np.asarray([key[1] for key in keys], np.int32),
        "group_dims": np.asarray([key[2:] for key in keys], np.int32).reshape(len(keys), -1 if keys else _TOP),
        "group_tokens": np.asarray([len(grouped[key]) for key in keys], np.int32),
        "group_weights": np.asarray([np.sum(grouped[key], axis=0) for key in keys], np.float32).reshape(-1, heads),
    }


def _nanmean(values: Array, axis: int) -> Array:
    """Mean over an axis without NaN; NaN where nothing is left, silently."""
    present = ~np.isnan(values)
    total, count = np.where(present, values, 0).sum(axis=axis), present.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
