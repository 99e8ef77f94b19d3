"""Norms of the value vectors of system text, image and prompt text (sparsity appendix).

All tokens of a segment are compared with its most attended quarter. A token's norm is the mean over key/value heads of
its value vector's L2 norm. The appendix finds that heavily attended system tokens have small values (1.02 against 2.80
in layer 3 of LLaVA-1.5-7B): a sink takes attention and gives nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from calibrate.probes.base import Capture
from calibrate.probes.sparsity import TopTokensProbe, top_tokens
from calibrate.probes.stats import mean

NORM_SEGMENTS = ("system", "image", "text")


class ValueNormsProbe(TopTokensProbe):
    """Norms per layer and segment; a sample without tokens in a segment is left out there."""

    name: ClassVar[str] = "value_norms"

    def measure(self, capture: Capture) -> dict[str, torch.Tensor]:
        norms = capture.view.value_norms().float().mean(dim=1)  # [B, n]
        attention, segments = capture.weights.mean(dim=1), capture.segments
        tops = torch.stack([top_tokens(attention, one, self.top_share) for one in segments.unbind(1)], dim=1)
        # 0/0 for an absent segment: NaN, which the summary leaves out.
        return {
            "all": (norms[:, None] * segments).sum(dim=2) / segments.sum(dim=2),
            "top": (norms[:, None] * tops).sum(dim=2) / tops.sum(dim=2),
        }

    def summary(self) -> dict[str, Any]:
        return {
            segment: {
                "all": mean(self.table.column("all")[:, :, s]),
                "top_quarter": mean(self.table.column("top")[:, :, s]),
            }
            for s, segment in enumerate(NORM_SEGMENTS)
        }
