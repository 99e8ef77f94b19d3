"""The cost of selecting tokens: the only place that says which products a score takes. The runtime computes these.

``n`` rows are present in the scoring layer (text and visual), of which ``v`` are visual and ``t`` are text after the
image; ``r`` rows are ranked; the layer has H query heads of size dh (keys) and dv (values), hidden size d. One
multiply-add is one mac. Elementwise work (softmax, squares, means, sorting, gathering) is not counted, as in every
count here.

| rank_by                | products                                                      | macs                 |
|------------------------|---------------------------------------------------------------|----------------------|
| none, random           | none                                                          | 0                    |
| last_attention         | last row's query with the keys of all n rows                  | H dh n               |
| influence_l2           | the same; the values' squared norms are elementwise           | H dh n               |
| influence_cos          | the same; and the head's output with the r ranked values      | H dh n + H dv r      |
| ..._detrended          | as last_attention                                             | H dh n               |
| text_attention         | t text query rows with all keys                               | H dh t n             |
| visual_attention       | r ranked query rows with all keys                             | H dh r n             |
| text_raters            | similarity of t text rows and r ranked rows; t query rows     | d t r + H dh t n     |
| cross_self_attention   | t text and r ranked query rows with all keys                  | H dh (t + r) n       |
| attention_received     | t text query rows with all keys                               | H dh t n             |
| encoder_attention      | per tile of N tower tokens: the class token's row with N keys | H dh N               |
|                        | towers without a class token: all N query rows                | H dh N N             |
| tile_attention         | as encoder_attention, in two layers of the tower              | twice that           |
| encoder_norm           | none                                                          | 0                    |
| pivot_distance         | p pivots with all v tokens                                    | d p v                |
| max_min_distance       | all pairs, for the first pick; each pick but the last with    | d v v + d (k - 1) v  |
|                        | all v tokens                                                  |                      |
| determinantal          | the question with all v tokens; each pick but the last with   | d v + d (k - 1) v    |
|                        | all v tokens, and with the volume that earlier ones took      | + v (k - 1)(k - 2)/2 |

| salient_then_distant   | as encoder_attention; each pick but the last with all v       | as there             |
|                        | tokens                                                        | + d (k - 1) v        |
| frame_change,          | none (elementwise)                                            | 0                    |
| frame_uniqueness       |                                                               |                      |
| grid                   | none                                                          | 0                    |
| merge: nearest         | all v tokens with the k kept ones, beside the score           | d k v                |
|                        | (behind a decoder layer: the r ranked ones)                   | d k r                |

The eight before it, and the scores of the encoder, belong to an entry: they read projected features of size d, and of
the v tokens k are kept. Other merges are means, which multiply no matrices.

The first selection of a stage ranks all visual rows, r = v; a later one those that are left, though its score still
reads the whole layer. Where nothing is left to rank (no visual token, or `protect` covers all text) nothing is
computed. The last row's weights (H dh n) are computed once for all selections of a stage that read them.

Several query rows of one score are all computed, also those that a later mean leaves out (raters depend on the
sample, shapes must not).

Queries and keys are those the layer has just computed. A `probe` runs before the layer and computes them itself:
keys of all n rows, the query of the last row, and for an influence score the values of all n rows. Where projections
cannot be told apart (the `generic` form), all three of all n rows and of the last row. What else a layer computes ahead
of its attention (Gemma 3n) it computes of all of them. `influence_cos` also needs
the last row's attention output, and so does a `relative` threshold: one weighted sum of n values (H dv n) each. The
layer then runs unchanged on the survivors.

A `relative` threshold without a probe reads the attention output that the layer has computed anyway.

`redistribute` computes scores and weighted sums of its rows a second time, beside the fused kernel: in prefill the t
text rows after the image with all n keys, in decoding the new row with all keys: H (dh + dv) per pair, in every
layer of the stage.
"""

from __future__ import annotations

from typing import Any

from planner.schedule import Select, Threshold
from planner.spec.facts import Attention, Tower

