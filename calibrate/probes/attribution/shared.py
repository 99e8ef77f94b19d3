"""Attention of many ablations' text rows to one prefix.

Queries of all masks whose head is intact meet the image's keys in one matrix product, those of all masks whose head is
ablated meet the mean keys in another: both key sets are shared by every mask. Sorting the masks of a head by intact and
ablated *before* the product costs a small gather of queries, and halves the work of computing both score matrices and
selecting afterwards. The select form remains for heads that read only some rows or some visual tokens from the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calibrate.probes.attribution.masks import Ablation
from calibrate.probes.attribution.prefix import LayerCapture
from calibrate.probes.attribution.rotary import rotate

#: What a (mask, head) pair reads.
_IMAGE, _MEAN, _MIXED = range(3)


@dataclass(frozen=True)
class SharedLayer:
    """Prefix of one layer, P rows for K key/value heads, and the rules of the T text rows behind it.

    Attributes:
        image, mean: keys, already times the scaling, and values ``[K, P, e]``: as they are, and with the mean image in
            place of the visual tokens.
        visual: row numbers of the visual tokens.
        hidden_prefix: prefix keys that a text row may not see (padding, sliding windows), ``[T, P]``; None if it sees
            all.
        hidden_text: the same of text keys, ``[T, T]``.
    """

    image: tuple[torch.Tensor, torch.Tensor]
    mean: tuple[torch.Tensor, torch.Tensor]
    visual: torch.Tensor
    scaling: float
    hidden_prefix: torch.Tensor | None
    hidden_text: torch.Tensor


def share_prefix(
    seen: LayerCapture, visual: torch.Tensor, mean_keys: torch.Tensor, mean_values: torch.Tensor
) -> SharedLayer:
    """Lay the mean image ``[K, V, e]`` (keys before rotary) over a captured layer."""
    start = seen.key.shape[1] - seen.query.shape[1]
    visual = visual.to(seen.key.device)
    key, value = seen.key[:, :start].contiguous(), seen.value[:, :start].contiguous()
    mean_key, mean_value = key.clone(), value.clone()
    mean_key[:, visual] = rotate(mean_keys.to(key), seen.cos[visual], seen.sin[visual])
    mean_value[:, visual] = mean_values.to(value)
    hidden_prefix, hidden_text = ~seen.visible[:, :start], ~seen.visible[:, start:]
    return SharedLayer(
        image=(key * seen.scaling, value),
        mean=(mean_key * seen.scaling, mean_value),
        visual=visual,
        scaling=seen.scaling,
        hidden_prefix=hidden_prefix if bool(hidden_prefix.any()) else None,
        hidden_text=hidden_text,
    )


def attend(
    layer: SharedLayer, index: int, ablation: Ablation, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """One layer's attention output under every ablation, ``[M, H, Tq, e]``.

    Args:
        layer, index: the layer's prefix and its number.
        ablation: M ablations.
        query: of the last Tq text rows, ``[M, H, Tq, e]``.
        key, value: of all text rows, ``[M, K, T, e]``.
    """
    masks, heads, rows, size = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    intact = ablation.heads[:, index].bool()
    kind = torch.where(intact, _MIXED if ablation.partial else _IMAGE, _MEAN)
    kind = kind.view(masks, kv_heads, group).transpose(0, 1).reshape(kv_heads, -1)
    counts = torch.stack([(kind == which).sum(-1) for which in (_IMAGE, _MEAN, _MIXED)], dim=-1).tolist()
    pairs = kind.argsort(dim=-1, stable=True).to(query.device)
    # One copy that lets every pair be gathered as one block.
    by_pair = query.reshape(masks, kv_heads, group, rows, size).transpose(0, 1).reshape(kv_heads, -1, rows, size)
    key, value = key.transpose(0, 1).contiguous(), value.transpose(0, 1).contiguous()
    out = torch.empty(kv_heads, masks * group, rows, value.shape[-1], dtype=query.dtype, device=query.device)
    for kv_head in range(kv_heads):
        order = pairs[kv_head]
        mask_of = order if group == 1 else order.div(group, rounding_mode="floor")
        out[kv_head].index_copy_(
            0,
            order,
            _one_kv_head(
                layer,
                kv_head,
                by_pair[kv_head].index_select(0, order),
                key[kv_head].index_select(0, mask_of),
                value[kv_head].index_select(0, mask_of),
                [count * rows for count in counts[kv_head]],
                _reads(layer, ablation, mask_of[len(mask_of) - counts[kv_head][_MIXED] :], rows),
            ),
        )
    return out.view(kv_heads, masks, group, rows, -1).transpose(0, 1).reshape(masks, heads, rows, -1)


def _one_kv_head(
    layer: SharedLayer,
    kv_head: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    counts: list[int],
    reads: torch.Tensor,
) -> torch.Tensor:
    """Output ``[pairs, Tq, e]`` of the pairs that share a key/value head, sorted by what they read.

    Args:
        query: ``[pairs, Tq, e]``. key, value: ``[pairs, T, e]``.
        counts: query rows that read the image, the mean, and some of both.
        reads: for the last of these, which prefix keys come from the image, ``[rows, P]``.
    """
    pairs, rows, size = query.shape
    image_key, image_value = (table[kv_head] for table in layer.image)
    mean_key, mean_value = (table[kv_head] for table in layer.mean)
    prefix = image_key.shape[0]
    of_image, of_mean, of_mixed = query.reshape(-1, size).split(counts)
    scores = torch.empty(pairs * rows, prefix + key.shape[1], dtype=query.dtype, device=query.device)
    to_image, to_mean, to_mixed = scores[:, :prefix].split(counts)
    torch.mm(of_image, image_key.T, out=to_image)
    torch.mm(of_mean, mean_key.T, out=to_mean)
    if len(of_mixed):
        to_mixed.copy_(torch.where(reads, of_mixed @ image_key.T, of_mixed @ mean_key.T))
    by_pair = scores.view(pairs, rows, -1)
    if layer.hidden_prefix is not None:
        by_pair[:, :, :prefix].masked_fill_(layer.hidden_prefix[-rows:], -torch.inf)
    # Batched products are slow on strided slices, so the small text block is made apart and copied in.
    to_text = query.new_empty(pairs, rows, key.shape[1])
    torch.baddbmm(to_text, query, key.transpose(1, 2), beta=0, alpha=layer.scaling, out=to_text)
    by_pair[:, :, prefix:] = to_text.masked_fill_(layer.hidden_text[-rows:], -torch.inf)
    weights = torch.softmax(scores, dim=-1)
    out = torch.bmm(weights.view(pairs, rows, -1)[:, :, prefix:].contiguous(), value)
    out_image, out_mean, out_mixed = out.view(pairs * rows, -1).split(counts)
    from_image, from_mean, from_mixed = weights[:, :prefix].split(counts)
    out_image.addmm_(from_image, image_value)
    out_mean.addmm_(from_mean, mean_value)
    if len(of_mixed):
        out_mixed.addmm_(from_mixed * reads, image_value).addmm_(from_mixed * ~reads, mean_value)
    return out


def _reads(layer: SharedLayer, ablation: Ablation, mask_of: torch.Tensor, rows: int) -> torch.Tensor:
    """Prefix keys that the rows of mixed pairs read from the image, ``[pairs * Tq, P]``; text keys count as read."""
    prefix = layer.image[0].shape[1]
    reads = torch.ones(len(mask_of), rows, prefix, dtype=torch.bool, device=mask_of.device)
    if len(mask_of) and ablation.image is not None:
        reads[:, :, layer.visual] = ablation.image.to(mask_of.device)[mask_of][:, None, :]
    if len(mask_of) and ablation.rows is not None:
        reads &= ablation.rows.to(mask_of.device)[mask_of][:, -rows:, None]
    return reads.view(-1, prefix)
