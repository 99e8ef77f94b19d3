"""How long the calibration prompts are: the lengths that costs are computed for."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from calibrate.probes.base import Capture, OnePassProbe
from calibrate.probes.stats import Array, mean

SEGMENTS = ("system", "visual", "text")


class PromptLengthsProbe(OnePassProbe):
    """Tokens per sample before the image, of the image, and after it. Part of every run."""

    name: ClassVar[str] = "prompt"
    attends: ClassVar[bool] = False

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def measure(self, capture: Capture) -> dict[str, torch.Tensor]:
        return {"tokens": capture.segments.sum(dim=2)} if capture.begins else {}

    def rows(self, layers: dict[str, Array], capture: Capture) -> list[dict[str, Array]]:
        return [{"tokens": tokens} for tokens in layers["tokens"][0]]

    def summary(self) -> dict[str, Any]:
        tokens = self.table.column("tokens")
        return {
            segment: {**mean(tokens[:, s]), "least": int(tokens[:, s].min()), "most": int(tokens[:, s].max())}
            for s, segment in enumerate(SEGMENTS)
        }