#: An int, a float (in a paper's accounting) or an array over schedules.
Number = Any


#: Scores made of the last prompt row's attention weights.
BY_LAST_ROW = ("last_attention", "last_attention_detrended", "influence_l2", "influence_cos")


def score_macs(
    select: Select,
    attention: Attention,
    hidden: int,
    rows: Number,
    ranked: Number,
    text: Number,
    generic: bool = False,
    repeated: bool = False,
) -> Number:
    """Multiply-adds of one selection in one request.

    Args:
        select: the selection.
        attention: of the scoring layer.
        hidden: the decoder's hidden size.
        rows: present in the scoring layer, n.
        ranked: rows it chooses among, r.
        text: text rows after the image in the scoring layer, t.
        generic: a probe cannot leave projections out.
        repeated: the last row's weights are there already.
    """
    rank_by = select.rank_by
    query_row = attention.heads * attention.head_dim * rows
    macs: Number
    if rank_by in ("none", "random"):
        macs = 0 * rows
    elif rank_by == "text_raters":
        macs = hidden * text * ranked + text * query_row
    elif rank_by == "cross_self_attention":
        macs = (text + ranked) * query_row
    elif rank_by in ("attention_received", "text_attention"):
        macs = text * query_row
    elif rank_by == "visual_attention":
        macs = ranked * query_row
    else:
        macs = 0 * rows if repeated else query_row
        if rank_by == "influence_cos":
            macs = macs + attention.heads * attention.value_dim * ranked
        if select.probe:
            macs = macs + _probe_macs(select, attention, rows, generic)
    return macs * (ranked > 0)


def _probe_macs(select: Select, attention: Attention, rows: Number, generic: bool) -> Number:
    needs_values = select.rank_by in ("influence_l2", "influence_cos")
    if generic or not attention.separable:
        inputs = attention.query_macs + attention.key_macs + attention.value_macs + attention.expand_macs
        macs = inputs * (rows + 1)
    else:
        macs = attention.query_macs + (attention.key_macs + needs_values * attention.value_macs) * rows
    macs = macs + attention.before_macs * (rows + 1)
    relative = isinstance(select.keep, Threshold) and select.keep.relative
    outputs = (select.rank_by == "influence_cos") + relative
    return macs + outputs * attention.heads * attention.value_dim * rows


def merge_macs(select: Select, hidden: int, present: Number, left: Number) -> Number:
    """Multiply-adds of finding out which of the `left` kept tokens each of those `present` joins."""
    return hidden * left * present if select.merge == "nearest" else 0


def entry_macs(select: Select, hidden: int, visual: int, left: Number) -> Number:
    """Multiply-adds of a selection before layer 0 in one request, but for those inside the vision tower.

    Args:
        select: the entry.
        hidden: the decoder's hidden size.
        visual: tokens it chooses among, v.
        left: how many it keeps, k.
    """
    macs = merge_macs(select, hidden, visual, left)
    # The last pick is compared with nothing.
    compared = (left - 1) * (left > 0)
    if select.rank_by == "pivot_distance":
        macs += hidden * min(select.pivots, visual) * visual
    elif select.rank_by == "salient_then_distant":
        macs += hidden * compared * visual
    elif select.rank_by == "max_min_distance":
        macs += hidden * (compared + visual) * visual
    elif select.rank_by == "determinantal":
        macs += hidden * (compared + 1) * visual + visual * (compared * (compared - 1) // 2)
    return macs


def encoder_score_macs(tower: Tower, tokens: int) -> int:
    """Multiply-adds of ranking one tile's patches by attention inside the vision tower.

    Args:
        tokens: of the tile, class token included.
    """
    return tower.score_macs * tokens * (tower.score_rows or tokens)


def redistribute_macs(attention: Attention, query_rows: Number, keys: Number) -> Number:
    """Multiply-adds of redistributing attention in one layer."""
    return attention.pair_macs * query_rows * keys
