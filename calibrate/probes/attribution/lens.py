"""Logit lens of single heads: which words a head writes into the last row (head attribution, appendix C.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calibrate.probes.attribution.attention import text_weights
from calibrate.probes.attribution.parts import AttributionParts
from calibrate.probes.attribution.prefix import PrefixCapture
from planner.errors import UnsupportedModelError


@dataclass(frozen=True)
class HeadWords:
    """A head and the vocabulary entries its output points to most, best first."""

    layer: int
    head: int
    tokens: tuple[int, ...]


@torch.no_grad()
def head_words(
    parts: AttributionParts, capture: PrefixCapture, heads: list[tuple[int, int]], words: int = 10
) -> tuple[HeadWords, ...]:
    """Read each head's contribution to the last row through the final norm and the output embedding.

    Args:
        heads: ``(layer, head)`` pairs.

    Raises:
        UnsupportedModelError: the text decoder has no final norm.
    """
    norm = getattr(parts.tower, "norm", None)
    if norm is None:
        raise UnsupportedModelError("the logit lens needs the text decoder's final norm, .norm", "Ask for no lens")
    return tuple(
        HeadWords(
            layer, head, tuple(parts.head(norm(_written(parts, capture, layer, head))).topk(words).indices.tolist())
        )
        for layer, head in heads
    )


def _written(parts: AttributionParts, capture: PrefixCapture, layer: int, head: int) -> torch.Tensor:
    """What a head adds to the last row of the residual stream, ``[d]``."""
    seen = capture.layers[layer]
    weights = text_weights(seen)[head, -1]
    output = weights @ seen.value[head * seen.key.shape[0] // parts.heads]
    project = parts.attentions[layer].get_submodule("o_proj")
    alone = torch.zeros(2, parts.heads * output.numel(), dtype=capture.embeddings.dtype, device=output.device)
    alone[0, head * output.numel() : (head + 1) * output.numel()] = output
    # Through the module rather than its weight, which may be quantised; the second row takes its bias off again.
    written: torch.Tensor = project(alone)
    return written[0] - written[1]
