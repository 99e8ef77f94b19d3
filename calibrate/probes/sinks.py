"""Attention sinks: massive hidden dimensions, sink tokens and what they give, sink heads, image-centric heads (VAR).

`calibrate.probes.massive` says which tokens are hot. A dimension that is hot in few tokens, in most samples and in most
middle layers is a **sink dimension**; a hot token whose hot dimensions include one is a **sink token**. Where a
dimension is hot in more than few of a prompt's tokens, it makes no sinks of them. One pass suffices: rows keep hot
tokens grouped by their dimensions, and which groups count is settled when all rows are there.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch

from calibrate.probes.base import Capture, OnePassProbe, quantiles
from calibrate.probes.massive import FIRST_LAYER, check_reachable, check_tau, hot_tokens, threshold_notes
from calibrate.probes.sink_groups import TOKEN_KINDS, HotTokens, SinkTokens, hot_share, sink_dims, sink_tokens
from calibrate.probes.stats import Array, mean, plain, proportion
from planner.errors import InputError
from planner.policies.var import sink_threshold
from planner.spec import ModelSpec

_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


class SinksProbe(OnePassProbe):
    """Sink dimensions, tokens and heads.

    Args:
        tau: threshold on ``|x_d| / RMS(x)``; None for `planner.policies.var.sink_threshold`.
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
        check_tau(tau)
        if not all(0 <= share <= 1 for share in (*rho, rho_sink, min_visual, few, most)):
            raise InputError("sink settings: shares lie between 0 and 1", "VAR uses rho 0.8")
        self.tau, self.rho, self.rho_sink = tau, tuple(rho), rho_sink
        self.min_visual, self.few, self.most = min_visual, few, most
        self._hot: list[HotTokens] = []

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

    def check(self, spec: ModelSpec, samples: int, positions: int | None) -> None:
        check_reachable(self.tau, spec.hidden_size)

    def measure(self, capture: Capture) -> dict[str, torch.Tensor]:
        weights = capture.weights
        visual, first = capture.segments[:, 1], capture.valid.int().argmax(dim=1)
        if capture.layer == 0:
            self._hot = []
        if capture.layer >= FIRST_LAYER:
            hot, limit = hot_tokens(capture.view.hidden, capture.valid, self.tau)
            self._hot.append(HotTokens.of(capture, hot, limit, first))
        return {
            "visual_mass": (weights * visual[:, None]).sum(dim=-1),
            "first_mass": weights.gather(2, first[:, None, None].expand(-1, weights.shape[1], 1)).squeeze(2),
            "visual_given": (capture.influence.l2 * visual).sum(dim=-1),
        }

    def rows(self, layers: dict[str, Array], capture: Capture) -> list[dict[str, Array]]:
        hot, self._hot = HotTokens.united(self._hot), []
        tokens = capture.valid.sum(dim=1).cpu().numpy()
        visual = capture.visual.sum(dim=1).cpu().numpy()
        heads, hidden_size = layers["visual_mass"].shape[2], capture.view.hidden.shape[-1]
        return [
            {
                **{name: values[:, b] for name, values in layers.items()},
                "sizes": np.asarray([tokens[b], visual[b], hidden_size]),
                **hot.groups(b, heads),
                "places": hot.places(b, limit=int(self.few * tokens[b])),
            }
            for b in range(len(capture.ids))
        ]

    def summary(self) -> dict[str, Any]:
        mass = self.table.column("visual_mass").astype(np.float64)  # [S, L, H]
        sizes, layers = self.table.column("sizes"), mass.shape[1]
        hidden_size = int(sizes[0, 2])
        tau = sink_threshold(hidden_size) if self.tau is None else self.tau
        dims = sink_dims(self.table, layers, self.few, self.most)
        found = sink_tokens(self.table, set(dims), mass.shape, self.few)
        share = np.where(mass >= self.min_visual, found.weight / np.maximum(mass, np.finfo(np.float64).tiny), np.nan)
        middle = slice(min(FIRST_LAYER, layers - 1), None)
        counts = found.counts
        heads = {f"rho {rho:g}": self._head_list(np.where(np.isnan(share), 0, 1 - share >= rho)) for rho in self.rho}
        return {
            "tau": tau,
            "largest_possible": math.sqrt(hidden_size),
            "notes": threshold_notes(hidden_size, tau, hot_share(self.table, layers).mean(axis=0)),
            "sink_dims": dims,
            "sink_tokens": {kind: mean(counts[:, :, k]) for k, kind in enumerate(TOKEN_KINDS)},
            "samples_with_visual_sinks": proportion(int((counts[:, middle, 2] > 0).any(axis=1).sum()), len(mass)),
            "visual_attention": mean(mass.mean(axis=2)),
            "first_token_attention": mean(self.table.column("first_mass").mean(axis=2)),
            "sink_share": {"by_layer": mean(_nanmean(share, 2)), "quantiles": quantiles(share, _LEVELS)},
            "visual_sinks": self._given(found, mass),
            "image_centric_heads": heads,
            "sink_heads": self._head_list(np.where(np.isnan(share), 0, share >= self.rho_sink), share),
        }

    def _given(self, found: SinkTokens, mass: Array) -> dict[str, Any] | None:
        """What visual sinks take of the image's attention, what they give, and where they are; over the samples and
        layers that have some, None without any.
        """
        there = found.counts[:, :, 2] > 0
        if not there.any():
            return None
        tiny = np.finfo(np.float64).tiny
        taken = found.weight.sum(axis=2) / np.maximum(mass.sum(axis=2), tiny)
        given = found.given / np.maximum(self.table.column("visual_given").astype(np.float64), tiny)
        return {
            "of_tokens": mean(np.where(there, found.counts[:, :, 2] / self.table.column("sizes")[:, 1:2], np.nan)),
            "of_attention": mean(np.where(there, taken, np.nan)),
            "of_contribution": mean(np.where(there, given, np.nan)),
            "place": found.place(self.table.column("sizes")[:, 1]),
        }

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


def _nanmean(values: Array, axis: int) -> Array:
    """Mean over an axis without NaN; NaN where nothing is left, silently."""
    present = ~np.isnan(values)
    total, count = np.where(present, values, 0).sum(axis=axis), present.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
