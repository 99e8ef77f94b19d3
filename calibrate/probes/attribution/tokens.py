"""Which text tokens receive the image, and which image tokens it comes from (head attribution, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from calibrate.probes.attribution.attention import weighted_token_attention
from calibrate.probes.attribution.masks import random_masks
from calibrate.probes.attribution.prefix import PrefixCapture
from calibrate.probes.attribution.regression import Fit, attribute_entries
from calibrate.probes.attribution.response import Response, Vector

#: A text token whose blocking lowers the logit by more than this share receives the image (head attribution eq. 11).
RECEIVES = 0.05


@dataclass(frozen=True)
class TextTokens:
    """Text rows blocked one at a time, with only the needed heads intact.

    Attributes:
        effects: share of the logit lost when a row is blocked, ``[T]`` (delta in head attribution).
        receives: rows with an effect above `RECEIVES`, ``[T]``.
        sufficient: share of the logit left when only those rows receive the image; NaN when there is none.
    """

    effects: Vector
    receives: np.ndarray
    sufficient: float


@dataclass(frozen=True)
class ImageTokens:
    """The regression over visual tokens.

    Attributes:
        fit: coefficients ``[V]`` and how well they predict.
        attention: weighted attention, ``[V]`` (head attribution eq. 13).
        correlation: Pearson correlation of the two (the paper: 0.70 on LLaVA-1.5-7B); NaN where either is constant.
    """

    fit: Fit
    attention: Vector
    correlation: float


def text_tokens(respond: Response, needed: np.ndarray, rows: int) -> TextTokens:
    """Block each text row in turn; ``needed [L * H]`` are the heads that stay intact."""
    base = float(respond(needed)[0])
    effects = 1 - respond(_repeat(needed, rows), rows=~torch.eye(rows, dtype=torch.bool)) / base
    receives = effects > RECEIVES
    sufficient = float("nan")
    if receives.any():
        sufficient = float(respond(needed, rows=torch.from_numpy(receives)[None])[0]) / base
    return TextTokens(effects, receives, sufficient)


def image_tokens(
    respond: Response,
    capture: PrefixCapture,
    needed: np.ndarray,
    coefficients: Vector,
    text: TextTokens,
    *,
    masks: int,
    ablated: float,
    seed: int,
    early_stop: bool,
) -> ImageTokens:
    """Ablate random visual tokens, read by the needed heads (``[L * H]``) in the receiving rows, and fit.

    Raises:
        InputError: fewer masks than visual tokens.
    """
    receives = torch.from_numpy(text.receives if text.receives.any() else np.ones_like(text.receives))
    drawn = random_masks(masks, capture.visual.numel(), ablated, seed)

    def run(piece: torch.Tensor) -> Vector:
        return respond(_repeat(needed, len(piece)), rows=receives.expand(len(piece), -1), image=piece)

    fit = attribute_entries(drawn, run, early_stop)
    shape = respond.layers, respond.heads
    attention = weighted_token_attention(
        capture, np.where(needed, coefficients, 0.0).reshape(shape), np.where(receives.numpy(), text.effects, 0.0)
    )
    return ImageTokens(fit, attention, correlation(fit.coefficients, attention))


def correlation(one: Vector, other: Vector) -> float:
    """Pearson correlation; NaN where either is constant."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else float("nan")


def _repeat(heads: np.ndarray, count: int) -> np.ndarray:
    return np.broadcast_to(heads, (count, heads.size)).copy()
