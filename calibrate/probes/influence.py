"""Influence of visual tokens on the last prompt token, and the layers and budget it suggests (VisiPruner).

For each sample: the filtering layer is the first layer where any visual token has ``cos < filter_cos``; the tokens kept
there are those with ``l2`` (or ``l2 / |O|``) at or above a threshold; the vision exit layer is the second of two
*consecutive* layers after the filter in which no kept token has ``cos < exit_cos``. Layers count from 0. Samples that
never trigger, keep none or never exit are counted, not hidden: these rules were tuned on one model, so they only
propose candidates.

In half precision the cosines depend on the samples that share a batch. The first sample of each batch is measured by
itself too, and how far its smallest cosine moves is kept as noise: a threshold nearer to 1 than that means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from calibrate.probes.base import Capture, OnePassProbe, quantiles
from calibrate.probes.stats import Array, bootstrap, mean, plain, proportion
from planner.errors import InputError

NEVER = -1
LEVELS = (0.5, 0.75, 0.9, 0.95)
_SPREAD = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
#: Shares of the tokens that adaptive thresholds are proposed for: of each, one less is in `_SPREAD`.
_SHARES = (0.01, 0.05, 0.25)


class InfluenceProbe(OnePassProbe):
    """Distributions per layer, and filter layer, kept tokens and exit layer per sample.

    Args:
        filter_cos: thresholds for the filtering layer; the first (the paper's) is used for suggestions.
        exit_cos: threshold for the exit layer.
        keep_l2: absolute threshold on the L2 change (the paper's; it depends on the model's scale).
        keep_relative: thresholds on the L2 change over the norm of the last token's attention output.
        levels: shares of the samples that suggestions should fit.
        proposing: the first samples, from which alone thresholds are proposed for a plan.

    Raises:
        InputError: a threshold that can never or always trigger, or a level outside 0..1.
    """

    name: ClassVar[str] = "influence"
    compares: ClassVar[bool] = True

    def __init__(
        self,
        filter_cos: Sequence[float] = (0.995, 0.98, 0.95, 0.9),
        exit_cos: float = 0.995,
        keep_l2: float = 0.2,
        keep_relative: Sequence[float] = (0.01, 0.02, 0.05, 0.1),
        levels: Sequence[float] = LEVELS,
        proposing: int = 0,
    ) -> None:
        super().__init__()
        if not filter_cos or not all(-1 < threshold < 1 for threshold in (*filter_cos, exit_cos)):
            raise InputError("cosine thresholds must lie between -1 and 1", "VisiPruner uses 0.995")
        if keep_l2 <= 0 or any(threshold <= 0 for threshold in keep_relative):
            raise InputError("thresholds for kept tokens must be above 0", "VisiPruner uses l2 >= 0.2")
        if not levels or not all(0 <= level <= 1 for level in levels):
            raise InputError("levels are shares of the samples, between 0 and 1", "Such as 0.5 and 0.9")
        self.filter_cos, self.exit_cos, self.levels = tuple(filter_cos), exit_cos, tuple(levels)
        self.keep_l2, self.keep_relative, self.proposing = keep_l2, tuple(keep_relative), proposing
        #: Smallest cosines of each batch's first sample by itself, until the batch is through.
        self._alone: dict[int, list[float]] = {}

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "filter_cos": list(self.filter_cos),
            "exit_cos": self.exit_cos,
            "keep_l2": self.keep_l2,
            "keep_relative": list(self.keep_relative),
            "levels": list(self.levels),
            "proposing": self.proposing,
        }

    def measure(self, capture: Capture) -> dict[str, torch.Tensor]:
        found = capture.influence
        return {"l2": found.l2, "cos": found.cos, "norm": found.output_norm}

    def by_itself(self, capture: Capture) -> None:
        (sample,) = capture.ids
        if capture.layer == 0:
            self._alone = {sample: []}
        self._alone[sample].append(float(capture.influence.cos[0, capture.visual[0]].min()))

    def rows(self, layers: dict[str, Array], capture: Capture) -> list[dict[str, Array]]:
        visual = capture.visual.cpu().numpy()
        found = [
            self._row(layers["l2"][:, b, visual[b]], layers["cos"][:, b, visual[b]], layers["norm"][:, b])
            for b in range(len(capture.ids))
        ]
        for sample, row in zip(capture.ids, found, strict=True):
            other = np.asarray(self._alone.pop(sample, [np.nan] * capture.layers))
            row["noise"] = np.abs(row["min_cos"] - other).astype(np.float32)
        return found

    def _row(self, l2: Array, cos: Array, norm: Array) -> dict[str, Array]:
        """One sample: ``l2, cos [L, nv]``, ``norm [L]``."""
        relative = l2 / np.maximum(norm, np.finfo(np.float32).tiny)[:, None]
        staged = [self._stages(l2, relative, cos, threshold) for threshold in self.filter_cos]
        return {
            "min_cos": cos.min(axis=1),
            "triggered": (cos < self.filter_cos[0]).sum(axis=1),
            "over_l2": (l2 >= self.keep_l2).sum(axis=1),
            "cos_quantiles": np.quantile(cos, _SPREAD, axis=1).T,
            "relative_quantiles": np.quantile(relative, _SPREAD, axis=1).T,
            "output_norm": norm,
            "filter": np.asarray([stages[0] for stages in staged]),  # [thresholds]
            "kept": np.asarray([stages[1] for stages in staged]),  # [thresholds, keep rules], absolute first
            "exit": np.asarray([stages[2] for stages in staged]),
        }

    def _stages(self, l2: Array, relative: Array, cos: Array, threshold: float) -> tuple[int, list[int], list[int]]:
        """Filter layer, and per keep rule how many are kept and the exit layer; `NEVER` where it does not happen."""
        triggered = (cos < threshold).any(axis=1)
        rules = 1 + len(self.keep_relative)
        if not triggered.any():
            return NEVER, [0] * rules, [NEVER] * rules
        at = int(triggered.argmax())
        keeps = [l2[at] >= self.keep_l2, *(relative[at] >= share for share in self.keep_relative)]
        return at, [int(keep.sum()) for keep in keeps], [self._exit(cos, at, keep) for keep in keeps]

    def _exit(self, cos: Array, at: int, keep: Array) -> int:
        if not keep.any():
            return NEVER
        quiet: Array = np.all(cos[:, keep] >= self.exit_cos, axis=1)
        for layer in range(at + 2, len(cos)):
            if quiet[layer - 1] and quiet[layer]:
                return layer
        return NEVER

    def summary(self) -> dict[str, Any]:
        filters, kept, exits = (self.table.column(name) for name in ("filter", "kept", "exit"))
        min_cos = self.table.column("min_cos")
        rules = ["absolute", *(f"relative {share:g}" for share in self.keep_relative)]
        by_threshold = {
            f"{threshold:g}": {
                rule: self._stage_summary(filters[:, t], kept[:, t, r], exits[:, t, r], min_cos.shape[1])
                for r, rule in enumerate(rules)
            }
            for t, threshold in enumerate(self.filter_cos)
        }
        return {
            "layers": min_cos.shape[1],
            "min_cos": mean(min_cos),
            "triggered_tokens": mean(self.table.column("triggered")),
            "tokens_over_l2": mean(self.table.column("over_l2")),
            "output_norm": mean(self.table.column("output_norm")),
            "cos_quantiles": self._spread("cos_quantiles"),
            "relative_l2_quantiles": self._spread("relative_quantiles"),
            "triggered_samples": [
                proportion(int(hits), len(min_cos)) for hits in (min_cos < self.filter_cos[0]).sum(axis=0)
            ],
            "noise": self._noise(),
            "adaptive": self._adaptive(),
            "stages": by_threshold,
            "suggested": by_threshold[f"{self.filter_cos[0]:g}"]["absolute"]["suggested"],
        }

    def _adaptive(self) -> dict[str, Any]:
        """Relative thresholds that keep about a share of the tokens, per layer: the mean of the samples' quantiles, and
        the shares that it keeps of them, on average and at most."""
        spreads = self.table.column("relative_quantiles")[[one < self.proposing for one in self.table.ids]]
        found = {}
        for share in _SHARES if len(spreads) else ():
            thresholds = spreads[:, :, _SPREAD.index(1 - share)].mean(axis=0)
            pairs = [list(zip(thresholds, one, strict=True)) for one in spreads]
            kept = np.array([[1 - np.interp(at, layer, _SPREAD) for at, layer in one] for one in pairs])
            values = {"threshold": thresholds, "kept": kept.mean(axis=0), "most": kept.max(axis=0)}
            found[f"{share:g}"] = {name: plain(value) for name, value in values.items()}
        return found

    def _noise(self) -> dict[str, Any]:
        """How far a sample's smallest cosine moves with its company in a batch: per layer, and the largest of any
        layer, over the samples that were measured by themselves."""
        noise = self.table.column("noise")
        compared = noise[~np.isnan(noise).all(axis=1)]
        if not len(compared):
            return {"n": 0}
        most = compared.max(axis=1)
        return {
            "n": len(compared),
            "min_cos": mean(compared),
            "most": {**quantiles(most, (0.5, 0.9)), "1": float(most.max())},
            "exceeds_filter_cos": bool(most.max() > 1 - self.filter_cos[0]),
        }

    def _spread(self, name: str) -> dict[str, Any]:
        """Per layer, each token quantile averaged over samples."""
        means = self.table.column(name).mean(axis=0).T
        return {f"{level:g}": plain(values) for level, values in zip(_SPREAD, means, strict=True)}

    def _stage_summary(self, filters: Array, kept: Array, exits: Array, layers: int) -> dict[str, Any]:
        hit, some, out = filters != NEVER, kept > 0, exits != NEVER
        found = np.where(hit, filters, np.nan)
        counts = np.where(hit, kept, np.nan)
        leaves = np.where(out, exits, np.nan)
        return {
            "never_filtered": int((~hit).sum()),
            "kept_none": int((hit & ~some).sum()),
            "never_exited": int((some & ~out).sum()),
            "filter": {
                **mean(found),
                "quantiles": quantiles(found, self.levels),
                "median_interval": _median_interval(found),
            },
            "kept": {**mean(counts), "quantiles": quantiles(counts, self.levels)},
            "exit": {
                **mean(leaves),
                "quantiles": quantiles(leaves, self.levels),
                "median_interval": _median_interval(leaves),
            },
            "suggested": suggest(filters, kept, exits, layers, self.levels),
        }


def suggest(
    filters: Array, kept: Array, exits: Array, layers: int, levels: Sequence[float] = LEVELS
) -> dict[str, dict[str, int]]:
    """Filter, budget and exit that fit a share of the samples, by share.

    At level q: the latest filter layer that comes no later than that of a share q of the samples, the smallest budget
    and the earliest exit that suffice for a share q. Samples that never triggered ask for filter 0 (nothing hidden
    from them); those that never exit ask for all layers.
    """
    starts = np.where(filters == NEVER, 0, filters)
    leaves = np.where(exits == NEVER, layers, exits)
    return {
        f"{level:g}": {
            "filter": math.floor(np.quantile(starts, 1 - level)),
            "keep": math.ceil(np.quantile(kept, level)),
            "exit": math.ceil(np.quantile(leaves, level)),
        }
        for level in levels
    }


def _median_interval(values: Array) -> list[Any]:
    low, high = bootstrap(values[:, None], 0.5)
    return [plain(low[0]), plain(high[0])]
