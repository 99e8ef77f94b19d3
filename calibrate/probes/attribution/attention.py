"""Attention weights of text rows to visual tokens in the ordinary pass: what head attribution is compared with."""

from __future__ import annotations

import numpy as np
import torch

from calibrate.probes.attribution.prefix import LayerCapture, PrefixCapture
from calibrate.probes.attribution.response import Vector
from planner.runtime.tensors.weights import attention_weights


def text_weights(layer: LayerCapture) -> torch.Tensor:
    """Softmax weights of the text rows over all keys, ``[H, T, n]``: one layer at a time, to bound memory."""
    return attention_weights(layer.query[None], layer.key[None], layer.visible[None, None], layer.scaling)[0]


def image_attention(capture: PrefixCapture) -> Vector:
    """Weight on the image, summed over visual tokens and averaged over text rows: ``[L, H]`` (eq. 10)."""
    sums = [text_weights(layer)[..., capture.visual.to(layer.key.device)].sum(-1).mean(-1) for layer in capture.layers]
    return np.stack([one.double().cpu().numpy() for one in sums])


def weighted_token_attention(capture: PrefixCapture, heads: Vector, rows: Vector) -> Vector:
    """Attention on each visual token, ``[V]``, weighted by the importance of heads ``[L, H]`` and text rows ``[T]``
    (head attribution eq. 13).
    """
    total = np.zeros(capture.visual.numel())
    for number, layer in enumerate(capture.layers):
        if not heads[number].any():
            continue
        weights = text_weights(layer)[..., capture.visual.to(layer.key.device)].double().cpu().numpy()
        total += np.einsum("h,t,htv->v", heads[number], rows, weights)
    return total
