"""The flip test: does attention follow position or content when an image is turned upside down (sparsity appendix)?

Per layer two overlaps (shared tokens over set size) of the top 25 % image tokens before and after: at the *same
positions* (high where attention follows position), and at the *mirrored* ones (high where it follows content).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from calibrate.inputs.batches import Batch
from calibrate.inputs.encode import Inputs, to_device
from calibrate.probes.base import ExecutedProbe
from calibrate.probes.sparsity import TOP_SHARE, top_tokens
from calibrate.probes.stats import Array, mean
from planner.runtime import observe


class FlipProbe(ExecutedProbe):
    """The flip test, for samples with one image of square token grid (others are counted, not measured)."""

    name: ClassVar[str] = "flip"
    default_samples: ClassVar[int] = 64

    @property
    def settings(self) -> dict[str, Any]:
        return {"samples": self.samples}

    def forwards(self, layers: int) -> int:
        return 2

    def run(self, batch: Batch) -> None:
        upright = _tops(batch.model, batch.inputs)
        flipped = _tops(batch.model, to_device(batch.encoder(batch.samples, flip=True), batch.model))
        for position, sample in enumerate(batch.ids):
            one, other = upright[position], flipped[position]  # [L, nv]
            side = round(one.shape[1] ** 0.5)
            usable = (
                one.shape == other.shape and side * side == one.shape[1] and len(batch.samples[position].images) == 1
            )
            mirrored = other.reshape(len(other), side, side)[:, ::-1].reshape(other.shape) if usable else other
            blank = np.full(len(one), np.nan, np.float32)
            self.table.add(
                sample,
                same_position=_overlap(one, other) if usable else blank,
                mirrored=_overlap(one, mirrored) if usable else blank,
            )

    def summary(self) -> dict[str, Any]:
        same, mirrored = self.table.column("same_position"), self.table.column("mirrored")
        return {
            "same_position": mean(same),
            "mirrored": mean(mirrored),
            "not_square": int(np.isnan(same[:, 0]).sum()),
            "chance": TOP_SHARE,
        }


def _tops(model: Any, inputs: Inputs) -> list[Array]:
    """Per sample, which visual tokens are in the top quarter at each layer: ``[L, nv]``."""
    layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(view: Any) -> None:
        attention = view.weights().squeeze(2).mean(dim=1)
        layers.append((top_tokens(attention, view.visual).cpu(), view.visual.cpu()))

    with observe(model, look):
        model(**inputs, use_cache=False, logits_to_keep=1)
    tops, visual = torch.stack([top for top, _ in layers]).numpy(), layers[0][1].numpy()
    return [tops[:, b, visual[b]] for b in range(len(visual))]


def _overlap(one: Array, other: Array) -> Array:
    shared: Array = (one & other).sum(axis=1) / np.maximum(one.sum(axis=1), 1)
    return shared.astype(np.float32)
