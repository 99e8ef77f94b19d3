"""Scores that rank tokens: each `rank_by` of a `planner.schedule.Select`, from one layer's queries, keys and values.

Every score is ``[B, r]`` over the ranked rows. The costly part is one product of some query rows with the keys of all
present rows; the influence scores add one product of the last row's output with the ranked values. Nothing else
multiplies matrices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.runtime.model.attention import Call
from planner.runtime.tensors.layout import Layout
from planner.runtime.tensors.masks import causal
from planner.runtime.tensors.prefix import PrefixAttention
from planner.runtime.tensors.rows import Rows, gather
from planner.runtime.tensors.weights import attention_weights, influence, influence_norm, weighted_values, working_dtype

#: Query rows whose weights are held at once where many are needed.
_CHUNK = 128


@dataclass
class Scored:
    """The attention of the scoring layer.

    Attributes:
        call: queries ``[B, H, q, dh]``, keys and values ``[B, Hkv, k, dh]``, mask ``[B, 1, q, k]`` or None.
        output: ``[B, q, H, dh]`` before the output projection, or None when the kernel did not run (probe).
        queries, keys: rows behind the slots of the call.
        hidden: ``[B, m, d]`` input of the layer, and its rows.
        hidden_rows: rows of `hidden`.
        layout: parts of the prompt.
        isolated: attention of visual rows that are no queries of the call, where they see text; ahead: that text.
    """

    call: Call
    output: Tensor | None
    queries: Rows
    keys: Rows
    hidden: Tensor
    hidden_rows: Rows
    layout: Layout
    isolated: PrefixAttention | None = None
    ahead: Rows | None = None
    _last: Tensor | None = None

    def weights(self, slots: Tensor) -> Tensor:
        """Attention weights of the queries in some slots ``[B, R]``: ``[B, H, R, k]``."""
        query = gather(self.call.query, slots, dim=2)
        mask = self.call.mask
        if mask is None:
            if self.queries.index.shape[1] > 1:
                asking = Rows(
                    gather(self.queries.index, slots), (slots.shape[1],) * slots.shape[0], self.queries.length
                )
                mask = causal(asking, self.keys)
        else:
            mask = gather(mask, slots, dim=2)
        return attention_weights(query, self.call.key, mask, self.call.scaling, self.call.softcap)

    def last_weights(self) -> Tensor:
        """Weights of the last prompt row: ``[B, H, k]``, computed once."""
        if self._last is None:
            self._last = self.weights(self._last_slot())[:, :, 0]
        return self._last

    def last_output(self, weights: Tensor) -> Tensor:
        """The last row's attention output ``[B, H, dh]``; where no kernel ran, from its `weights` ``[B, H, k]``."""
        if self.output is not None:
            return gather(self.output, self._last_slot())[:, 0]
        return weighted_values(weights[:, :, None], self.call.value)[:, 0]

    def _last_slot(self) -> Tensor:
        return self.queries.slots.gather(1, self.layout.last[:, None].to(self.queries.index.device))

    def allows(self, rows: Rows, ranked: Rows) -> Tensor:
        """``[B, q, r]``: which of some queries may attend to which of the ranked rows, by the layer's mask."""
        mask = self.call.mask
        if mask is None:
            return causal(rows, ranked)[:, 0]
        mask = gather(mask, self.queries.slots_of(rows), dim=2).transpose(1, 3)
        mask = gather(mask, self.keys.slots_of(ranked)).transpose(1, 3)[:, 0]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2

    def from_isolated(self, ranked: Rows) -> tuple[Tensor, Tensor] | None:
        """What isolated visual rows give to ranked text: weights ``[B, H, r]``, and from how many, ``[B, 1, r]``."""
        if self.isolated is None or self.ahead is None or self.layout.one_block:
            return None  # only text between visual rows is both ranked and seen by one
        slots, seen = self.ahead.slots_of(ranked), ranked.pick(self.ahead.mask)[:, None]
        mask = self.isolated.mask
        assert mask is not None
        sees = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        weights = self.isolated.received()
        return gather(weights, slots, dim=2) * seen, gather(sees.sum(2).to(weights), slots, dim=2) * seen

    def mean_over(
        self, rows: Rows, ranked: Rows, share: Tensor | None = None, more: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Mean weight that some queries give to the ranked rows, per head: ``[B, H, r]``.

        Args:
            rows: the query rows.
            ranked: the key rows.
            share: ``[B, q, r]`` bool, which pairs count; None: all.
            more: sums over further queries: of their weights, ``[B, H, r]``, and of queries, ``[B, 1, r]``.
        """
        columns = self.keys.slots_of(ranked)
        total: Tensor | float
        count: Tensor | float
        total, count = more or (0.0, 0.0)
        slots = self.queries.slots_of(rows)
        for start in range(0, rows.width, _CHUNK):
            part = slice(start, start + _CHUNK)
            weights = gather(self.weights(slots[:, part]).transpose(1, 3), columns).transpose(1, 3)  # [B, H, R, r]
            counts = rows.filled[:, part, None].expand(-1, -1, ranked.width)
            if share is not None:
                counts = counts & share[:, part]
            counts = counts.to(weights)[:, None]
            total = total + (weights * counts).sum(2)
            count = count + counts.sum(2)
        return total / torch.as_tensor(count).clamp(min=1)


def last_attention(scored: Scored, ranked: Rows) -> Tensor:
    """Head-mean weight given by the last prompt row (FastV, PyramidDrop)."""
    return gather(scored.last_weights().mean(1), scored.keys.slots_of(ranked))


def last_attention_detrended(scored: Scored, ranked: Rows) -> Tensor:
    """`last_attention` less its least-squares line over the positions of the ranked tokens.

    Attention leans towards recent tokens, so that the end of a picture outranks its beginning whatever they show.
    """
    score = last_attention(scored, ranked)
    filled = ranked.filled.to(score)
    count = filled.sum(1, keepdim=True).clamp(min=1)
    place = ranked.index.to(score) * filled
    place = (place - place.sum(1, keepdim=True) / count) * filled
    level = (score * filled).sum(1, keepdim=True) / count
    slope = (place * score).sum(1, keepdim=True) / place.square().sum(1, keepdim=True).clamp(min=1)
    return score - level - slope * place


def text_attention(scored: Scored, ranked: Rows) -> Tensor:
    """Mean weight given by the text after the image, over heads and rows (VisiPruner table 4)."""
    return scored.mean_over(_held(scored, scored.layout.after), ranked).mean(1)


def visual_attention(scored: Scored, ranked: Rows) -> Tensor:
    """Mean weight given by the ranked visual tokens, over heads and rows (VisiPruner table 4)."""
    return scored.mean_over(ranked, ranked).mean(1)


def influence_l2(scored: Scored, ranked: Rows) -> Tensor:
    """L2 change of the last row's output when the token's weight is zeroed (VisiPruner eq. 6)."""
    columns = scored.keys.slots_of(ranked)
    weights = gather(scored.last_weights(), columns, dim=2)
    return influence_norm(weights, gather(scored.call.value, columns, dim=2))


def influence_cos(scored: Scored, ranked: Rows) -> Tensor:
    """1 - cosine of the same change (VisiPruner eq. 7-8)."""
    weights = scored.last_weights()
    columns = scored.keys.slots_of(ranked)
    value = gather(scored.call.value, columns, dim=2)
    return 1.0 - influence(gather(weights, columns, dim=2), value, scored.last_output(weights)).cos


def relative(scored: Scored, score: Tensor) -> Tensor:
    """A score divided by the norm of the last row's attention output, before the output projection."""
    output = scored.last_output(scored.last_weights())
    norm: Tensor = torch.linalg.vector_norm(output.to(score.dtype).flatten(1), dim=1, keepdim=True)
    return score / norm.clamp(min=torch.finfo(score.dtype).tiny)


def text_raters(scored: Scored, ranked: Rows) -> Tensor:
    """Mean weight, over heads and raters, given by the text tokens most similar to the image (SparseVLM).

    Raters are the text rows after the image whose similarity reaches the mean over those rows. Similarity is the mean
    dot product of the row's hidden state with those of the ranked visual rows, at the scoring layer's input.
    """
    rows = _held(scored, scored.layout.after)
    hidden = scored.hidden.to(working_dtype(scored.hidden))
    visual = gather(hidden, scored.hidden_rows.slots_of(ranked)) * ranked.filled[..., None]
    text = gather(hidden, scored.hidden_rows.slots_of(rows))
    similarity = torch.matmul(text, visual.transpose(1, 2)).sum(-1) / ranked.filled.sum(1, keepdim=True).clamp(min=1)
    mean = (similarity * rows.filled).sum(1, keepdim=True) / rows.filled.sum(1, keepdim=True).clamp(min=1)
    rates = (similarity >= mean)[:, :, None].expand(-1, -1, ranked.width)
    return scored.mean_over(rows, ranked, rates).mean(1)


def cross_self_attention(scored: Scored, ranked: Rows) -> Tensor:
    """Largest over heads of mean weight from text after the image times mean weight from visual tokens (FitPrune)."""
    cross = scored.mean_over(_held(scored, scored.layout.after), ranked)
    return (cross * scored.mean_over(ranked, ranked)).amax(1)


def attention_received(scored: Scored, ranked: Rows) -> Tensor:
    """Mean weight over the queries that can see the token, largest over heads (context pruning, as we read eq. 4)."""
    layout = scored.layout
    asking = layout.after | layout.visual if layout.visual_after_text() else layout.after
    rows = _held(scored, asking)
    sees = (rows.index[:, :, None] >= ranked.index[:, None, :]) & scored.allows(rows, ranked)
    return scored.mean_over(rows, ranked, sees, scored.from_isolated(ranked)).amax(1)


def _held(scored: Scored, flags: Tensor) -> Rows:
    """The rows among the queries that `flags` ``[B, n]`` names."""
    held = scored.queries.mask & flags
    return Rows.of(held, tuple(int(count) for count in held.sum(1).tolist()))


def random(layout: Layout, ranked: Rows, seed: int, layer: int) -> Tensor:
    """Seeded scores between layers, which do not depend on the image, the batch or the device. Before the decoder
    pictures draw for themselves (`planner.runtime.selection.entry_scores.lots`).

    One generator per sample, seeded by SHA-256 over the seed, the layer after which the selection happens and the
    sample's own text tokens, so a sample keeps the same tokens alone and in any batch, and different questions keep
    different ones.
    """
    scores = torch.zeros(ranked.index.shape, dtype=torch.float64)
    text = (layout.valid & ~layout.visual).cpu()
    for sample, ids in enumerate(layout.ids.cpu()):
        words = ",".join(str(token) for token in ids[text[sample]].tolist())
        digest = hashlib.sha256(f"{seed}:{layer}:{words}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        count = ranked.counts[sample]
        scores[sample, ranked.width - count :] = torch.rand(count, generator=generator, dtype=torch.float64)
    return scores.to(ranked.index.device)


#: Scores that read one layer's attention, by `planner.schedule.RankBy` name.
BY_ATTENTION: dict[str, Callable[[Scored, Rows], Tensor]] = {
    "last_attention": last_attention,
    "last_attention_detrended": last_attention_detrended,
    "text_attention": text_attention,
    "visual_attention": visual_attention,
    "influence_l2": influence_l2,
    "influence_cos": influence_cos,
    "text_raters": text_raters,
    "cross_self_attention": cross_self_attention,
    "attention_received": attention_received,
}
