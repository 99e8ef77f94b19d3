"""One attributed sample as a row of numbers, and one that was looked at and left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from calibrate.inputs.samples import Sample
from calibrate.probes.attribution.attribute import Attribution
from calibrate.probes.attribution.curves import grid
from calibrate.probes.attribution.parts import AttributionParts
from calibrate.probes.attribution.spelling import spell

ORDERS = ("attribution", "attention", "causal", "random")
#: What became of a sample: attributed, answered wrongly, or its answer does not rest on the image.
ATTRIBUTED, WRONG, INDEPENDENT = range(3)


def attributed_row(
    found: Attribution, parts: AttributionParts, sample: Sample, ids: list[int], decode: Callable[[list[int]], str]
) -> dict[str, Any]:
    """What is kept of a sample: a few kilobytes, see `Attribution` for what the names mean.

    Args:
        ids: of the prompt, whose last tokens are the text rows.
        decode: token ids to text.
    """
    text, image = found.text, found.image
    nan = float("nan")
    return {
        **blank_row(parts, ATTRIBUTED),
        "coefficients": found.coefficients,
        "needed": found.needed,
        "single_head": found.single_head,
        "image_attention": found.image_attention,
        "r2": found.fit.r2,
        "pearson": found.fit.pearson,
        "masks": found.fit.masks,
        "logits": [found.intact, found.ablated],
        "faithful_heads": [found.curves[order].faithful_heads for order in ORDERS],
        "complete_heads": [found.curves[order].complete_heads for order in ORDERS],
        "curves": np.stack([found.curves[order].at(grid(parts.layers * parts.heads)) for order in ORDERS]),
        "attention_correlation": found.attention_correlation,
        "text_effects": [] if text is None else text.effects,
        "receiving": nan if text is None else int(text.receives.sum()),
        "text_sufficient": nan if text is None else text.sufficient,
        "image_coefficients": [] if image is None else image.fit.coefficients,
        "image_attention_weights": [] if image is None else image.attention,
        "image_r2": nan if image is None else image.fit.r2,
        "image_correlation": nan if image is None else image.correlation,
        "words": [[word.layer, word.head, *word.tokens] for word in found.words],
        "spelled": spell(found.words, [] if text is None else ids[-len(text.effects) :], decode),
        "interpolated": found.mean_grid != "equal",
        "prompt": _number(sample.prompt.encode()),
        "image": image_number(sample),
    }


def blank_row(parts: AttributionParts, status: int) -> dict[str, Any]:
    """A sample that was looked at and not attributed: NaN, in the shapes of one that was."""
    nan, table = np.full(1, np.nan), np.full((parts.layers, parts.heads), np.nan)
    single = (
        "r2",
        "pearson",
        "masks",
        "attention_correlation",
        "receiving",
        "text_sufficient",
        "image_r2",
        "image_correlation",
    )
    return {
        "status": np.asarray([status]),
        **dict.fromkeys(("coefficients", "single_head", "image_attention"), table),
        "needed": np.zeros(table.shape, bool),
        **dict.fromkeys(single, nan),
        "logits": np.full(2, np.nan),
        **dict.fromkeys(("faithful_heads", "complete_heads"), np.full(len(ORDERS), np.nan)),
        **dict.fromkeys(("text_effects", "image_coefficients", "image_attention_weights"), np.zeros(0)),
        "curves": np.full((len(ORDERS), 2, len(grid(parts.layers * parts.heads))), np.nan),
        "words": np.zeros((0, 12), np.int64),
        "spelled": np.zeros(0, np.uint8),
        "interpolated": np.zeros(1, bool),
        **dict.fromkeys(("prompt", "image"), np.zeros(1, np.int64)),
    }


def image_number(sample: Sample) -> int:
    """Fingerprint of a sample's pictures."""
    return _number(b"".join(hashlib.sha256(one.tobytes()).digest() for one in sample.pictures()))


def _number(content: bytes) -> int:
    """A short fingerprint, to tell equal prompts and images apart from others."""
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "big")
