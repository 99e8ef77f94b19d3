"""The answer's logit, normalised: 0 when no head reads the image, 1 when all do (head attribution, section 4.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibrate.probes.attribution.forward import TextRows
from calibrate.probes.attribution.masks import Ablation
from planner.errors import CalibrationError

Vector = NDArray[np.float64]
#: Smallest effect of the image on the answer's logit that is worth dividing up, in standard deviations of the logits.
MIN_EFFECT = 0.05


class ImageIndependentError(CalibrationError):
    """The image does not raise the answer's logit over what the mean image gives: there is nothing to attribute."""


class Response:
    """Normalised answer logit as a function of the ablation: f(x) and f(x, u, v) in head attribution.

    Attributes:
        intact, ablated: the answer's logit minus the vocabulary mean, with every head intact and with none.
        forwards: ablations run so far.

    Raises:
        ImageIndependentError: the image does not raise the logit, so there is nothing to attribute.
    """

    def __init__(self, text: TextRows, token: int, sample: str = "?") -> None:
        self._text, self._token = text, token
        both = torch.cat([text.uniform(True).heads, text.uniform(False).heads])
        self.intact, self.ablated = text.answer_logit(Ablation(both), token).tolist()
        self.forwards = len(both)
        self.layers, self.heads = both.shape[1:]
        if not self.intact - self.ablated > MIN_EFFECT * text.logit_spread:
            raise ImageIndependentError(
                f"the answer of sample {sample} does not rest on its image (logit {self.intact:.6g} with it, "
                f"{self.ablated:.6g} with the mean image)",
                "Leave the sample out",
            )

    def __call__(self, heads: Any, rows: torch.Tensor | None = None, image: torch.Tensor | None = None) -> Vector:
        """Normalised logits ``[M]`` in float64; ``heads [M, L * H]`` or ``[M, L, H]``, others as in `Ablation`."""
        masks = torch.as_tensor(heads, dtype=torch.bool).reshape(-1, self.layers, self.heads)
        self.forwards += len(masks)
        logits = self._text.answer_logit(Ablation(masks, rows, image), self._token).numpy()
        return np.asarray((logits - self.ablated) / (self.intact - self.ablated))
