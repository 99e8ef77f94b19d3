"""The flip test: does attention follow position or content when an image is turned upside down (sparsity appendix)?

Per layer two overlaps (shared tokens over set size) of the top 25 % image tokens before and after: at the *same
positions* (high where attention follows position), and at the *mirrored* ones (high where it follows content).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from calibrate.inputs.batches import Batch
from calibrate.inputs.encode import to_device
from calibrate.probes.base import ExecutedProbe
from calibrate.probes.sparsity import TOP_SHARE, most_attended, overlap
from calibrate.probes.stats import mean


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
        upright = most_attended(batch.model, batch.inputs)
        flipped = most_attended(batch.model, to_device(batch.encoder(batch.samples, flip=True), batch.model))
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
                same_position=overlap(one, other) if usable else blank,
                mirrored=overlap(one, mirrored) if usable else blank,
            )

    def summary(self) -> dict[str, Any]:
        same, mirrored = self.table.column("same_position"), self.table.column("mirrored")
        return {
            "same_position": mean(same),
            "mirrored": mean(mirrored),
            "not_square": int(np.isnan(same[:, 0]).sum()),
            "chance": TOP_SHARE,
        }
